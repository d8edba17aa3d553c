"""Renders what agents did in a run. What they said and did comes from a machine, so it is shown as code or defused."""

from __future__ import annotations

from decimal import Decimal

from gibil_bot.agent_task import AgentResult, AttemptResult, Spent
from gibil_bot.github.markdown import code, comment, sentence
from gibil_bot.humanize import count, dollars
from gibil_bot.model import TaskResult

ANSWER_LIMIT = 6_000


def spent_view(spent: Spent) -> str:
    """Return a sum of calls in words: 12 calls, 34,120 tokens, 0.42 USD."""
    tokens = f"{spent.usage.tokens:,} tokens"
    if spent.usage.is_estimated:
        tokens = f"about {tokens}"
    parts = [count(spent.calls, "call"), tokens, dollars(spent.usd)]
    if spent.refused:
        parts.append(f"{count(spent.refused, 'call')} refused")
    return ", ".join(parts)


def agent_lines(results: list[tuple[str, TaskResult | None]]) -> list[str]:
    """Return for each agent task how it ended, what it used, and the budget that stopped it."""
    blocks = []
    for name, result in results:
        if result is None or (agent := result.agent) is None:
            continue
        who = f"**{code(name)}** ({', '.join(code(word, 60) for word in (agent.engine, agent.model) if word)})"
        rounds = f" in {agent.rounds} rounds" if agent.rounds > 1 else ""
        ended = sentence(agent.ended) if agent.ended else "It is working."
        budget = f" Budget: {sentence(agent.budget, 300)}." if agent.budget else ""
        spent = f" {spent_view(agent.spent)}{rounds}." if agent.model else ""
        blocks.append(f"{who}: {ended}{spent}{budget}")
        if agent.limit and agent.limit not in agent.ended:
            blocks.append(f"> ⛔ {sentence(agent.limit)}")
        blocks += [f"> ℹ️ {sentence(note)}" for note in agent.notes[:20]]
        if agent.attempts:
            blocks.append(_attempts(agent.attempts))
    return blocks


def agent_details(results: list[tuple[str, TaskResult | None]]) -> list[str]:
    """Return what each agent said last, and an account of its work, folded."""
    blocks = []
    for name, result in results:
        agent = result.agent if result is not None else None
        if agent is None:
            continue
        if answer := comment(agent.answer, ANSWER_LIMIT):
            quoted = "\n".join(f"> {line}".rstrip() for line in answer.split("\n"))
            blocks.append(f"#### {code(name)} said\n\n{quoted}")
        if agent.account:
            blocks.append(agent.account)
    return blocks


def _attempts(attempts: tuple[AttemptResult, ...]) -> str:
    rows = ["| | attempt | changes | used | |", "|---|---:|---|---|---|"]
    for attempt in attempts:
        icon = "✅" if attempt.is_chosen else "☑️" if attempt.passed else "❌" if attempt.ended else "⏳"
        changes = f"{count(attempt.files, 'file')}, {count(attempt.lines, 'line')}" if attempt.files else "none"
        rows.append(
            f"| {icon} | {attempt.index + 1} | {changes} | {spent_view(attempt.spent)} "
            f"| {code(attempt.ended or 'at work', 120, in_table=True)} |"
        )
    return "\n".join(rows)


def agent_title(results: list[tuple[str, TaskResult | None]]) -> str:
    """Return what all agents of the run spent, for the title of its check run; empty if it has no agent."""
    agents: list[AgentResult] = [result.agent for _, result in results if result is not None and result.agent is not None]
    return f" ({dollars(sum((agent.spent.usd for agent in agents), Decimal(0)))})" if agents else ""
