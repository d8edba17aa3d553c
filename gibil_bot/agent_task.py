"""Values of agent tasks: what one is asked to do, what its calls of a model used, and how it ended.

Money is in US dollars as Decimal, tokens are counts that don't overlap.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from msgspec import Struct, field


class AgentPlan(Struct, frozen=True, kw_only=True):
    """The key `agent:` of a task, checked."""

    engine: str
    prompt: str
    """The requester's words, after interpolation."""
    model: str = ""
    """Empty: the engine's default."""
    max_turns: int = 40
    budget_usd: Decimal | None = None
    """Of this task. None: the operator's."""
    max_tokens: int | None = None
    """Of this task: input and output of all calls. None: only the others apply."""
    allow: tuple[str, ...] = ()
    """Hosts (`docs.python.org`), or package registries by name (`npm`, `pypi`, …)."""
    attempts: int = 1
    """How many machines work on it side by side."""
    choose: str = ""
    """A command that an attempt has to pass. Empty: every attempt that ended well counts."""
    until: str = ""
    """Name of an earlier task that is run again after each round; its failing output is part of the next prompt."""
    rounds: int = 1
    """How often the agent works while `until` fails, the first time included."""
    command: str = ""
    """With the engine `command`: the program that reads the prompt on its standard input."""
    output: Literal["changes", "review", "answer"] = "changes"
    """What is expected of it: changed files; comments on lines of the pull request; or its last message."""

    context: tuple[Literal["last-failure"], ...] = ()
    """What else it should know. `last-failure`: the output of the pull request's newest failed run."""

    @property
    def writes(self) -> bool:
        """Whether it is expected to change files."""
        return self.output == "changes"


class Usage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Tokens that a model counted. The counts don't overlap: their sum is what was billed."""

    input: int = 0
    """Neither read from nor written to a cache."""
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0
    """With reasoning."""
    is_estimated: bool = False
    """Some counts are estimates, because a stream was cut before its end."""

    @property
    def tokens(self) -> int:
        return self.input + self.cache_read + self.cache_write_5m + self.cache_write_1h + self.output

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input=self.input + other.input,
            cache_read=self.cache_read + other.cache_read,
            cache_write_5m=self.cache_write_5m + other.cache_write_5m,
            cache_write_1h=self.cache_write_1h + other.cache_write_1h,
            output=self.output + other.output,
            is_estimated=self.is_estimated or other.is_estimated,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            input=self.input - other.input,
            cache_read=self.cache_read - other.cache_read,
            cache_write_5m=self.cache_write_5m - other.cache_write_5m,
            cache_write_1h=self.cache_write_1h - other.cache_write_1h,
            output=self.output - other.output,
            is_estimated=self.is_estimated or other.is_estimated,
        )


class Rates(Struct, frozen=True, kw_only=True):
    """USD per million tokens of each count of `Usage`."""

    input: Decimal
    output: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal


class Price(Struct, frozen=True, kw_only=True):
    """The price of a model. A request with more than `above_tokens` of input costs the rates `above`, all its tokens."""

    base: Rates
    above_tokens: int = 0
    above: Rates | None = None


class Account(Struct, frozen=True, kw_only=True):
    """Who uses up budgets: an agent task, or one of its attempts, for a person in a repository."""

    run_id: str
    task: int
    """Index of the task in its plan."""
    attempt: int = 0
    person: str
    """Login of the requester."""
    repository_id: int
    repository: str
    """owner/name, for reports."""


Scope = Literal["task", "run", "person", "repository"]
"""What a limit is for: a task with all its attempts, a run, a person's day in all repositories, a repository's day (UTC)."""
Measure = Literal["usd", "tokens", "calls", "seconds"]
"""`seconds`: machine time."""


class Limit(Struct, frozen=True, kw_only=True):
    """One budget."""

    scope: Scope
    measure: Measure
    most: Decimal
    remedy: str
    """Who can raise it and how, as in `raise GIBIL_BUDGET_RUN`."""


