"""Both file formats by example: a folder of valid files, and one of invalid files, each with its message."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.model import MachineResources
from gibil_bot.planning.plan import check_files
from gibil_bot.planning.schema import parse_repository_file, parse_workflow
from gibil_bot.planning.workflow import Concurrency, Input

SAMPLES = Path(__file__).parent / "samples"
VALID = [*sorted((SAMPLES / "valid").rglob("*.yml"), key=str), SAMPLES / "valid" / ".gibil.yml"]
BROKEN = sorted((SAMPLES / "broken").rglob("*.yml"), key=str) + sorted((SAMPLES / "broken").rglob(".gibil.yml"), key=str)


def sample(name: str) -> bytes:
    return (SAMPLES / "valid" / name).read_bytes()


@pytest.mark.parametrize("path", dict.fromkeys(VALID), ids=lambda path: path.name)
def test_a_valid_sample_is_accepted(path: Path) -> None:
    assert check_files({path.name: path.read_bytes()}) == ()


@pytest.mark.parametrize("path", dict.fromkeys(BROKEN), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_invalid_sample_is_rejected_with_the_position_and_message_of_its_first_line(path: Path) -> None:
    data = path.read_bytes()
    expected = data.decode().splitlines()[0].removeprefix("# ")
    (problem,) = check_files({path.name: data})
    assert str(problem) == f"{path.name}:{expected}"


def test_every_key_is_read() -> None:
    workflow = parse_workflow(".gibil/workflows/everything.yml@main", sample("everything.yml"))
    assert (workflow.name, workflow.title) == ("everything", "Deploy a preview")
    assert workflow.description == "Puts the pull request where people can look at it.\n"
    assert (workflow.command, workflow.pull_request) == ("preview", ("opened", "synchronize"))
    assert workflow.inputs == (
        Input(name="target", description="where to", type="choice", options=("staging", "demo"), default="staging"),
        Input(name="dry-run", type="boolean", default="true"),
        Input(name="workers", type="number", default="2"),
        Input(name="label", pattern="[a-z]+(-[a-z]+)*", default="plain"),
        Input(name="note"),
    )
    assert workflow.secrets == ("DEPLOY_KEY",)
    assert workflow.timeout_s == 1800
    assert workflow.concurrency == Concurrency(
        group="preview-${{ github.number }}-${{ inputs.target }}", cancel_in_progress=True
    )
    assert workflow.machine == MachineResources(
        size="large",
        image="ubuntu-24.04",
        server_type="cpx31",
        location="fsn1",
        ttl_s=2700,
        memory_mb=2048,
        disk_mb=20480,
        pids=2048,
    )
    assert workflow.comment == "on-failure"
    build, upload, last = workflow.tasks
    assert (build.uses, build.run, build.condition) == (".gibil.yml", "make", "success()")
    assert upload.condition == "${{ !inputs.dry-run && github.base_ref == 'main' }}"
    assert (upload.working_directory, upload.timeout_s, upload.continue_on_error) == ("deploy", 30.0, True)
    assert (upload.shell, upload.env) == ("bash -x {0}", {"REGION": "eu"})
    assert (last.name, last.shell, last.line) == ("echo always", "python", 39)


def test_env_values_keep_their_spelling() -> None:
    workflow = parse_workflow("everything.yml", sample("everything.yml"))
    assert workflow.env == {"PYTHON": "3.10", "VERBOSE": "true", "EMPTY": "", "COUNT": "0x1F"}


def test_the_shorthands_mean_the_same_as_in_actions() -> None:
    shortest = parse_workflow("shortest.yml", sample("shortest.yml"))
    assert (shortest.command, shortest.pull_request) == (None, ("opened", "synchronize", "reopened"))
    assert shortest.tasks[0].name == "make test"
    shorthands = parse_workflow("shorthands.yml", sample("shorthands.yml"))
    assert (shorthands.command, shorthands.pull_request) == ("short", ("reopened",))
    assert shorthands.concurrency == Concurrency(group="one-at-a-time", cancel_in_progress=False)
    assert [task.name for task in shorthands.tasks] == ["one", "two", "one"]
    assert shorthands.tasks[1].env == {"A": "b"}


def test_a_repository_file_is_read() -> None:
    file = parse_repository_file(".gibil.yml@main", sample(".gibil.yml"))
    assert file.runtime == {"python": "3.12", "node": "20"}
    assert file.packages == ("libpq-dev", "g++")
    assert file.env == {"CI": "true", "PORT": "8080"}
    assert [task.name for task in file.tasks] == ["install", "test"]
    assert file.machine == MachineResources(size="small", image="ubuntu-24.04", ttl_s=1800)
    assert parse_repository_file(".gibil.yml", b"runtime: none").runtime == {}


def test_a_hundred_tasks_are_accepted_and_one_more_is_rejected() -> None:
    task = b"  - {run: x}\n"
    assert len(parse_workflow("w.yml", b"on: pull_request\ntasks:\n" + task * 100).tasks) == 100
    with pytest.raises(InvalidWorkflow, match="expected at most 100 entries in this list, got 101"):
        parse_workflow("w.yml", b"on: pull_request\ntasks:\n" + task * 101)


def test_the_column_of_a_condition_is_its_column_in_the_file() -> None:
    with pytest.raises(InvalidWorkflow) as plain:
        parse_workflow("w.yml", b"on: pull_request\ntasks:\n  - run: x\n    if: always() && nope()\n")
    assert (plain.value.line, plain.value.column) == (4, 21)
    with pytest.raises(InvalidWorkflow) as block:
        parse_workflow("w.yml", b"on: pull_request\ntasks:\n  - run: x\n    if: |\n      nope()\n")
    assert (block.value.line, block.value.column) == (4, 9)
