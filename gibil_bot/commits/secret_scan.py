"""Finds secrets in text that commits would publish: known values, and the patterns of Kingfisher's rules.

Kingfisher (MongoDB, Apache-2.0) scans offline and in a child process (scanner.py), which never gets the known values; only its
high-confidence rules are used, because a finding rejects the commits. Its matching takes linear time.
https://github.com/mongodb/kingfisher
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gibil_bot.commits.scanner import shared_scanner
from gibil_bot.commits.scanner_process import MOST_FOUND, MOST_PIECE_BYTES

_OVERLAP = 16 * 1024
"""More than any secret has."""
MOST_FINDINGS = MOST_FOUND - 1
"""Findings of one text that are compared with older texts."""


class KnownSecrets(Protocol):
    """The secrets that a run uses, in all the forms in which they are masked."""

    def find_new_value(self, data: bytes, before: Sequence[bytes]) -> int | None:
        """Return the offset of a secret in `data` that isn't in a text of `before`; None if there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`line` is counted from 1. `what` names the kind of secret and never contains it."""

    line: int
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    line: int
    what: str
    forms: tuple[bytes, ...] = field(repr=False)
    """How an older text would contain it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What was found in one text, whether or not an older text has it."""

    data: bytes = field(repr=False)
    matches: tuple[_Match, ...]
    known: KnownSecrets | None = field(repr=False)
    """Set if the text contains one of these."""
    seconds: float
    """How long it took, without waiting for other scans."""

    @property
    def is_clean(self) -> bool:
        return not self.matches and self.known is None

    async def new(self, before: Sequence[bytes] = ()) -> tuple[Finding, ...]:
        """Return the secrets that aren't in one of the texts `before`, one for each line."""
        return () if self.is_clean else await asyncio.to_thread(self._new, tuple(before))

    def _new(self, before: tuple[bytes, ...]) -> tuple[Finding, ...]:
        found: dict[int, Finding] = {}
        data = _without_nul(self.data)
        if self.known is not None and (start := self.known.find_new_value(data, [*map(_without_nul, before)])) is not None:
            line = data.count(b"\n", 0, start) + 1
            found[line] = Finding(line=line, what="the value of a secret of this run")
        for match in self.matches[:MOST_FINDINGS]:
            if match.line not in found and not any(form in old for old in before for form in match.forms):
                found[match.line] = Finding(line=match.line, what=match.what)
        if len(self.matches) > MOST_FINDINGS:
            line = self.matches[MOST_FINDINGS].line
            found.setdefault(line, Finding(line=line, what=f"more than {MOST_FINDINGS} texts that look like secrets"))
        return tuple(found[line] for line in sorted(found))


async def scan(data: bytes, *, known: KnownSecrets | None = None, only_known: bool = False) -> Scanned:
    """Return the secrets in `data`, or only the known ones. Raises NoScanner, NotScanned."""
    if known is not None and await asyncio.to_thread(known.find_new_value, _without_nul(data), ()) is None:
        known = None
    matches: dict[tuple[int, bytes], _Match] = {}
    lines = 0
    seconds = 0.0
    for start in range(0, 0 if only_known else len(data), MOST_PIECE_BYTES - _OVERLAP):
        piece = data[start : start + MOST_PIECE_BYTES]
        if piece.strip() and len(matches) <= MOST_FINDINGS:
            found, spent_s = await shared_scanner().scan(piece)
            seconds += spent_s
            for each in found:
                line = lines + each.line
                forms = _forms(each.secret, piece[each.start : each.end])
                matches.setdefault((line, each.secret), _Match(line=line, what=_kind(each.rule), forms=forms))
        lines += data.count(b"\n", start, start + MOST_PIECE_BYTES - _OVERLAP)
        if start + MOST_PIECE_BYTES >= len(data):
            break
    return Scanned(data=data, matches=tuple(matches.values()), known=known, seconds=seconds)


def _without_nul(data: bytes) -> bytes:
    """Return the same text if it is UTF-8, and ASCII if it is ASCII in UTF-16 or UTF-32."""
    return data.replace(b"\0", b"") if b"\0" in data else data


def _forms(secret: bytes, whole: bytes) -> tuple[bytes, ...]:
    """Return the secret as it is and in the encodings that the scanner reads.

    `whole` is where the scanner found it: a wrong range if it has decoded the text, so it counts only if it contains the
    secret as base64.
    """
    text = secret.decode("utf-8", "replace")
    forms = {secret, text.encode("utf-16-le"), text.encode("utf-16-be")}
    with contextlib.suppress(ValueError):
        if secret in base64.b64decode(
            whole + b"=" * (-len(whole) % 4), altchars=b"-_" if b"-" in whole or b"_" in whole else None
        ):
            forms.add(whole)
    return tuple(form for form in forms if form)


def _kind(rule: str) -> str:
    """Return a text for people: `betterleaks.github-pat` is `github pat`."""
    return "what looks like a secret (" + rule.rpartition(".")[2].replace("-", " ").replace("_", " ") + ")"
