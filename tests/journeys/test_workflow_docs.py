"""Every example on the reference page of the language is accepted, and run where the page says so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from gibil_bot.model import Plan
from gibil_bot.planning.expressions import GITHUB_NAMES
from gibil_bot.planning.file_schema import AGENT, RESERVED_COMMANDS, TASK, WORKFLOW
from gibil_bot.planning.plan import catalogue, check_files, for_workflow
from gibil_bot.planning.schema_types import Record
from gibil_bot.scripts.task_script import task_files
from gibil_bot.workflows_dir import read_workflows, shipped_workflows
from tests.doubles.facts import facts
from tests.doubles.taskshell import run_plan

PAGE = (shipped_workflows() / "README.md").read_text()
EXAMPLES: list[str] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def name_of(example: str) -> str:
    return ".gibil.yml" if example.startswith("# .gibil.yml") else "example.yml"


def runs(example: str) -> bool:
    return re.match(r"# (\.gibil\.yml, )?runs\n", example) is not None


def plan_of(example: str) -> Plan:
    operator = read_workflows(shipped_workflows())
    if name_of(example) == ".gibil.yml":
        return for_workflow(catalogue(operator, {".gibil.yml": example.encode()}, base_ref="main"), "test", {}, facts())
    known = catalogue(operator, {".gibil/workflows/example.yml": example.encode()}, base_ref="main")
    return for_workflow(known, "example", {}, facts())


def test_the_page_has_examples_of_both_files_and_some_run() -> None:
    assert {name_of(example) for example in EXAMPLES} == {"example.yml", ".gibil.yml"}
    assert len([example for example in EXAMPLES if runs(example)]) >= 4


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_accepted(example: str) -> None:
    assert check_files({name_of(example): example.encode()}) == ()


@pytest.mark.parametrize("example", [example for example in EXAMPLES if runs(example)])
def test_an_example_marked_to_run_succeeds(example: str, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = run_plan(plan_of(example), project, tmp_path, environ={"PATH": path, "HOME": str(tmp_path)})
    bad = [task for task in done if task.exit_status not in (0, None) and "continue-on-error" not in example]
    assert bad == []
    assert any(task.exit_status == 0 for task in done)


def test_the_large_example_does_what_its_comments_say(tmp_path: Path) -> None:
    (example,) = [example for example in EXAMPLES if "name: Preview" in example]
    project = tmp_path / "project"
    project.mkdir()
    done = run_plan(plan_of(example), project, tmp_path)
    assert [(task.name, task.exit_status) for task in done] == [("build", 0), ("upload", None), ("say", 0), ("tidy up", 0)]
    assert Path(task_files(2, str(tmp_path / "files")).summary).read_text() == "hello from demo\n"
    assert not (project / "out").exists()


def test_every_key_and_every_word_of_the_language_is_on_the_page() -> None:
    agent = AGENT.kinds["mapping"]
    assert isinstance(agent, Record)
    keys = [known.name for record in (WORKFLOW, TASK, agent) for known in record.fields if known.rejection is None]
    for word in (*keys, *GITHUB_NAMES, *RESERVED_COMMANDS):
        assert f"`{word}`" in PAGE, word
