"""A file's machine settings reach the plan and the spec completely, and their JSON stays flat."""

from __future__ import annotations

import msgspec
import pytest

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.model import MachinePlan, MachineResources, MachineSpec
from gibil_bot.planning.schema import parse_workflow

SAID = MachineResources(
    size="large",
    image="debian-12",
    server_type="cx22",
    location="fsn1",
    ttl_s=1800,
    memory_mb=512,
    disk_mb=2048,
    pids=300,
)


def test_every_key_of_a_file_is_read() -> None:
    text = (
        b"on: {command: x}\nmachine: {size: large, image: debian-12, server-type: cx22, location: fsn1, ttl: 30m, "
        b"memory: 512m, disk: 2g, pids: 300}\ntasks: [{run: make}]\n"
    )
    assert parse_workflow("x.yml", text).machine == SAID


def test_an_unknown_key_of_a_file_is_reported() -> None:
    with pytest.raises(InvalidWorkflow, match="sise"):
        parse_workflow("x.yml", b"on: {command: x}\nmachine: {sise: large}\ntasks: [{run: make}]\n")


def test_only_given_values_override() -> None:
    assert SAID.overridden_by(MachineResources()) == SAID
    assert SAID.overridden_by(MachineResources(size="small", pids=20)) == msgspec.structs.replace(SAID, size="small", pids=20)


def test_plans_and_specs_have_every_value_at_the_top_level_of_their_json() -> None:
    values = SAID.specified()
    assert set(values) == set(MachineResources.__struct_fields__)
    plan = MachinePlan(**values)
    spec = MachineSpec(**plan.specified(), name="m", owner="o", authorized_key="k", host_key="h")
    assert msgspec.to_builtins(plan) == values
    assert {name: msgspec.to_builtins(spec)[name] for name in values} == values


def test_a_plan_has_a_size_and_a_time_to_live() -> None:
    assert (MachinePlan().size, MachinePlan().ttl_s) == ("small", 3600)
