"""Stray processes: they outlived the command (`gibil run`, vm_bash) or the background job that started them.

Every command and job has a tag in its environment, a command also the pid of its first process; child processes inherit
both. The previous version had a second tag (GIBIL_COMMAND), which isn't needed, because its commands had this tag, too. What
.gibil.yml set up (services) belongs to the machine and is left alone, like everything that gibil didn't start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gibil_bot.machines.remote_layout import JOB_ID
from gibil_bot.machines.session import MachineSession
from gibil_bot.scripts.commands import list_tagged_command
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import number, printable
from gibil_bot.ssh.jobs import JOBS_BYTES

_GRACE_TURNS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A process that descends from a command or job that gibil started."""

    pid: int
    tag: str
    """The job's id, or the command's tag."""
    leader: str
    """For a command, the pid of its first process."""
    words: str
    """The command line, or its beginning."""


def read_tagged(answer: bytes) -> list[Tagged]:
    fields = answer.decode("utf-8", "replace").split("\0")
    return [
        Tagged(pid=number(pid), tag=tag, leader=leader, words=printable(words))
        for pid, tag, leader, words in (fields[at : at + 4] for at in range(0, len(fields) - 4, 4))
    ]


def orphans(processes: Sequence[Tagged], ended_jobs: frozenset[str]) -> list[Tagged]:
    """Return the processes whose command's first process is gone, and those of jobs that have ended."""
    alive = {(process.tag, str(process.pid)) for process in processes}
    return [
        process
        for process in processes
        if process.tag != JOB_ID
        and (process.tag in ended_jobs or (process.leader and (process.tag, process.leader) not in alive))
    ]


async def sweep(session: MachineSession, *, look_only: bool = False) -> tuple[list[Tagged], bool]:
    """End stray processes: SIGTERM, after two seconds SIGKILL. Return them, and whether all of them are gone."""
    jobs = await session.jobs()
    ended = frozenset(job.id for job in jobs if job.status != "running")
    found = orphans(read_tagged((await session.shell.run(list_tagged_command(), most_bytes=JOBS_BYTES)).stdout), ended)
    if look_only or not found:
        return found, not found
    lines = "\n".join(f"{process.pid} GIBIL_JOB={process.tag}" for process in found)
    result = await session.shell.run(script("stray_end", TURNS=str(_GRACE_TURNS)), env={"gibil_found": lines})
    return found, result.exit_status == 0
