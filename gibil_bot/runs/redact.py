"""Masks secrets in output before it is stored, shown or sent: plain, in common encodings, and by the shape of tokens.

Output arrives in chunks that end anywhere, so a secret may span two of them. Therefore only whole lines are released, and an
incomplete line is held. Of an endless line, only what could be the start of a secret is held.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote, quote_plus

SHORTEST = 4
"""Shorter secrets aren't masked: their characters occur everywhere, and stars instead of them would reveal them."""
LONGEST_LINE = 64 << 10
"""Maximum number of bytes held while the end of a line, or of a private key, is missing."""
_TAIL = 4 << 10
"""Minimum number of bytes held when a longer line is split: more than any token that is recognized by its shape only."""

_TOKENS = re.compile(
    # the stateless form of ghs_ is a JWT, with dots and dashes
    rb"gh[pousr]_[A-Za-z0-9._-]+|github_pat_[A-Za-z0-9_]+|A[KS]IA[0-9A-Z]{16}|gibil-[A-Za-z0-9_-]{43}(?![A-Za-z0-9_-])"
    rb"|sk-(?:ant|proj|svcacct)-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{35}"  # Anthropic, OpenAI, Google
    rb"|(?<=x-access-token:)[^\s@/\"'\\]+"
)
_SHAPE_ANCHORS = (
    rb"gibil-[A-Za-z0-9_-]{43}",
    rb"gh[pousr]_",
    rb"github_pat_",
    rb"A[KS]IA",
    rb"sk-(?:ant|proj|svcacct)-",
    rb"AIza",
    rb"x-access-token:",
    rb"BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY",
)
_KEY_START = re.compile(rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_STOP = re.compile(rb"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_LINES = re.compile(
    rb"(?:(?:\s|\\[nr])+[A-Za-z0-9+/=]{16,}|(?:\s|\\[nr])*-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)*"
)
"""Further BEGIN lines match too, so a thousand of them are masked as one span instead of a thousand."""

_BY_FREQUENCY = b" etaoinsrlcdup/.-_mhf01gb:\n2,ky35vwx\"'=()[]4678TSEACIN9RLDOPMjqzFBGUHVWY"
"""The bytes of ordinary output, most frequent first: an anchor begins with the rarest byte of its secret."""


class Redactor:
    """Masks `secrets` in a stream (`feed`, then `flush`) or in a text (`text`). Use one object per stream."""

    def __init__(self, secrets: Iterable[str]) -> None:
        given = {secret for secret in secrets if secret}
        usable = sorted(secret for secret in given if len(secret.strip()) >= SHORTEST)
        short = len(given) - len(usable)
        self.notes: tuple[str, ...] = ()
        """Secrets that aren't masked, for the report."""
        if short:
            self.notes = (f"{short} of the secrets are shorter than {SHORTEST} characters and are not masked",)
        self._needles = tuple(sorted({needle for secret in usable for needle in _forms(secret)}))
        self._longest = max((len(needle) for needle in self._needles), default=0)
        self._line_starts = sorted(
            {needle[:end] for needle in self._needles for end in _line_ends(needle)}, key=len, reverse=True
        )
        self._candidate = re.compile(b"|".join((*_SHAPE_ANCHORS, *map(re.escape, sorted(map(_anchor, self._needles))))))
        self._mask = _mask_for(usable)
        self._held = b""

    @property
    def held(self) -> int:
        """How many fed bytes aren't released yet: a process that resumes feeds them again."""
        return len(self._held)

    def feed(self, data: bytes) -> bytes:
        """Return what can be released of everything fed so far."""
        buffer = self._held + data
        end = max(buffer.rfind(b"\n"), buffer.rfind(b"\r")) + 1
        if not end and len(buffer) <= LONGEST_LINE:
            self._held = buffer
            return b""
        spans = self._spans(buffer)
        cut = self._cut(buffer, end, spans)
        self._held = buffer[cut:]
        return self._masked(buffer[:cut], [span for span in spans if span[1] <= cut])

    def flush(self) -> bytes:
        """Return the rest; nothing is fed after it."""
        rest, self._held = self._held, b""
        return self._masked(rest, self._spans(rest))

    def text(self, text: str) -> str:
        """Mask a complete text, independent of the stream."""
        data = text.encode("utf-8", "surrogatepass")
        spans = self._spans(data)
        return self._masked(data, spans).decode("utf-8", "surrogatepass") if spans else text

    def find_new_value(self, data: bytes, before: Sequence[bytes]) -> int | None:
        """Return the offset of a secret's value in `data` that isn't in a text of `before`; None if there is none.

        It is found in all the forms that are masked. Tokens that are recognized only by their shape don't count.
        """
        found = (data.find(needle) for needle in self._needles if not any(needle in old for old in before))
        return min((start for start in found if start >= 0), default=None)

    def _spans(self, data: bytes) -> list[tuple[int, int]]:
        """Return the spans to mask, in order. Overlapping spans are merged, so that no end of either stays readable."""
        if not self._candidate.search(data):
            return []
        found = [match.span() for match in _TOKENS.finditer(data)]
        found += _keys(data)
        for needle in self._needles:
            found += ((start, start + len(needle)) for start in _occurrences(data, needle))
        merged: list[tuple[int, int]] = []
        for start, end in sorted(found):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            elif start < end:
                merged.append((start, end))
        return merged

    def _masked(self, data: bytes, spans: list[tuple[int, int]]) -> bytes:
        if not spans:
            return data
        pieces, done = [], 0
        for start, end in spans:
            pieces += [data[done:start], self._mask]
            done = end
        pieces.append(data[done:])
        return b"".join(pieces)

    def _cut(self, buffer: bytes, end: int, spans: list[tuple[int, int]]) -> int:
        """Return how many bytes can be released: later output can't complete a secret in them. `end`: where the last line
        ended.
        """
        cut = end
        for start in self._line_starts:
            if buffer.endswith(start, 0, end):
                cut = end - len(start)  # the first match is the longest
                break
        if spans:  # a private key is one of them
            cut = min(cut, _unfinished_key(buffer, end))
        cut = _outside_spans(cut, spans)
        if len(buffer) - cut <= LONGEST_LINE:
            return cut
        forced = max(len(buffer) - max(self._longest, _TAIL), cut)
        forced = _outside_spans(forced, spans)
        if len(buffer) - forced <= LONGEST_LINE:
            return forced
        # One secret fills the whole buffer: release it as a mask, whatever follows.
        return next((stop for _, stop in spans if stop > forced), forced)


def after_the_first_line(data: bytes) -> bytes:
    """Return the part of output with an unknown beginning that can be redacted: no rest of a line or of a private key."""
    data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
    stop, start = _KEY_STOP.search(data), _KEY_START.search(data)
    return data[stop.end() :] if stop is not None and (start is None or stop.start() < start.start()) else data


def _forms(secret: str) -> Iterator[bytes]:
    """Yield all forms in which scripts print a secret."""
    plain = {secret, secret.strip(), secret.replace("\n", "\r\n")}
    lines = {line.strip() for line in secret.splitlines()}
    for text in plain | {line for line in lines if len(line) >= SHORTEST}:
        yield _bytes(text)
    for text in plain:
        data = _bytes(text)
        for url in (quote(data, safe=""), quote(data), quote(data, safe="!'()*"), quote_plus(data)):
            yield url.encode()
            yield re.sub("%..", lambda match: match[0].lower(), url).encode()
        for ascii_only in (True, False):
            escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
            upper = re.sub(r"\\u....", lambda match: match[0][:2] + match[0][2:].upper(), escaped)
            for form in (escaped, upper, escaped.replace("/", "\\/"), json.dumps(escaped, ensure_ascii=ascii_only)[1:-1]):
                yield _bytes(form)
        for encoded in _base64_forms(data):
            yield encoded
            yield encoded.translate(bytes.maketrans(b"+/", b"-_"))


def _base64_forms(data: bytes) -> Iterator[bytes]:
    """Yield the base64 characters that depend on the secret alone, for the three alignments within other data; also the lines
    of `base64` (76) and `openssl` (64) output that begins with the secret.
    """
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data)
        yield encoded[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
    whole = base64.b64encode(data)[: 8 * len(data) // 6]
    for width in (64, 76):
        if len(whole) > width:
            lines = (whole[start : start + width] for start in range(0, len(whole), width))
            yield from (line for line in lines if len(line) >= 12)


def _bytes(text: str) -> bytes:
    """Encode as in the environment: bytes that weren't UTF-8 there are restored."""
    return text.encode("utf-8", "surrogateescape")


def _mask_for(secrets: Iterable[str]) -> bytes:
    """Return a mask of a character that isn't in any secret, so that the mask and its surroundings never form a secret."""
    used = set().union(*map(set, secrets), set("\\%+/-_=")) if secrets else set()
    for sign in ("*", "•", "█", "#", *map(chr, range(0x2500, 0x2600))):
        if sign not in used:
            return sign.encode() * 3
    return b""


def _anchor(needle: bytes) -> bytes:
    """Return four bytes of the needle, starting at its rarest byte: a fast search for them rules out most output."""
    starts = range(max(1, len(needle) - SHORTEST + 1))
    start = max(starts, key=lambda index: _BY_FREQUENCY.find(needle[index]) % 256)  # -1 (not in the list): the rarest
    return needle[start : start + SHORTEST]


def _keys(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the spans of private keys, from BEGIN line to END line.

    Without an END line, the span covers the lines of base64 and further BEGIN lines that follow. Every byte is read at most
    twice, however many BEGIN lines are printed to slow this down.
    """
    stop = _KEY_STOP.search(data)
    start = _KEY_START.search(data)
    while start is not None:
        if stop is not None and stop.start() < start.end():
            stop = _KEY_STOP.search(data, start.end())
        if stop is not None and stop.start() - start.end() <= LONGEST_LINE:
            end = stop.end()
        else:
            lines = _KEY_LINES.match(data, start.end())
            end = lines.end() if lines else start.end()
        yield start.start(), end
        start = _KEY_START.search(data, end)


def _line_ends(needle: bytes) -> Iterator[int]:
    """Yield the offset after each line break inside the needle."""
    return (match.end() for match in re.finditer(rb"[\r\n]", needle) if match.end() < len(needle))


def _occurrences(data: bytes, needle: bytes) -> Iterator[int]:
    start = data.find(needle)
    while start >= 0:
        yield start
        start = data.find(needle, start + 1)


def _unfinished_key(buffer: bytes, end: int) -> int:
    """Return where a private key without an END line begins; `end` if there is none."""
    stops = [match.start() for match in _KEY_STOP.finditer(buffer, 0, end)]
    behind = stops[-1] if stops else 0
    start = _KEY_START.search(buffer, behind, end)
    return end if start is None else start.start()


def _outside_spans(cut: int, spans: list[tuple[int, int]]) -> int:
    """Move a cut to the start of the span that it would split. Spans don't overlap, so one step back is enough."""
    return next((start for start, end in spans if start < cut < end), cut)
