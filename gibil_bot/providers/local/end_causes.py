"""Why machines ended: one small file per machine in the local folder, readable after the machine and the daemon are gone."""

from __future__ import annotations

import contextlib
import time

import msgspec

from gibil_bot.providers.local.control_protocol import Cause
from gibil_bot.providers.local.paths import LocalPaths

KEPT_S = 86400


def write_cause(paths: LocalPaths, name: str, cause: Cause) -> None:
    """Remember why. A disk without room for it is no reason to fail: it is written again when the machine's own is gone."""
    with contextlib.suppress(OSError):
        paths.causes.mkdir(mode=0o700, exist_ok=True)
        draft = paths.causes / f".{name}"
        draft.write_bytes(msgspec.json.encode(cause))
        draft.rename(paths.causes / name)


def read_cause(paths: LocalPaths, name: str) -> Cause | None:
    """Why the last machine of that name ended, if that is known."""
    try:
        return msgspec.json.decode((paths.causes / name).read_bytes(), type=Cause)
    except (OSError, msgspec.DecodeError):
        return None


def forget_cause(paths: LocalPaths, name: str) -> None:
    """A new machine has the name."""
    with contextlib.suppress(OSError):
        (paths.causes / name).unlink()


def forget_old_causes(paths: LocalPaths) -> None:
    with contextlib.suppress(OSError):
        for path in paths.causes.iterdir():
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink(missing_ok=True)
