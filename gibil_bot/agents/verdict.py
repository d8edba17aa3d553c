"""Judges an agent task: by the program's end, by what the proxy and git saw, and by what the task asks for.

The exit status alone isn't enough: programs exit with 0 after errors of their model's API, report an error as a success, or
stop before they did anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gibil_bot.agents.transcript import Ended
from gibil_bot.github import markdown
from gibil_bot.humanize import count, duration
from gibil_bot.model import TaskStatus

_QUOTE_LIMIT = 300
_CONNECTION = re.compile(r"connect|network|socket|stream|reset|terminated|timed? ?out|fetch failed|ECONN|EPIPE", re.IGNORECASE)


def verdict(
    ended: Ended,
    *,
    good_calls: int,
    changed_files: int,
    refused_calls: int = 0,
    limit: str = "",
    writes: bool = True,
    has_model: bool = True,
    max_turns: int | None = None,
    problem: str = "",
    vendor_status: int | None = None,
    rejection: str = "",
    lost: str = "",
    timed_out_s: float | None = None,
    silent_s: float | None = None,
    is_cancelled: bool = False,
) -> tuple[TaskStatus, str]:
    """Return how the task ended, and one or two sentences for people: why, and what to do next.

    `good_calls`: answered by the vendor without an error, `refused_calls`: rejected by the proxy; 0 of both if the program has
    no model in the proxy (`has_model` False). `limit`: the budget that stopped it, with its numbers. `problem`,
    `vendor_status`, `rejection`: how the last call ended (proxy.tokens.AccessSummary). `lost`: why the machine's way to the
    proxy was lost for good. `timed_out_s`, `silent_s`: the limit of the task's time, or of time without output, if that ended
    it. `changed_files`: by git.

    The sentences are plain text of one line. They may quote the program, so reports escape them.
    """
    if is_cancelled:
        return TaskStatus.CANCELLED, "The agent was cancelled."
    if limit:
        return TaskStatus.FAILURE, f"The agent was stopped by a budget: {_sentence(limit)}"
    if timed_out_s is not None:
        return (
            TaskStatus.TIMED_OUT,
            f"The agent was stopped after {duration(timed_out_s)}, the task's time limit. "
            "Raise `timeout-minutes`, or ask for less.",
        )
    if silent_s is not None:
        return (
            TaskStatus.TIMED_OUT,
            f"The agent was stopped because its program printed nothing for {duration(silent_s)}: "
            "it hung, or its model didn't answer. Run it again.",
        )
    calls = _Calls(
        none=has_model and not good_calls, refused=refused_calls, problem=problem, status=vendor_status, rejection=rejection
    )
    if not ended.is_success and lost:
        return TaskStatus.FAILURE, f"The agent was stopped because it lost its way to the model{_quote(lost)}. Run it again."
    if not ended.is_success:
        return TaskStatus.FAILURE, _failure(ended, calls, max_turns)
    if calls.none:
        return TaskStatus.FAILURE, "The agent's program reports success, but " + _no_good_call(calls)
    turns = f" after {count(ended.turns, 'turn')}" if ended.turns else ""
    if writes and not changed_files:
        return (
            TaskStatus.FAILURE,
            f"The agent ended{turns} without changing a file. Its last message may explain why; "
            "say more precisely what to change.",
        )
    changed = f" and changed {count(changed_files, 'file')}" if writes else ""
    return TaskStatus.SUCCESS, f"The agent ended{turns}{changed}."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """What the proxy knows of the task's calls."""

    none: bool
    """No call was answered, but it has a model."""
    refused: int
    problem: str
    status: int | None
    rejection: str

    @property
    def reason(self) -> str:
        """Return why the last one failed, and what to do, as the rest of a sentence; empty if it didn't."""
        if self.status is not None:
            return _vendor(self.status, self.problem)
        if self.problem:
            return f"{_sentence(self.problem)} Run it again later."
        return _rejected(self.refused, self.rejection) if self.rejection else ""

    @property
    def likely_reason(self) -> str:
        """Like `reason`, or that earlier calls were rejected."""
        return self.reason or (_rejected(self.refused, "") if self.refused else "")


