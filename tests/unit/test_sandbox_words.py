"""Arguments about machines are validated before a machine is created."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.caps import Caps
from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.machines import creation_journal, validation
from gibil_bot.machines.request import CreateRequest, resolve
from gibil_bot.machines.validation import check_room
from gibil_bot.model import MachineResources


@pytest.mark.parametrize("name", ["a", "agent-task", "1", "a" * 63])
def test_rfc_1123_labels_are_names(name: str) -> None:
    assert validation.check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a b", "a" * 64, "ä", "a\n", "../x", "٣"])
def test_other_names_are_rejected(name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid machine name"):
        validation.check_name(name)


@given(st.text(max_size=100))
def test_a_name_derived_from_a_branch_is_valid(branch: str) -> None:
    validation.check_name(validation.name_of_branch(branch))


def test_generated_names_are_valid_and_differ() -> None:
    names = {validation.random_name() for _ in range(200)}
    assert len(names) > 190
    for name in names:
        validation.fleet_names(name, 20)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20", 1200), ("90s", 90), ("20m", 1200), ("2h", 7200), ("7d", 604800), ("1w", 604800), ("1mo", 2592000)],
)
def test_a_time_to_live_has_units_and_a_bare_number_is_minutes(text: str, seconds: int) -> None:
    assert validation.ttl_seconds(text, 10**9) == seconds


@pytest.mark.parametrize(
    ("text", "why"), [("59s", "at least a minute"), ("0", "at least"), ("25h", "at most 24h"), ("x", "not a")]
)
def test_a_time_to_live_must_be_within_its_bounds(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        validation.ttl_seconds(text, 86400)


def test_environment_entries_are_names_and_any_text() -> None:
    assert validation.environment(["A=1", "B=x=y", "C=", "a_1=\n"]) == {"A": "1", "B": "x=y", "C": "", "a_1": "\n"}


@pytest.mark.parametrize(
    "entry", ["A", "=x", "1A=x", "A-B=x", "GIBIL_X=secretvalue", "RUNNER_X=y", "A=\0secretvalue", "A=" + "x" * 130000]
)
def test_invalid_entries_are_rejected_without_showing_their_value(entry: str) -> None:
    with pytest.raises(UsageError) as caught:
        validation.environment([entry])
    assert "secretvalue" not in caught.value.message
    assert len(caught.value.message) < 200


def test_options_override_the_file_which_overrides_the_default(tmp_path: Path) -> None:
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_MAX_TTL": "2h"})
    resources = MachineResources(size="large", ttl_s=1800, memory_mb=512, image="debian-12")
    asked = resolve(CreateRequest(name="n", size="medium", ttl="10"), resources, settings)
    assert (asked.name, asked.ttl_s, asked.plan.size, asked.plan.memory_mb, asked.plan.image) == (
        "n",
        600,
        "medium",
        512,
        "debian-12",
    )
    assert resolve(CreateRequest(), resources, settings).ttl_s == 1800
    assert resolve(CreateRequest(), MachineResources(), settings).ttl_s == 3600
    capped = resolve(CreateRequest(), MachineResources(ttl_s=86400), settings)
    assert capped.ttl_s == 7200
    assert ".gibil.yml" in capped.notes[0]


def test_neither_file_nor_options_can_exceed_the_caps(tmp_path: Path) -> None:
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    caps = Caps(memory_mb=3000, disk_mb=9000, pids=100, server_types=("cx23",), sizes_mb={"small": 2048, "large": 8192})
    resources = MachineResources(memory_mb=900 * 1024, disk_mb=10**6, pids=400000, server_type="ccx63")
    limited = resolve(CreateRequest(), resources, settings, caps)
    plan = limited.plan
    assert (plan.memory_mb, plan.disk_mb, plan.pids, plan.server_type) == (3000, 9000, 100, None)
    assert len(limited.notes) == 4
    assert resolve(CreateRequest(size="large"), MachineResources(), settings, caps).plan.memory_mb == 3000
    with pytest.raises(UsageError, match="GIBIL_SERVER_TYPES allows cx23"):
        resolve(CreateRequest(server_type="ccx63"), MachineResources(), settings, caps)


def test_a_requests_environment_is_in_no_repr() -> None:
    assert "hunter2" not in repr(CreateRequest(env={"PASSWORD": "hunter2"}))


@pytest.mark.parametrize(
    ("existing", "new", "most", "sentence"),
    [
        (set(), ["a"], 1, None),
        ({"a"}, ["a"], 1, None),  # the same machine, which NAME_TAKEN reports
        ({"a"}, ["b"], 1, "1 machine exists, and one more would exceed GIBIL_MAX_MACHINES=1: destroy some first"),
        ({"a", "b"}, ["c", "d"], 3, "2 machines exist, and 2 more would exceed GIBIL_MAX_MACHINES=3: destroy some first"),
        (set(), ["a", "b", "c"], 2, "no machines exist, and 3 more would exceed GIBIL_MAX_MACHINES=2: create at most 2"),
    ],
)
def test_the_machine_limit_is_enforced(existing: set[str], new: list[str], most: int, sentence: str | None) -> None:
    if sentence is None:
        check_room(existing, new, most)
        return
    with pytest.raises(UsageError) as caught:
        check_room(existing, new, most)
    assert caught.value.message.startswith(sentence)
    assert caught.value.code == "MACHINE_LIMIT"


def test_names_are_sorted_with_numbers_in_numeric_order() -> None:
    names = ["agent-10", "agent-3", "agent-4", "b", "agent", "2", "10", "agent-3-b", "agent-003"]
    assert sorted(names, key=validation.natural) == [
        "2", "10", "agent", "agent-3", "agent-003", "agent-3-b", "agent-4", "agent-10", "b"
    ]  # fmt: skip


def test_concurrent_creations_each_see_the_earlier_ones(tmp_path: Path) -> None:
    begun = [
        creation_journal.CreationRecord(tmp_path, provider="local", name=f"m-{n}", made_by="tests", ttl_s=60) for n in range(16)
    ]
    with ThreadPoolExecutor(16) as pool:
        seen = list(pool.map(lambda making: creation_journal.begin_all(tmp_path, [making]), begun))
    assert sorted(len(others) for others in seen) == list(range(16)), "no two of them saw the same machines"
    for making in begun:
        making.finish()
    assert creation_journal.begin_all(tmp_path, []) == []
