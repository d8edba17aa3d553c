"""The rules of ports.Ledger that all its implementations share: which sums a call counts in, and what a limit compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gibil_bot.agent_task import Account, Balance, Limit, Measure, ModelCall, Scope, Spent, Usage

RESERVED_S = 3600.0
"""After this time a reservation is booked at its estimate, because its process is gone. No call of a model takes that long."""
MOST_CALLS = 10_000
"""Maximum number of calls that `calls` returns."""
MOST_REFUSED = 100
"""How many rejected calls of a task are stored. The rest are only counted: a machine can make any number of them."""
NANOS = 1_000_000_000

SumScope = Scope | Literal["attempt"]


class SumKey(Struct, frozen=True):
    """Names one sum. `day` is YYYY-MM-DD in UTC, empty for sums of a run and its parts."""

    scope: SumScope
    key: str
    day: str = ""


class Amounts(Struct, frozen=True, kw_only=True):
    """What is added to sums. Amounts of money are billionths of a US dollar; negative values take something back."""

    usd: int = 0
    usage: Usage = Usage()
    estimated: int = 0
    calls: int = 0
    refused: int = 0
    milliseconds: int = 0
    reserved_usd: int = 0
    reserved_tokens: int = 0
    reserved_calls: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(**{
            name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__
        })  # fmt: skip

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(**{
            name: getattr(self, name) - getattr(other, name) for name in self.__struct_fields__
        })  # fmt: skip

    @property
    def spent(self) -> Spent:
        usage = self.usage
        if self.estimated > 0:
            usage = usage + Usage(is_estimated=True)
        return Spent(
            usd=dollars(self.usd), usage=usage, calls=self.calls, refused=self.refused, seconds=self.milliseconds / 1000
        )


def nanos(usd: Decimal) -> int:
    return int(usd * NANOS)


def dollars(amount: int) -> Decimal:
    return Decimal(amount) / NANOS


def day_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).date().isoformat()


def sum_keys(account: Account, day: str) -> dict[SumScope, SumKey]:
    """Return the sums in which what the account spends on that day counts."""
    run = account.run_id
    return {
        "attempt": SumKey("attempt", f"{run}/{account.task}/{account.attempt}"),
        "task": SumKey("task", f"{run}/{account.task}"),
        "run": SumKey("run", run),
        "person": SumKey("person", account.person.lower(), day),
        # Local checkouts have no id.
        "repository": SumKey("repository", str(account.repository_id or account.repository), day),
    }


def name_of(account: Account, scope: SumScope) -> str:
    return {"person": account.person, "repository": account.repository}.get(scope, "")


def spent_key(run_id: str, task: int | None, attempt: int | None) -> SumKey:
    if task is None:
        return SumKey("run", run_id)
    return SumKey("task", f"{run_id}/{task}") if attempt is None else SumKey("attempt", f"{run_id}/{task}/{attempt}")


def reserved(usd: int, tokens: int) -> Amounts:
    """Return what a reservation adds."""
    return Amounts(reserved_usd=usd, reserved_tokens=tokens, reserved_calls=1)


def booked(call: ModelCall) -> Amounts:
    plain = replace(call.usage, is_estimated=False)
    return Amounts(usd=nanos(call.usd), usage=plain, estimated=int(call.usage.is_estimated), calls=1)


def estimated_call(account: Account, at: float, usd: int, input_tokens: int, output_tokens: int) -> ModelCall:
    """Return the record of a call whose end is unknown: it counts as if it had used all that was reserved for it."""
    return ModelCall(
        run_id=account.run_id,
        task=account.task,
        attempt=account.attempt,
        started_at=datetime.fromtimestamp(at, UTC),
        protocol="",
        model="",
        status=0,
        usage=Usage(input=input_tokens, output=output_tokens, is_estimated=True),
        usd=dollars(usd),
    )


def balances(
    limits: Iterable[Limit], sums: Mapping[SumScope, Amounts], *, usd: Decimal = Decimal(0), tokens: int = 0, calls: int = 0
) -> list[Balance]:
    """Return the balance of each limit, if one more call needs that."""
    needed = {"usd": usd, "tokens": Decimal(tokens), "calls": Decimal(calls), "seconds": Decimal(0)}
    found = []
    for limit in limits:
        used = sums[limit.scope]
        found.append(
            Balance(
                limit=limit,
                spent=_spent(used, limit.measure),
                reserved=_reserved(used, limit.measure),
                needed=needed[limit.measure],
            )
        )
    return found


def _spent(sums: Amounts, measure: Measure) -> Decimal:
    match measure:
        case "usd":
            return dollars(sums.usd)
        case "tokens":
            return Decimal(sums.usage.tokens)
        case "calls":
            return Decimal(sums.calls)
        case "seconds":
            return Decimal(sums.milliseconds) / 1000


def _reserved(sums: Amounts, measure: Measure) -> Decimal:
    match measure:
        case "usd":
            return dollars(sums.reserved_usd)
        case "tokens":
            return Decimal(sums.reserved_tokens)
        case "calls":
            return Decimal(sums.reserved_calls)
        case "seconds":
            return Decimal(0)
