"""Follows one run in the bot's files: phases from `events.jsonl`, output from `<index>.log`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path


@dataclass(slots=True)
class Tail:
    """A growing file. Only whole lines are returned, except with `last`."""

    path: Path
    offset: int = 0
    held: bytes = b""

    def lines(self, *, last: bool = False) -> list[str]:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                new = file.read()
        except FileNotFoundError:
            new = b""
        self.offset += len(new)
        *whole, self.held = (self.held + new).split(b"\n")
        if last and self.held:
            whole.append(self.held)
            self.held = b""
        return [line.decode(errors="replace") for line in whole]


@dataclass(frozen=True, slots=True)
class Step:
    """One phase, as written by the bot. `output`: new output of the task that ends here."""

    at: datetime
    phase: str
    seconds: float | None
    name: str = ""
    index: int = 0
    status: str = ""
    output: tuple[str, ...] = ()


@dataclass(slots=True)
class RunStory:
    """One run. `steps` and `output` return each item once."""

    folder: Path
    ahead: timedelta = timedelta()
    """How far the double's clock, used for `at`, is ahead of the bot's."""
    journal: Tail = field(init=False)
    logs: dict[int, Tail] = field(default_factory=dict)
    machine_attempt: int = 1
    running: int | None = None
    """Index of the task that is running, or else of none."""
    running_name: str = ""
    """Name of the task that started last."""
    last_at: datetime | None = None

    def __post_init__(self) -> None:
        self.journal = Tail(self.folder / "events.jsonl")

    def steps(self) -> list[Step]:
        found = []
        for line in self.journal.lines():
            event = json.loads(line)
            found.append(self._step(event))
        return found

    def _step(self, event: dict[str, object]) -> Step:
        phase, index, seconds = str(event["phase"]), event.get("index"), event.get("seconds")
        number = index if isinstance(index, int) else 0
        output: tuple[str, ...] = ()
        if phase == "forging":
            # A second machine starts with the first task again, in another log folder.
            attempt = str(event.get("machine", "")).rpartition("-")[2]
            self.machine_attempt = int(attempt) if attempt.isdigit() else 1
            self.logs.clear()
        elif phase == "task_started":
            self.running, self.running_name = number, str(event.get("name", ""))
        elif phase == "task_finished":
            output = tuple(self._log(number).lines(last=True))
            self.running = None
        at = datetime.fromisoformat(str(event["at"])) + self.ahead
        if phase != "finished":
            self.last_at = at
        return Step(
            at=at,
            phase=phase,
            seconds=float(seconds) if isinstance(seconds, int | float) else None,
            name=str(event.get("name", "")),
            index=number,
            status=str(event.get("status", event.get("conclusion", ""))),
            output=output,
        )

    def output(self) -> list[str]:
        """Return new whole lines of the running task."""
        return self._log(self.running).lines() if self.running is not None else []

    def _log(self, index: int) -> Tail:
        folder = self.folder if self.machine_attempt == 1 else self.folder / f"machine-{self.machine_attempt}"
        return self.logs.setdefault(index, Tail(folder / f"{index}.log"))