class Balance(Struct, frozen=True, kw_only=True):
    """How much of a limit is used."""

    limit: Limit
    spent: Decimal
    reserved: Decimal = Decimal(0)
    """By calls in progress. What they don't use is free again soon."""
    needed: Decimal = Decimal(0)
    """By one more call, at its worst."""

    @property
    def left(self) -> Decimal:
        """Negative if the last calls used more than was estimated."""
        return self.limit.most - self.spent - self.reserved

    @property
    def is_exceeded(self) -> bool:
        return self.needed > self.left

    @property
    def is_final(self) -> bool:
        """Whether the call would exceed the limit even if all calls in progress used nothing."""
        return self.spent + self.needed > self.limit.most


class ModelCall(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call of a model through the proxy. Never contains a body."""

    run_id: str
    task: int
    """Index of the task in its plan."""
    started_at: datetime
    protocol: str
    """anthropic | responses | chat | gemini"""
    model: str
    status: int
    """Of the answer that the machine got. 0: the machine left before an answer."""
    usage: Usage = Usage()
    usd: Decimal = Decimal(0)
    first_byte_s: float | None = None
    duration_s: float = 0.0
    retries: int = 0
    """Attempts at the vendor before the first byte that were repeated."""
    request_id: str = ""
    """The vendor's, for its support."""
    refused: str = ""
    """Why the proxy itself rejected the call; empty: it didn't."""
    attempt: int = 0
    """Index of the attempt, of those that work side by side."""


class Spent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sum of calls."""

    usd: Decimal = Decimal(0)
    usage: Usage = field(default_factory=Usage)
    calls: int = 0
    """Answered by the vendor."""
    refused: int = 0
    """Calls that the proxy rejected."""
    seconds: float = 0.0
    """Machine time."""

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            usd=self.usd + other.usd,
            usage=self.usage + other.usage,
            calls=self.calls + other.calls,
            refused=self.refused + other.refused,
            seconds=self.seconds + other.seconds,
        )


class FailedTask(Struct, frozen=True, kw_only=True):
    """A task whose failure the agent should know."""

    name: str
    exit_status: int | None = None
    """None: it was stopped."""
    output: str = ""
    """Its end, redacted."""
    findings: tuple[str, ...] = ()
    """One line each: file, line and message."""


class AgentState(Struct, omit_defaults=True):
    """What another process needs to continue the work of an agent task, or of one of its attempts."""

    saves: int = 0
    """How often it was stored. Of two copies, the one with the higher number is the newer."""
    port: int = 0
    """Of the machine, where the model is."""
    tree: str = ""
    """The workspace before the agent's work."""
    prompted: int = 0
    """How many rounds have their prompt on the machine. It isn't written again while a program reads it."""
    changed: list[int] = field(default_factory=list)
    """How many files were changed after each round that has ended. A later round may be in progress."""
    limit: str = ""
    """The message of the first budget that rejected a call."""
    notes: list[str] = field(default_factory=list)


class AgentResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an agent task ended. Texts are redacted; they come from a machine, so reports escape them."""

    engine: str
    model: str
    spent: Spent = field(default_factory=Spent)
    ended: str = ""
    """One sentence: why it ended."""
    budget: str = ""
    """Its limits in words, such as `2.00 USD (task)`. Empty: it had none."""
    limit: str = ""
    """The budget that stopped it, with its numbers. Empty: none did."""
    account: str = ""
    """A short account of what the agent said, read, ran and changed: a closed, folded block of Markdown, in which all is code.
    """
    answer: str = ""
    """What the agent said last."""
    notes: tuple[str, ...] = ()
    """What a person should know of its work, one sentence each."""
    rounds: int = 1
    """How often it worked, each time with the output of a task that still failed."""
    attempts: tuple[AttemptResult, ...] = ()
    """More than one if attempts worked side by side."""


class AttemptResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of the attempts that worked side by side."""

    index: int
    ended: str
    is_chosen: bool = False
    passed: bool = False
    """It ended well, and its `choose` command passed."""
    files: int = 0
    lines: int = 0
    """Added and removed lines of its changes."""
    spent: Spent = field(default_factory=Spent)
