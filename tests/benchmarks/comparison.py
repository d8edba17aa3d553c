"""A row of the table: two measured sides, their ratio, and the aim for the ratio."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from statistics import median


class LeftOut(Exception):
    """A row that can't be measured on this computer; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Aim:
    """`at_most` for values that should be small, `at_least` for large ones."""

    relation: str
    bound: float

    def met(self, ratio: float) -> bool:
        compare = {"≤": operator.le, "≥": operator.ge}[self.relation]
        return bool(compare(ratio, self.bound))

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


def at_most(bound: float) -> Aim:
    return Aim("≤", bound)


def at_least(bound: float) -> Aim:
    return Aim("≥", bound)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One row. `ours` and `peers` are all samples, in the order of measurement."""

    what: str
    peer: str
    unit: str
    ours: list[float]
    peers: list[float]
    aim: Aim | None
    """None: a number that explains others and has no aim."""
    facts: dict[str, object] = field(default_factory=dict)
    """Values that a reader needs to judge the row: counts, sizes, versions."""

    @property
    def ratio(self) -> float:
        return median(self.ours) / median(self.peers) if median(self.peers) else math.inf

    @property
    def met(self) -> bool | None:
        return None if self.aim is None else self.aim.met(self.ratio)

    def as_json(self) -> dict[str, object]:
        return {
            "what": self.what,
            "peer": self.peer,
            "unit": self.unit,
            "ours": median(self.ours),
            "peers": median(self.peers),
            "ratio": self.ratio,
            "aim": None if self.aim is None else str(self.aim),
            "met": self.met,
            "our_samples": self.ours,
            "peer_samples": self.peers,
            "facts": self.facts,
        }


def table(comparisons: list[Comparison]) -> str:
    """Return Markdown: the medians of both sides, their ratio, the aim in brackets."""
    lines = ["| what | gibil | against | | ratio | aim |", "|---|---|---|---|---|---|"]
    for row in comparisons:
        verdict = {True: "met", False: "**missed**", None: "–"}[row.met]
        aim = f"[{row.aim}] {verdict}" if row.aim is not None else "–"
        lines.append(
            f"| {row.what} | {_number(row.ours)} {row.unit} | {row.peer} | {_number(row.peers)} {row.unit} "
            f"| {row.ratio:.2f} | {aim} |"
        )
    return "\n".join(lines)


def _number(samples: list[float]) -> str:
    """Return the median and the range of the samples."""

    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    middle = short(median(samples))
    return middle if len(samples) < 2 else f"{middle} ({short(min(samples))}–{short(max(samples))})"
