"""What a report says about the agents of a run. Their words, and the names of what they changed, come from the machine."""

from __future__ import annotations

from decimal import Decimal

import pytest

from gibil_bot.agent_task import AgentPlan, AgentResult, AttemptResult, Spent, Usage
from gibil_bot.humanize import dollars
from gibil_bot.model import Conclusion, TaskPlan, TaskResult, TaskStatus
from tests.unit.test_render import output, report

SPENT = Spent(usd=Decimal("0.42"), usage=Usage(input=30_000, output=4_120), calls=12)


def shown(
    result: AgentResult, status: TaskStatus = TaskStatus.SUCCESS, conclusion: Conclusion | None = Conclusion.SUCCESS
) -> str:
    plan = TaskPlan(name="fix", run="", agent=AgentPlan(engine="claude", prompt="Mend it."))
    task = TaskResult(index=0, machine_attempt=1, name="fix", status=status, agent=result)
    out = output(report(plan={"tasks": (plan,)}, results=(task,), conclusion=conclusion))
    return f"{out['title']}\n{out['summary']}\n{out.get('text') or ''}"


def test_a_report_says_how_the_agent_ended_and_what_it_used() -> None:
    text = shown(AgentResult(engine="claude", model="claude-sonnet-4-5", spent=SPENT, ended="The agent made test pass.",
                             budget="2.00 USD (task)", answer="I changed one line."))  # fmt: skip
    assert "1 task passed (0.42 USD)" in text
    assert "**`fix`** (`claude`, `claude-sonnet-4-5`): The agent made test pass. 12 calls, 34,120 tokens, 0.42 USD." in text
    assert "Budget: 2.00 USD (task)." in text
    assert "> I changed one line." in text


def test_numbers_are_shown_while_the_agent_works() -> None:
    text = shown(AgentResult(engine="codex", model="gpt-5.5", spent=SPENT), TaskStatus.RUNNING, None)
    assert "It is working. 12 calls, 34,120 tokens, 0.42 USD." in text


def test_a_budget_that_stopped_the_agent_is_shown_with_its_numbers() -> None:
    limit = "the budget of this run is 2.00 USD, and 1.97 USD are spent"
    spent = Spent(usd=Decimal("1.97"), usage=Usage(output=5, is_estimated=True), calls=3, refused=1)
    text = shown(AgentResult(engine="claude", model="m", spent=spent, limit=limit, ended="Stopped."), TaskStatus.FAILURE)
    assert f"> ⛔ {limit}" in text
    assert "3 calls, about 5 tokens, 1.97 USD, 1 call refused." in text


def test_attempts_are_compared() -> None:
    attempts = (
        AttemptResult(index=0, ended="It passed.", passed=True, files=2, lines=40, spent=SPENT),
        AttemptResult(index=1, ended="It passed.", passed=True, is_chosen=True, files=1, lines=3, spent=SPENT),
        AttemptResult(index=2, ended="`choose` failed | x"),
        AttemptResult(index=3, ended=""),
    )
    text = shown(AgentResult(engine="claude", model="m", attempts=attempts, ended="Attempt 2 of 3 was used."))
    assert "| ☑️ | 1 | 2 files, 40 lines |" in text
    assert "| ✅ | 2 | 1 file, 3 lines |" in text
    assert "| ❌ | 3 | none |" in text
    assert "| ⏳ | 4 | none | 0 calls, 0 tokens, 0.00 USD | `at work` |" in text


@pytest.mark.parametrize(
    "hostile", ["@ada <img src=x> [x](http://evil.dev)", "![](http://evil.dev/pixel)", "</details>\n\n# Merged"]
)
def test_nothing_that_an_agent_says_acts_on_github(hostile: str) -> None:
    text = shown(AgentResult(engine=hostile, model=hostile, ended=hostile, limit=hostile, answer=hostile, notes=(hostile,)))
    plain = text.replace("`" + " ".join(hostile.split()) + "`", "")
    for active in ("@ada", "<img", "</details>", "](http", "\n# "):
        assert active not in plain


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ("0", "0.00 USD"),
        ("0.005", "0.005 USD"),
        ("0.01", "0.01 USD"),
        ("12.345", "12.34 USD"),
        ("0.00001", "0.00001 USD"),
    ],
)
def test_small_amounts_keep_their_digits(amount: str, expected: str) -> None:
    assert dollars(Decimal(amount)) == expected
