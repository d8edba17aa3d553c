"""What /proc shows of a machine's share of its host: pure functions."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.providers.local.proc_views import cpuinfo, meminfo, stat

MEMINFO = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
STAT = """\
cpu  30 3 6 900 0 0 0 0 0 0
cpu0 10 1 2 300 0 0 0 0 0 0
cpu1 10 1 2 300 0 0 0 0 0 0
cpu10 10 1 2 300 0 0 0 0 0 0
intr 5 0 1
ctxt 77
btime 1700000000
"""
CPUINFO = "processor\t: 0\nmodel name\t: A\n\nprocessor\t: 1\nmodel name\t: B\n\nprocessor\t: 10\nmodel name\t: C\n\n"


def fields(text: str) -> dict[str, int]:
    return {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()}


def test_memory_is_that_of_the_machine() -> None:
    shown = fields(meminfo(MEMINFO, 2_000_000, 700_000, 150_000, {"Cached": 160_000, "Shmem": 10_000}))
    assert (shown["MemTotal"], shown["MemFree"], shown["MemAvailable"]) == (2_000_000, 1_300_000, 1_450_000)
    assert (shown["Cached"], shown["Shmem"], shown["Buffers"], shown["SwapTotal"]) == (160_000, 10_000, 0, 0)
    hosts = fields(MEMINFO)
    assert list(shown) == list(hosts), "programs expect the fields of this kernel"
    assert shown["Hugepagesize"] == hosts["Hugepagesize"]


@pytest.mark.parametrize("used", [0, 1, 1_999_999, 2_000_000, 2_100_000, 10**12])
def test_the_file_never_changes_its_length_and_nothing_exceeds_the_limit(used: int) -> None:
    text = meminfo(MEMINFO, 2_000_000, used, used // 2, {"Cached": 10**13})
    assert len(text) == len(meminfo(MEMINFO, 2_000_000, 0, 0, {})), "a reader during a write would see a part of it"
    shown = fields(text)
    assert 0 <= shown["MemFree"] <= shown["MemAvailable"] <= 2_000_000
    assert shown["Cached"] == 2_000_000


def test_lines_have_the_kernels_format() -> None:
    total = fields(MEMINFO)["MemTotal"]
    text = meminfo(MEMINFO, total, 0, 0, fields(MEMINFO))
    assert text.splitlines()[0] == MEMINFO.splitlines()[0]
    assert [line.index(":") for line in text.splitlines()] == [line.index(":") for line in MEMINFO.splitlines()]
    wide = 10**9
    assert len(meminfo(MEMINFO, wide, 0, 0, {})) == len(meminfo(MEMINFO, wide, wide, 0, {}))


def test_processor_times_are_those_of_the_machines_processors() -> None:
    text = stat(STAT, {1, 10})
    assert text.splitlines()[:3] == ["cpu  20 2 4 600 0 0 0 0 0 0", "cpu1 10 1 2 300 0 0 0 0 0 0", STAT.splitlines()[3]]
    assert text.splitlines()[3:] == STAT.splitlines()[4:]
    assert text.endswith("\n")
    assert stat(STAT, {0, 1, 10}) == STAT


def test_processors_are_described_as_far_as_the_machine_has_them() -> None:
    assert cpuinfo(CPUINFO, {1, 10}) == CPUINFO[CPUINFO.index("processor\t: 1\n") :]
    assert cpuinfo(CPUINFO, {0, 1, 10}) == CPUINFO
    arm = CPUINFO + "Hardware\t: Board\n"
    assert cpuinfo(arm, {0}) == "processor\t: 0\nmodel name\t: A\n\nHardware\t: Board\n"
