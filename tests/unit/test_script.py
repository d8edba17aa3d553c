"""The environment of a task, and the values that are accepted from the files that it writes."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.model import Plan, Run, RunState, Source, TaskPlan
from gibil_bot.scripts.task_script import (
    InvalidTaskFile,
    parse_env_file,
    parse_path_file,
    prepare_script,
    task_environment,
    task_files,
)
from tests.doubles.facts import SHA, facts
from tests.doubles.patience import patient

TASK = TaskPlan(name="t", run="true", env={"A": "task", "GITHUB_SHA": "forged"})


def run(**of_plan: object) -> Run:
    known = facts()
    plan = Plan(workflow="x", title="The X", path="workflows/x.yml", tasks=(TASK,), **of_plan)  # type: ignore[arg-type]
    source = Source(
        installation_id=1,
        repository=known.repository,
        pull_request=known.pull_request,
        sha=SHA,
        trust=known.trust,
        actor=known.actor,
    )
    return Run(
        id="0123456789abcdef", seq=1, delivery_guid="g", source=source, plan=plan, state=RunState.RUNNING,
        queued_at=datetime.now(UTC),
    )  # fmt: skip


def test_a_task_gets_the_variables_of_github_and_of_gibil() -> None:
    found = task_environment(run(github={"event_name": "issue_comment"}), TASK, {}, task_files(3), {})
    assert found == {
        "A": "task",
        "CI": "true",
        "TERM": "dumb",
        "GIBIL_ACTOR": "Ada",
        "GIBIL_PR_AUTHOR": "grace",
        "GIBIL_PR_BASE_REF": "main",
        "GIBIL_PR_BASE_SHA": "b" * 40,
        "GIBIL_PR_DRAFT": "false",
        "GIBIL_PR_HEAD_REF": "faster",
        "GIBIL_PR_HEAD_REPOSITORY": "grace/engine",
        "GIBIL_PR_HEAD_SHA": SHA,
        "GIBIL_PR_NUMBER": "7",
        "GIBIL_PR_TITLE": 'Faster: `rm -rf /` "$(id)"',
        "GIBIL_RUN_ID": "0123456789abcdef",
        "GIBIL_NEUTRAL": "/root/.gibil/files/3/neutral",
        "GIBIL_TRUST": "trusted",
        "GIBIL_WORKFLOW": "x",
        "GITHUB_ACTOR": "Ada",
        "GITHUB_BASE_REF": "main",
        "GITHUB_ENV": "/root/.gibil/files/3/env",
        "GITHUB_EVENT_NAME": "issue_comment",
        "GITHUB_HEAD_REF": "faster",
        "GITHUB_OUTPUT": "/root/.gibil/files/3/output",
        "GITHUB_PATH": "/root/.gibil/files/3/path",
        "GITHUB_REF": "refs/pull/7/head",
        "GITHUB_REF_NAME": "7/head",
        "GITHUB_REPOSITORY": "ada/engine",
        "GITHUB_REPOSITORY_OWNER": "ada",
        "GITHUB_RUN_ID": "0123456789abcdef",
        "GITHUB_SHA": SHA,
        "GITHUB_STEP_SUMMARY": "/root/.gibil/files/3/summary",
        "GITHUB_WORKFLOW": "The X",
        "GITHUB_WORKSPACE": "/root/project",
        "RUNNER_OS": "Linux",
        "RUNNER_TEMP": "/root/.gibil/files",
    }


def test_later_values_win_and_gibils_own_names_cannot_be_set() -> None:
    of_plan = run(env={"A": "workflow", "B": "workflow", "C": "workflow", "KEY": "workflow", "CI": "false"}, secrets=("KEY",))
    extra = {"A": "extra", "B": "extra", "KEY": "extra", "GIBIL_TRUST": "trusted, honestly"}
    found = task_environment(of_plan, TASK, {"KEY": "secret", "UNASKED": "x"}, task_files(0), extra)
    assert {name: found[name] for name in ("A", "B", "C", "KEY", "CI")} == {
        "A": "task",
        "B": "extra",
        "C": "workflow",
        "KEY": "secret",
        "CI": "false",
    }
    assert found["GITHUB_SHA"] == SHA
    assert found["GIBIL_TRUST"] == "trusted"
    assert "UNASKED" not in found


def test_inputs_are_variables_without_nul_characters() -> None:
    found = task_environment(run(inputs={"dry-run": "tr\0ue"}), TASK, {}, task_files(0), {})
    assert found["GIBIL_INPUT_DRY_RUN"] == "true"


def test_added_folders_precede_path() -> None:
    found = task_environment(run(), TASK, {}, task_files(0), {}, paths=["/b", "/a"])
    assert found["PATH"].startswith("/b:/a:/usr/local/sbin:")
    own = task_environment(run(env={"PATH": "/own"}), TASK, {}, task_files(0), {}, paths=["/a"])
    assert own["PATH"] == "/a:/own"


def test_the_files_of_tasks_are_created_and_not_emptied(tmp_path: Path) -> None:
    script = prepare_script(2, str(tmp_path))
    subprocess.run(["sh", "-c", script], check=True, timeout=patient(10))
    Path(task_files(1, str(tmp_path)).env).write_text("A=b\n")
    subprocess.run(["sh", "-c", script], check=True, timeout=patient(10))
    assert Path(task_files(0, str(tmp_path)).summary).read_text() == ""
    assert parse_env_file(Path(task_files(1, str(tmp_path)).env).read_bytes()) == {"A": "b"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {}),
        (b"\n\n", {}),
        (b"A=b", {"A": "b"}),
        (b"A=b=c \r\nB=\n", {"A": "b=c ", "B": ""}),
        (b"A=x<<y\n", {"A": "x<<y"}),
        (b"A=1\nA=2\n", {"A": "2"}),
        (b"A<<END\none\ntwo=2\n\nEND\nB=x\n", {"A": "one\ntwo=2\n", "B": "x"}),
        (b"A<<END\nEND\n", {"A": ""}),
        ("A=ü\n".encode(), {"A": "ü"}),
    ],
)
def test_values_in_github_env_are_read(data: bytes, expected: dict[str, str]) -> None:
    assert parse_env_file(data) == expected


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"A=b\nnonsense\n", "line 2: expected NAME=value or NAME<<WORD"),
        (b"A<<END\nx\n", "line 1: the line that ends the value is missing"),
        (b"A<<\nx\n", "line 1: << must be followed by the word that ends the value"),
        (b"1A=b\n", "line 1: the line must begin with a name of letters, digits and _"),
        (b"A-B=c\n", "line 1: the line must begin with a name"),
        (b"=x\n", "line 1: the line must begin with a name"),
        (b"x=y\nGITHUB_TOKEN=x\n", "line 2: a task can't set 'GITHUB_TOKEN'"),
        (b"gibil_trust=x\n", "line 1: a task can't set 'gibil_trust'"),
        (b"NODE_OPTIONS=--require=x\n", "line 1: a task can't set 'NODE_OPTIONS'"),
        (b"A=b\n\nB=\0\n", "line 3: contains a NUL byte"),
        (b"A=" + b"x" * 130000, "line 1: the value of 'A' is larger than 120 KiB"),
        (b"".join(b"A%d=x\n" % n for n in range(1001)), "line 1001: more than 1000 names"),
    ],
)
def test_invalid_values_are_reported_with_their_line(data: bytes, problem: str) -> None:
    with pytest.raises(InvalidTaskFile, match="GITHUB_ENV, ") as caught:
        parse_env_file(data)
    assert problem in caught.value.message
    assert isinstance(caught.value, ValueError)


def test_folders_for_path_are_absolute_and_one_per_line() -> None:
    assert parse_path_file(b"/a\n\n /b \r\n") == ("/a", "/b")
    for data in (b"bin\n", b"/a:/b\n", b"/a\0\n", b"\n".join([b"/a"] * 101)):
        with pytest.raises(InvalidTaskFile, match="GITHUB_PATH"):
            parse_path_file(data)


@given(st.one_of(st.binary(max_size=200), st.text(alphabet="AB=<\n\rE _0", max_size=80).map(str.encode)))
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    for parse in (parse_env_file, parse_path_file):
        try:
            found = parse(data)
        except InvalidTaskFile:
            continue
        assert all("\0" not in part for part in found)
