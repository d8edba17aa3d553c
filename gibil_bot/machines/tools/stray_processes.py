"""Processes that outlived what started them: a command that has ended (`gibil run`, vm_bash), or a background job.

Every command carries its first process's pid and a tag in its environment, every job its id, and what they start inherits it.
What .gibil.yml set up (services) belongs to the machine and is left alone, as is everything that no command of ours started.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gibil_bot.machines.remote_layout import JOB_ID, LEADER
from gibil_bot.machines.session import MachineSession
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import number, printable
from gibil_bot.ssh.job_list import JOBS_BYTES

_GRACE_TURNS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A process that descends from a command or a job of ours."""

    pid: int
    job: str
    command: str
    leader: str
    words: str
    """Its command line, or the beginning of it."""


def read_tagged(answer: bytes) -> list[Tagged]:
    fields = answer.decode("utf-8", "replace").split("\0")
    return [
        Tagged(pid=number(pid), job=job, command=command, leader=leader, words=printable(words))
        for pid, job, command, leader, words in (fields[at : at + 5] for at in range(0, len(fields) - 5, 5))
    ]


def orphans(processes: Sequence[Tagged], ended_jobs: frozenset[str]) -> list[Tagged]:
    """Those whose command's first process is gone, and those of jobs that have ended."""
    alive = {(process.command, str(process.pid)) for process in processes if process.command}
    found = []
    for process in processes:
        of_ended_job = process.job in ended_jobs and process.job != JOB_ID
        of_ended_command = bool(process.leader) and (process.command, process.leader) not in alive
        if of_ended_job or (of_ended_command and process.job != JOB_ID):
            found.append(process)
    return found


async def sweep(live: MachineSession, *, look_only: bool = False) -> tuple[list[Tagged], bool]:
    """End what was left over: SIGTERM, after two seconds SIGKILL; what it was, and whether all of it is gone."""
    jobs = await live.jobs()
    ended = frozenset(job.id for job in jobs if job.status != "running")
    found = orphans(
        read_tagged((await live.shell.run(script("stray_list", LEADER=LEADER), most_bytes=JOBS_BYTES)).stdout), ended
    )
    if look_only or not found:
        return found, not found
    lines = "\n".join(f"{process.pid} {_tag(process)}" for process in found)
    result = await live.shell.run(script("stray_end", TURNS=str(_GRACE_TURNS)), env={"gibil_found": lines})
    return found, result.exit_status == 0


def _tag(process: Tagged) -> str:
    return f"GIBIL_COMMAND={process.command}" if process.leader else f"GIBIL_JOB={process.job}"
