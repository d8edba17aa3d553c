"""Parts of the stored output of a run's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gibil_bot.errors import UsageError
from gibil_bot.model import FilePart, Run
from gibil_bot.runs.run_files import read_part


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """A part of a task's redacted output. Offsets are bytes."""

    task: str
    text: str
    offset: int
    next: int
    size: int
    remark: str = ""
    """Why the output may be incomplete."""


Part = Literal["log", "transcript", "patch"]
"""Of a task: its output; for an agent's the events that its program printed, as JSON lines; for an attempt its changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRequest:
    """Which page of a run's output is wanted."""

    task: int
    """Counted from 0."""
    part: Part = "log"
    attempt: int = 0
    """Of an agent: one of the attempts that worked side by side, from 1. 0: the task itself."""
    offset: int | None = None
    """None: the end."""
    most_bytes: int


def read_log(logs: Path, run: Run, wanted: LogRequest) -> LogPage:
    """Return a page of a file on this host. Blocks. Raises UsageError, GibilError."""
    name = file_of(run, wanted)
    return page_of(run, wanted, read_part(logs / run.id, name, offset=wanted.offset, most_bytes=wanted.most_bytes))


def file_of(run: Run, wanted: LogRequest) -> str:
    """Return the name (see run_files) of the wanted file of the run's last machine. Raises UsageError."""
    tasks, task, attempt = run.plan.tasks, wanted.task, wanted.attempt
    if not 0 <= task < len(tasks):
        names = ", ".join(f"{index}: {each.name}" for index, each in enumerate(tasks))
        raise UsageError(f"the run has no task {task}; it has {names or 'no tasks'}")
    if wanted.offset is not None and wanted.offset < 0:
        raise UsageError("an offset is zero or greater")
    agent = tasks[task].agent
    if attempt and (agent is None or not 0 < attempt <= agent.attempts):
        raise UsageError(f"the task {tasks[task].name!r} has no attempt {attempt}")
    if wanted.part != "log" and agent is None:
        raise UsageError(f"the task {tasks[task].name!r} has no {wanted.part}: it has no agent")
    folder = f"machine-{run.machine_attempt}/" if run.machine_attempt > 1 else ""
    return f"{folder}{task}{f'-{attempt}' if attempt else ''}.{wanted.part}"


def page_of(run: Run, wanted: LogRequest, part: FilePart | None, remark: str = "") -> LogPage:
    """Return the part of a file as text. A page doesn't end inside a character. None: a task that hasn't started."""
    name = run.plan.tasks[wanted.task].name
    if part is None:
        return LogPage(task=name, text="", offset=0, next=0, size=0, remark=remark)
    start, data = part.offset, part.data
    if wanted.offset is None and start:  # begin at a whole line, if there is one
        _, newline, rest = data.partition(b"\n")
        if newline:
            start, data = start + len(data) - len(rest), rest
    if start + len(data) < part.size:
        data = _whole_characters(data)
    text = data.decode("utf-8", "replace")
    return LogPage(task=name, text=text, offset=start, next=start + len(data), size=part.size, remark=remark)


def _whole_characters(data: bytes) -> bytes:
    """Return the bytes without an incomplete UTF-8 sequence at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte >> 5 == 6 else 3 if byte >> 4 == 14 else 4 if byte >> 3 == 30 else 1
        return data[:-back] if length > back else data
    return data
