"""The output of a background job so far, from any offset."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from gibil_bot.errors import UsageError
from gibil_bot.machines.session import MachineSession, no_job
from gibil_bot.machines.tools.truncate import decoded, whole_characters
from gibil_bot.scripts.commands import check_job_id
from gibil_bot.ssh.answers import MOST_ANSWERED, fields_of, number
from gibil_bot.ssh.jobs import JobEntry

STREAMS = {"stdout": "out", "stderr": "err"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of one stream. `next` is the offset after it, `size` the stream's size so far, in bytes."""

    text: str
    offset: int
    next: int
    size: int


async def find_job(session: MachineSession, job_id: str) -> JobEntry:
    """Return a job. Raises UsageError if it doesn't exist."""
    check_job_id(job_id)
    for job in await session.jobs():
        if job.id == job_id:
            return job
    raise no_job(session.name, job_id)


async def read_output(session: MachineSession, job_id: str, stream: str, offset: int | None, most: int) -> Piece:
    """Return at most `most` bytes from `offset` on; None: the last bytes. An incomplete character is left to the next piece.

    Raises UsageError, BadAnswer.
    """
    check_job_id(job_id)
    if stream not in STREAMS:
        raise UsageError(f"there is no stream {stream!r}; write {' or '.join(STREAMS)}")
    if offset is not None and offset < 0:
        raise UsageError("an offset is a number of bytes ≥ 0")
    script = _script(job_id, STREAMS[stream], offset, most)
    result = await session.shell.run(script, most_bytes=most + MOST_ANSWERED)
    if result.exit_status == 4:
        raise no_job(session.name, job_id)
    size_field, start_field, data = fields_of(result.stdout, 3)
    size, start = number(size_field), number(start_field)
    if offset is None and start > 0:
        data, start = _from_line(data, start)
    if start + len(data) < size:
        data = whole_characters(data)
    return Piece(text=decoded(data), offset=start, next=start + len(data), size=size)


def _script(job_id: str, file: str, offset: int | None, most: int) -> str:
    where = str(offset) if offset is not None else f"$((s > {most} ? s - {most} : 0))"
    return (
        f'j=$HOME/.gibil/jobs/{shlex.quote(job_id)}; [ -e "$j/out" ] || exit 4; f=$j/{file}; [ -e "$f" ] || f=/dev/null\n'
        f's=$(stat -Lc %s "$f"); o={where}; [ "$o" -le "$s" ] || o=$s; printf \'%s\\0%s\\0\' "$s" "$o"\n'
        f'tail -c "+$((o + 1))" "$f" | head -c {most}; exit 0'
    )


def _from_line(data: bytes, start: int) -> tuple[bytes, int]:
    """Drop the incomplete line or character at the beginning."""
    skipped = data.find(b"\n", 0, 1000) + 1
    while not skipped and data and data[0] & 0xC0 == 0x80:
        data, start = data[1:], start + 1
    return data[skipped:], start + skipped
