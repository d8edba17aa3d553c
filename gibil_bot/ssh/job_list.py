"""Which detached jobs a machine has, how they stand, and what they printed: shell text, and what it answers. Pure.

The folders of jobs are described in scripts/jobs.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import UTC, datetime

from gibil_bot import views
from gibil_bot.errors import UsageError
from gibil_bot.scripts.commands import check_job_id
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import BadAnswer, exit_status, timestamp

JOBS_BYTES = 8 * 1024 * 1024
"""The longest list of jobs that is read."""
_COMMAND_BYTES = 2000
_STATUSES = ("running", "exited", "lost")
_FIELDS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEntry:
    """`status`: running, exited, or lost (its supervisor was killed, so nobody knows how it ended)."""

    id: str
    status: str
    exit_status: int | None
    started_at: datetime
    ended_at: datetime | None
    script: str
    """Its beginning."""


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
    """POSIX sh whose output `read_jobs` reads."""
    return script("job_list", COMMAND_BYTES=str(_COMMAND_BYTES))


def read_jobs(answer: bytes) -> list[JobEntry]:
    """What that command answered, oldest first. Folders whose files aren't those of a job are left out."""
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
    """POSIX sh that prints what a job has printed so far, each stream to its own; 4: there is no such job."""
    check_job_id(job_id)
    return f'j=$HOME/.gibil/jobs/{job_id}; [ -e "$j/out" ] || exit 4; cat "$j/out"; [ -e "$j/err" ] || exit 0; cat "$j/err" >&2'
