"""Detached jobs of a machine: follow their output, list them, print their output.

scripts/jobs.py describes their directories.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gibil_bot import views
from gibil_bot.errors import UsageError
from gibil_bot.scripts.commands import check_job_id
from gibil_bot.scripts.jobs import AT_ONCE_BYTES, MAX_RETURNS, RETURN_BYTES
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import BadAnswer, exit_status, number, printable, timestamp

if TYPE_CHECKING:
    from gibil_bot.ssh.channel import Channel  # imports asyncssh, which listing jobs and machines doesn't need

_HIGH_WATER = 4 * 1024 * 1024
"""The machine has to pause when this many bytes wait for the reader."""
_LINE_BYTES = 2 * RETURN_BYTES
"""The longest line that our scripts print: a file of RETURN_BYTES takes four thirds of its size in base64."""
_MANY_PIECES = 1024
"""Waiting pieces are joined beyond this count: each needs its own memory, and a machine may send single bytes."""


class JobFollower:
    """Reader of a script of scripts/jobs.py that follows a file: the script sends the file on stdout, status lines on stderr.

    `channel` runs the script. `wake` is set whenever something new has arrived.
    """

    def __init__(self, stream: str, offset: int) -> None:
        self.stream = stream
        self.offset = offset
        """Position in the file of the next byte that the caller hasn't taken yet."""
        self.wake = asyncio.Event()
        self.started: bool | None = None
        """Only after a start. True: the job runs now; False: it was started before."""
        self.separate = False
        self.failed = ""
        self.complaint = ""
        """The last line on stderr without `gibil:`: an error from a shell or the server."""
        self.unknown = False
        self.lost = False
        self.cut = False
        self.exit_status: int | None = None
        self.files: dict[str, bytes] = {}
        """Contents of the job's `returns`; complete when the exit status is known."""
        self._begun_at = offset
        self._final_size: int | None = None
        """None with an exit status: the final size is what arrives until the channel ends, if less than AT_ONCE_BYTES."""
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._lines = bytearray()
        self._paused = False
        self.channel: Channel | None = None

    def on_data(self, stream: str, data: bytes) -> None:
        if stream == "stderr":
            self._lines += data
            if b"\n" in data:
                *lines, rest = self._lines.split(b"\n")
                self._lines = bytearray(rest)
                for line in lines:
                    self._read_line(line.decode("utf-8", "surrogateescape"))
            if len(self._lines) > _LINE_BYTES:  # none of our scripts prints such a line
                self._lines.clear()
        else:
            self._waiting.append(data)
            if len(self._waiting) > _MANY_PIECES:
                self._waiting = [b"".join(self._waiting)]
            self._waiting_size += len(data)
            if self._waiting_size > _HIGH_WATER and not self._paused and self.channel is not None:
                self._paused = True
                self.channel.channel.pause_reading()
        self.wake.set()

    def take(self) -> bytes:
        """Return the data since the last call, and move the offset past it."""
        data = b"".join(self._waiting) if len(self._waiting) != 1 else self._waiting[0]
        self._waiting.clear()
        self._waiting_size = 0
        self.offset += len(data)
        if self._paused and self.channel is not None:
            self._paused = False
            self.channel.channel.resume_reading()
        return data

    @property
    def complete(self) -> bool:
        """Whether the job has ended and all of its output was taken. (What other processes append later isn't the job's.)"""
        if self.exit_status is None or self._waiting:
            return False
        if self._final_size is not None:
            return self.offset >= self._final_size
        ended_well = self.channel is not None and self.channel.ended.done() and self.channel.exit_status == 0
        return ended_well and self.offset - self._begun_at < AT_ONCE_BYTES

    @property
    def interrupted(self) -> bool:
        """Whether the channel has ended and all its data was taken."""
        return self.channel is not None and self.channel.ended.done() and not self._waiting

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def _read_line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        match word:
            case _ if not word.startswith("gibil:") or word == "gibil:":
                self.complaint = printable(line) or self.complaint
            case "gibil:started":
                self.started = True
            case "gibil:again":
                self.started = False
            case "gibil:separate":
                self.separate = True
            case "gibil:unknown":
                self.unknown = True
            case "gibil:lost":
                self.lost = True
            case "gibil:cut":
                self.cut = True
            case "gibil:failed":
                self.failed = self.failed or printable(rest) or "no reason given"  # the launcher knows only that it ended
            case "gibil:file":
                content, _, path = rest.partition(" ")
                if len(self.files) < MAX_RETURNS:
                    self.files[path] = _decoded(content)
            case "gibil:rest":
                with contextlib.suppress(BadAnswer):
                    self.exit_status = exit_status(rest)
            case "gibil:exit":
                status, _, size = rest.partition(" ")
                with contextlib.suppress(BadAnswer):
                    self.exit_status, self._final_size = exit_status(status), number(size)


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content)
    except ValueError:  # jobs control the machine, so one may have written something that isn't base64
        return b""


JOBS_BYTES = 8 * 1024 * 1024
"""The longest list of jobs that is read, in bytes."""
_COMMAND_BYTES = 2000
_STATUSES = ("running", "exited", "lost")
_FIELDS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """One job. `status`: running, exited, or lost (its supervisor was killed, so its exit status is unknown)."""

    id: str
    status: str
    exit_status: int | None
    started_at: datetime
    ended_at: datetime | None
    script: str
    """The beginning of the job's script."""


def job_view(job: JobEntry) -> dict[str, object]:
    """Return the JSON of a job for `gibil jobs --json` and the MCP tools."""
    return {
        "job_id": job.id,
        "status": job.status,
        "exit_code": job.exit_status,
        "started_at": views.timestamp(job.started_at),
        "ended_at": views.timestamp(job.ended_at),
        "command": job.script or None,
    }


def list_jobs_command() -> str:
    """Return POSIX sh that lists the jobs, for `read_jobs`."""
    return script("job_list", COMMAND_BYTES=str(_COMMAND_BYTES))


def read_jobs(answer: bytes) -> list[JobEntry]:
    """Parse the output of `list_jobs_command`, oldest job first. Skips directories that don't contain a valid job."""
    fields = answer.decode("utf-8", "replace").split("\0")[:-1]
    jobs = []
    for start in range(0, len(fields) - _FIELDS + 1, _FIELDS):
        with contextlib.suppress(BadAnswer, UsageError):
            jobs.append(_read_job(*fields[start : start + _FIELDS]))
    return sorted(jobs, key=lambda job: (job.started_at, job.id))


def _read_job(name: str, status: str, code: str, started: str, ended: str, script: str) -> JobEntry:
    """Raises BadAnswer, UsageError."""
    check_job_id(name)
    if status not in _STATUSES:
        raise BadAnswer(f"{status!r} is not the status of a job")
    return JobEntry(
        id=name,
        status=status,
        exit_status=exit_status(code) if code else None,
        started_at=datetime.fromtimestamp(timestamp(started), UTC),
        ended_at=datetime.fromtimestamp(timestamp(ended), UTC) if status == "exited" else None,
        script=script[:_COMMAND_BYTES],
    )


def print_job(job_id: str) -> str:
    """Return POSIX sh that prints a job's output so far, each stream to its own; exit status 4: no such job."""
    check_job_id(job_id)
    return f'j=$HOME/.gibil/jobs/{job_id}; [ -e "$j/out" ] || exit 4; cat "$j/out"; [ -e "$j/err" ] || exit 0; cat "$j/err" >&2'
