"""Output for people: colours only on a terminal, symbols only if the encoding has them, readable Markdown."""

from __future__ import annotations

import html
import os
import re
import unicodedata
from collections.abc import Iterable
from typing import TextIO

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
_SIGNS = dict(zip("✓✗●▸│·–—“”→…", '+x*>|---"">.', strict=True))
"""Replacements for symbols that the encoding doesn't have."""
_HTML_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_HTML_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_MARKUP = re.compile(r"\*\*(.+?)\*\*|`([^`]+)`|\[([^\]]+)\]\([^)]*\)")


class Terminal:
    """An output stream. NO_COLOR is honoured: https://no-color.org."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._encoding = getattr(out, "encoding", None) or "utf-8"
        plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self._colours = out.isatty() and not plain

    def style(self, text: str, *styles: str) -> str:
        if not self._colours or not styles:
            return text
        return f"\x1b[{';'.join(_COLOURS[style] for style in styles)}m{text}\x1b[0m"

    def print_line(self, text: str = "") -> None:
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            text = "".join(_SIGNS.get(letter, letter) for letter in text)
            text = text.encode(self._encoding, "replace").decode(self._encoding)
        self._out.write(text + "\n")
        self._out.flush()

    def table(self, rows: Iterable[tuple[str, str, str]], indent: str) -> None:
        """Print rows of label, right-aligned value, remark."""
        rows = list(rows)
        first = max((width(label) for label, _, _ in rows), default=0)
        second = max((width(value) for _, value, _ in rows), default=0)
        for label, value, remark in rows:
            line = f"{indent}{pad(label, first)}  {' ' * (second - width(value))}{value}  {self.style(remark, 'dim')}"
            self.print_line(line.rstrip())

    def markdown(self, text: str, indent: str, most: int | None = None) -> None:
        """Print at most this many lines of a text."""
        lines = readable(text)
        if most is not None and len(lines) > most:
            lines = [*lines[:most], f"… {len(lines) - most} further lines …"]
        for line in lines:
            self.print_line(f"{indent}{line}".rstrip())


def width(text: str) -> int:
    """Return the columns of a text on a terminal."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text
    )


def pad(text: str, columns: int) -> str:
    return text + " " * (columns - width(text))


def harmless(text: str) -> str:
    """Return a line of output without control characters."""
    return "".join(letter for letter in text if letter.isprintable() or letter == "\t").expandtabs(4)


def readable(markdown: str) -> list[str]:
    """Render GitHub's Markdown for a terminal: tables in columns, fences indented, without marks and tags."""
    lines: list[str] = []
    table: list[list[str]] = []
    fence = ""
    for raw in _HTML_COMMENT.sub("", markdown).splitlines():
        line = raw.rstrip()
        opening = re.match(r"\s*(`{3,}|~{3,})", line)
        if fence:
            if opening and line.strip() == fence:
                fence = ""
            else:
                lines.append("    " + harmless(line))
            continue
        if table and not line.startswith("|"):
            lines += _columns(table)
            table = []
        if opening:
            fence = opening[1]
        elif line.startswith("|"):
            cells = [_plain(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                table.append(cells)
        else:
            text = _plain(line.lstrip("#").strip() if line.startswith("#") else line)
            if text.strip() or (lines and lines[-1]):
                lines.append(text)
    lines += _columns(table)
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _plain(text: str) -> str:
    text = _MARKUP.sub(lambda found: next(group for group in found.groups() if group), text)
    return harmless(html.unescape(_HTML_TAG.sub("", text))).replace("\\|", "|")


def _columns(rows: list[list[str]]) -> list[str]:
    if not rows:
        return []
    widest = [max(width(row[n]) for row in rows if n < len(row)) for n in range(max(map(len, rows)))]
    return ["   ".join(pad(cell, widest[n]) for n, cell in enumerate(row)).rstrip() for row in rows]
