"""What another process needs to continue an agent's work: values in JSON files of the run's folder.

Other hosts don't have these files, so the state of an agent task is in its result in the store, too (TaskResult.agent_state).
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


def state_file(folder: Path, name: str) -> Path:
    """Return the file with the AgentState of the task or attempt of that name."""
    return folder / f"{name}.agent.json"


def has_state(folder: Path, index: int) -> bool:
    """Return whether a process of this host began the agent task."""
    return state_file(folder, str(index)).exists()


def forget_state(folder: Path, name: str) -> None:
    """Forget what an earlier process stored: the machine with the index and attempt `name` is a new one."""
    with contextlib.suppress(OSError):
        state_file(folder, name).unlink(missing_ok=True)


def read_value(path: Path, kind: type[T]) -> T | None:
    """Return a stored value; None if there is none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def store_value(path: Path, value: object) -> None:
    """Store a value, completely or not at all."""
    with contextlib.suppress(OSError):  # a full disk costs what a restart would have saved
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_suffix(".new")
        new.write_bytes(msgspec.json.encode(value))
        new.replace(path)
