"""Imports in instruction files: `@path` includes another file of the checkout, which is the untrusted head's.

Claude Code and Gemini CLI follow them, up to five levels deep, but not in code (https://code.claude.com/docs/en/memory,
https://geminicli.com/docs/reference/memport). Pure: the caller fetches the files.
"""

from __future__ import annotations

import bisect
import posixpath
import re
from collections.abc import Iterable, Mapping

MOST_LEVELS = 5

_IMPORT = re.compile(r"(?<![^\s(\[{,;:\"'*_>-])@(?P<path>[^\s`()\[\]{}<>,;\"']{1,500})")
_BACKTICKS = re.compile("`+")
_AT_THE_END = ".:!?*_"


def is_instruction_text(path: str) -> bool:
    return path.lower().endswith(".md")


def imported(path: str, text: str) -> tuple[str, ...]:
    """Return the paths in the repository that a file at `path` may import, in order. Some mean no file at all."""
    return tuple(dict.fromkeys(found for match in _imports(text) if (found := _resolved(path, match["path"])) is not None))


def included(path: str, texts: Mapping[str, str]) -> str:
    """Return the file's text with the imported ones of `texts` at its end, and without any import that is still followed."""
    parts = [_quoted(texts[path])]
    seen = {path}
    level = [path]
    for _ in range(MOST_LEVELS):
        level = [each for one in level for each in imported(one, texts[one]) if each in texts]
        for each in dict.fromkeys(level):
            if each not in seen:
                seen.add(each)
                parts.append(f"## {each}\n\n{_quoted(texts[each]).rstrip()}\n")
    return "\n".join(parts)


def _imports(text: str) -> Iterable[re.Match[str]]:
    code = _code(text)
    position = 0
    for match in _IMPORT.finditer(text):
        while position < len(code) and code[position][1] <= match.start():
            position += 1
        if position == len(code) or not code[position][0] <= match.start() < code[position][1]:
            yield match


def _code(text: str) -> list[tuple[int, int]]:
    """Return where code begins and ends: between runs of as many backticks (https://spec.commonmark.org/0.31.2/#code-spans)."""
    runs = [match.span() for match in _BACKTICKS.finditer(text)]
    by_length: dict[int, list[int]] = {}
    for index, (start, end) in enumerate(runs):
        by_length.setdefault(end - start, []).append(index)
    found = []
    index = 0
    while index < len(runs):
        start, end = runs[index]
        same = by_length[end - start]
        closing = bisect.bisect_right(same, index)
        if closing < len(same):
            index = same[closing]
            found.append((start, runs[index][1]))
        index += 1
    return found


def _quoted(text: str) -> str:
    """Return the text with each import as code, which programs don't follow."""
    parts: list[str] = []
    end = 0
    for match in _imports(text):
        word = match[0].rstrip(_AT_THE_END)
        parts += [text[end : match.start()], f"`{word}`" if len(word) > 1 else word]
        end = match.start() + len(word)
    return "".join(parts) + text[end:]


def _resolved(path: str, target: str) -> str | None:
    """Return the repository's path of an import; None if it is outside of it."""
    target = target.rstrip(_AT_THE_END)
    if not target or target.startswith(("/", "~")):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    return None if found.startswith("../") or found in ("..", ".") else found
