"""Why machines ended: one small file per machine in the local folder, readable after the machine and the daemon are gone."""

from __future__ import annotations

import contextlib
import time

import msgspec

from gibil_bot.providers.local.control_protocol import Cause
from gibil_bot.providers.local.paths import LocalPaths

STORED_S = 86400


def write_cause(paths: LocalPaths, name: str, cause: Cause) -> bool:
    """Store the cause. Returns False if the disk is full: write it again after the machine's own files are deleted."""
    try:
        paths.causes.mkdir(mode=0o700, exist_ok=True)
        draft = paths.causes / f".{name}"
        draft.write_bytes(msgspec.json.encode(cause))
        draft.rename(paths.causes / name)
    except OSError:
        return False
    return True


def read_cause(paths: LocalPaths, name: str) -> Cause | None:
    """Return why the last machine of that name ended, if that is known."""
    try:
        return msgspec.json.decode((paths.causes / name).read_bytes(), type=Cause)
    except (OSError, msgspec.DecodeError):
        return None


def forget_cause(paths: LocalPaths, name: str) -> None:
    """Delete the cause, because a new machine gets the name."""
    with contextlib.suppress(OSError):
        (paths.causes / name).unlink()


def forget_old_causes(paths: LocalPaths) -> None:
    with contextlib.suppress(OSError):
        for path in paths.causes.iterdir():
            if time.time() - path.stat().st_mtime > STORED_S:
                path.unlink(missing_ok=True)
