"""Records the files of gibil_bot in which a process enters functions; Python imports it at its start if it is on PYTHONPATH.

One line `PID SECONDS PATH` per file and twentieth of a second, in the file that GIBIL_TRACE_FILE names. The seconds are from
CLOCK_MONOTONIC, which all processes of a computer share, so that a reader can select a period.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import FrameType

_TRACE = os.environ.get("GIBIL_TRACE_FILE", "")
_ROOT = os.environ.get("GIBIL_TRACE_ROOT", "")
_IS_FUNCTION = 1  # inspect.CO_OPTIMIZED: neither a module nor the body of a class, which run when they are imported
_PERIOD_S = 0.05


def _start() -> None:
    trace = os.open(_TRACE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    periods: dict[str, int] = {}

    def on_call(frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        code = frame.f_code
        path = code.co_filename
        if not path.startswith(_ROOT) or not code.co_flags & _IS_FUNCTION or code.co_name.startswith("<"):
            return
        now = time.monotonic()
        period = int(now / _PERIOD_S)
        if periods.get(path) != period:
            periods[path] = period
            os.write(trace, f"{os.getpid()} {now} {path}\n".encode())

    threading.setprofile(on_call)
    sys.setprofile(on_call)


if _TRACE:
    _start()
