"""How long tests wait: bounds grow on a computer that is slower or busier than the one that they were written on.

A bound is a test's longest wait; a passing test doesn't reach it. The first process of a run measures a fixed piece of work
once, and passes the result to its workers in the environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

VARIABLE = "GIBIL_TEST_PATIENCE"
MOST = 12.0
_USUAL_S = 0.035
"""The duration of `_work` on two quiet virtual cores of 2024."""


def _work() -> float:
    """Return the seconds of a typical piece of work: starting processes, and some arithmetic."""
    began = time.perf_counter()
    for _ in range(2):
        subprocess.run([sys.executable, "-IS", "-c", "sum(range(200_000))"], check=True)
    return time.perf_counter() - began


def calibrate() -> float:
    """Return how many times longer than usual everything takes here, at least 1. Measured once per run."""
    known = os.environ.get(VARIABLE)
    if known is None:
        known = os.environ[VARIABLE] = f"{min(MOST, max(1.0, min(_work() for _ in range(3)) / _USUAL_S)):.2f}"
    return float(known)


def patient(seconds: float) -> float:
    """Return the bound for this computer as it is now; `seconds` is the bound on a quiet computer."""
    busy = os.getloadavg()[0] / (2 * (os.cpu_count() or 1))
    return seconds * min(MOST, calibrate() * max(1.0, busy))
