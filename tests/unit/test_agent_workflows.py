"""The shipped workflows of agents, planned from comments."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gibil_bot.cli.plan import plan_text
from gibil_bot.github.commands import parse
from gibil_bot.model import Plan
from gibil_bot.planning.agents import agent_support
from gibil_bot.planning.expressions import evaluate
from gibil_bot.planning.plan import Unsupported, catalogue, for_command, free_text_words
from gibil_bot.workflows_dir import read_workflows, shipped_workflows
from tests.doubles.facts import facts

KNOWN = catalogue(read_workflows(shipped_workflows()), {}, base_ref="main")


def planned(body: str) -> Plan:
    (command,) = parse(body, free_text_words(KNOWN))
    (plan,) = for_command(KNOWN, command, facts())
    return plan


def test_every_shipped_workflow_is_valid_and_the_agents_take_text() -> None:
    assert KNOWN.problems == ()
    assert free_text_words(KNOWN) == {"fix", "do", "review", "explain"}


@pytest.mark.parametrize(
    ("body", "after_success", "after_failure"), [("/gibil fix", False, True), ("/gibil fix the typo", True, True)]
)
def test_fix_works_on_failing_tests_or_on_what_was_asked_for(body: str, after_success: bool, after_failure: bool) -> None:
    plan = planned(body)
    test, fix = plan.tasks
    assert (test.detect, test.part_of) == ("test", "test")
    works = {
        status: evaluate(fix.condition, status=status, inputs=plan.inputs, github=plan.github)
        for status in ("success", "failure", "cancelled")
    }
    assert works == {"success": after_success, "failure": after_failure, "cancelled": False}
    assert fix.agent is not None
    assert (fix.agent.until, fix.agent.rounds, fix.agent.writes) == ("test", 3, True)


def test_fix_repairs_the_tests_of_a_repositorys_own_file() -> None:
    own = catalogue(
        read_workflows(shipped_workflows()), {".gibil.yml": b"tasks: [{name: a, run: x}, {name: b, run: y}]"}, base_ref="main"
    )
    (plan,) = for_command(own, parse("/gibil fix", free_text_words(own))[0], facts())
    assert [(task.name, task.part_of) for task in plan.tasks] == [("a", "test"), ("b", "test"), ("fix", "")]


def test_the_commits_name_the_request() -> None:
    def message(body: str) -> str:
        commit = planned(body).commit
        assert commit is not None
        assert commit.to == "head"
        return commit.message

    assert message("/gibil fix") == "Repair the failing tests"
    assert message("/gibil fix the off-by-one in a.py") == "Repair what was asked for\n\nthe off-by-one in a.py"
    assert message("/gibil do rename a\nto b") == "Change what was asked for\n\nrename a\nto b"


@pytest.mark.parametrize(("word", "output"), [("review", "review"), ("explain", "answer")])
def test_review_and_explain_change_nothing(word: str, output: str) -> None:
    plan = planned(f"/gibil {word} the error handling")
    agent = plan.tasks[-1].agent
    assert plan.commit is None
    assert agent is not None
    assert (agent.output, agent.allow) == (output, ())
    assert agent.prompt.endswith("\n\nthe error handling")


@pytest.mark.parametrize("word", ["fix", "do x", "review", "explain"])
def test_without_a_models_key_each_command_is_answered_and_test_still_runs(word: str) -> None:
    event = replace(facts(), agents=agent_support({"claude": "anthropic", "command": ""}, ()))
    for command in parse(f"/gibil {word}", free_text_words(KNOWN)):
        with pytest.raises(Unsupported, match="can't run here: it needs an agent, and this bot has no key"):
            for_command(KNOWN, command, event)
    assert len(for_command(KNOWN, parse("/gibil test")[0], event)) == 1


def test_the_printed_plan_shows_who_works_and_the_limits() -> None:
    lines = plan_text(planned("/gibil fix the typo\nin README.md")).splitlines()
    assert "  inputs       what=the typo …" in lines
    (agent,) = (line.strip() for line in lines if "an agent" in line)
    assert agent.startswith("an agent: claude; 60 turns; at most 3 rounds until test passes; may reach npm, pypi, ")
    assert "may reach only the model" in plan_text(planned("/gibil review"))