def _failure(ended: Ended, calls: _Calls, max_turns: int | None) -> str:
    quote = _quote(ended.text)
    match ended.reason:
        case "max_turns":
            number = f" of {count(max_turns, 'turn')}" if max_turns else " of turns"
            return f"The agent reached its limit{number} before it was done. Raise `max-turns`, or ask for less."
        case "budget":
            return f"The agent's program stopped at its own limit of money{quote}. Raise `budget`, or ask for less."
        case "loop":
            return (
                "The agent repeated the same call of a tool, so its program stopped it. Say more precisely what to do, or use "
                "another model."
            )
        case "misconfigured":
            return (
                f"The agent's program isn't set up correctly{quote}. An operator has to check the engine: "
                "`gibil engines` lists what is needed."
            )
        case "killed" if not calls.none:
            return (
                f"The agent's program was killed before its end{quote}. Often the machine's memory is too small: "
                "choose a larger machine, or run it again."
            )
        case "killed":
            return f"The agent's program was killed before it had an answer of its model{quote}. Run it again."
        case "model_error":
            return _model_error(ended, quote, calls)
        case "no_end" if calls.none:
            return f"The agent's program ended too early{quote}, and " + _no_good_call(calls)
        case "no_end" if not calls.reason:
            return f"The agent's program ended without its last event, so it may have crashed{quote}. Run it again."
    if calls.none:
        return f"The agent's program failed{quote}, and " + _no_good_call(calls)
    if calls.reason:
        return f"The agent stopped because {calls.reason}"
    return f"The agent's program failed{quote}. The log has its last steps."


def _model_error(ended: Ended, quote: str, calls: _Calls) -> str:
    if calls.likely_reason:
        return f"The agent stopped because {calls.likely_reason}"
    if ended.status is not None:  # only the machine says so
        return f"The agent's program reports status {ended.status} of its model's API{quote}. Run it again later."
    if calls.none:
        return f"The agent's program couldn't reach its model{quote}. {_NO_WAY}"
    if _CONNECTION.search(ended.text[: 16 << 10]):
        return f"The agent's connection to its model was interrupted{quote}. Run it again."
    return f"The agent's program gave up because of an error of its model's API{quote}. Run it again later."


def _no_good_call(calls: _Calls) -> str:
    return calls.likely_reason or f"it never reached its model. {_NO_WAY}"


_NO_WAY = (
    "The connection between the bot and the machine may have been lost: run it again, and if it lasts, "
    "an operator has to check the engine's settings."
)


def _rejected(calls: int, why: str) -> str:
    reason = f": {_sentence(why)}" if why else "; the record of calls has the reasons."
    return (
        f"the bot rejected {count(calls, 'call')} of the model{reason} "
        "Check the task's model, and the tools that its program asks for."
    )


def _vendor(status: int, problem: str) -> str:
    """Return what a status of the vendor's API means, and what to do."""
    if status in (401, 403):
        return (
            f"the model's vendor rejected the bot's key (status {status}). "
            "An operator has to check this vendor's setting GIBIL_MODEL_KEY_…"
        )
    if status == 402:
        return "the model's vendor asks for a payment (status 402). An operator has to check the account's credit."
    if status == 404:
        return "the model's vendor doesn't know the model (status 404). Check `model`."
    if status == 429:
        return "the model's vendor limits the rate of calls (status 429), and waiting didn't help. Run it again later."
    if status >= 500:
        return f"the model's vendor had an error (status {status}), and repeating the call didn't help. Run it again later."
    said = (
        f"the model's vendor rejected the request ({markdown.line(problem, _QUOTE_LIMIT)})"
        if problem
        else (f"the model's vendor rejected the request (status {status})")
    )
    return f"{said}. Check `model`; the engine's version may be too old for it."


def _quote(text: str) -> str:
    shown = markdown.line(text[: 16 << 10], _QUOTE_LIMIT).replace('"', "'").rstrip(".")
    return f': "{shown}"' if shown else ""


def _sentence(text: str) -> str:
    shown = markdown.line(text, 500)
    return shown if shown.endswith(".") else f"{shown}."
