"""A task that reaches a limit of its machine: the log and the report name it once, with the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.model import MachinePlan, TaskPlan
from gibil_bot.runs.memory import MemoryRuns
from tests.doubles.workshop import workshop

pytestmark = pytest.mark.usefixtures("local_machines")

_PYTHON = "python3 - <<'END'\n{}\nEND\n"
# name: script, what the daemon or the output says, the key of the remedy
LIMITS = {
    "threads": (
        _PYTHON.format(
            "import threading, time\ndone = threading.Event()\n"
            "try:\n    for _ in range(200): threading.Thread(target=done.wait).start()\nfinally: done.set()"
        ),
        "no further process",
        "{pids: …}",
    ),
    "files": (
        _PYTHON.format("import os\nheld = [os.open('/dev/null', 0) for _ in range(5000)]"),
        "it printed 'Too many open files'",
        "ulimit -n",
    ),
    "memory": (
        _PYTHON.format("import time\nheld = [b'x' * 2**20 for _ in range(900)]\ntime.sleep(60)"),
        "256 MB of memory",
        "{memory: …}",
    ),
    "shared memory": (
        "head -c 100M /dev/zero >/dev/shm/x",
        "/dev/shm of 64 MB is full",
        "{memory: …}",
    ),
    "disk": (
        "rm /dev/shm/x; head -c 200M /dev/zero >x && head -c 200M /dev/zero >y && sleep 60; exit 1",
        "the disk of 300 MB is full",
        "{disk: …}",
    ),
}


async def test_each_limit_is_reported_with_its_remedy(tmp_path: Path) -> None:
    async with workshop(tmp_path / "w") as place:
        new = place.new()
        tasks = tuple(TaskPlan(name=name, run=script, condition="always()") for name, (script, *_) in LIMITS.items())
        machine = MachinePlan(memory_mb=256, pids=100, disk_mb=300)
        new = replace(new, plan=replace(new.plan, tasks=tasks, machine=machine, detected=None))
        runs = MemoryRuns()
        runs.queue(new)
        ended = await place.work(runs, new)
        assert [result.name for result in ended.results] == list(LIMITS), ended.run.note
        for result, (_, what, remedy) in zip(ended.results, LIMITS.values(), strict=True):
            log = (place.tools.logs / new.id / f"{result.index}.log").read_text()
            assert what in result.detail, (result.detail, log)
            assert remedy in result.detail
            (line,) = [line for line in log.splitlines() if line.startswith("gibil: ") and what in line]
            assert remedy in line
