"""How soon the command line responds: `gibil --help` against `nox --help`, each in a Python of the same version."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.comparison import Comparison, LeftOut, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.servers import bare_environment

CALLS = 15


def help_text(context: Context) -> list[Comparison]:
    """Wall-clock time of the whole process."""
    gibil = Path(sys.executable).with_name("gibil")
    if not gibil.exists():
        raise LeftOut(f"{gibil} does not exist: install the package into the Python that runs this")
    nox = context.peers.nox()
    environment = bare_environment(context.folder("home"))
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(CALLS + 2):
        for program, samples in ((gibil, ours), (nox, theirs)):
            begun = time.perf_counter()
            subprocess.run([program, "--help"], env=environment, check=True, stdout=subprocess.DEVNULL)
            if number >= 2:
                samples.append((time.perf_counter() - begun) * 1000)
    return [Comparison(what="`--help`", peer="nox", unit="ms", ours=ours, peers=theirs, aim=at_most(0.5))]
