"""Globs for paths of a repository, compared exactly or as file systems compare names. Pure.

Two of a path's spellings are the same path to some file systems: APFS and NTFS ignore case, HFS+ and APFS normalize Unicode and
ignore some code points, and Windows ignores trailing dots and blanks.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable

from gibil_bot.limits import MOST_GLOB

# Code points that HFS+ ignores in names: git's is_hfs_dotgit, https://github.com/git/git/blob/master/utf8.c
_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
_WILDCARD = re.compile(r"[*?]")
_WILDCARDS = re.compile(r"\*\*+/?|[*?]")
# Names that Windows gives no other, short one; short names; and those with a hash
_SHORT = re.compile(r"[a-z0-9_-]{1,8}(?:\.[a-z0-9_-]{1,3})?")
_SHORT_NAME = re.compile(r"([^.~]{1,6})~[0-9]+(?:\.[^.]*)?")
_HASHED = re.compile(r".{2}[0-9a-f]{4}")


class Glob:
    """A glob: `*` and `?` match within one folder, `**` matches across folders, `**/` also none.

    A glob without wildcards also matches all files below it. Matching takes linear time, whatever the glob and the path are.
    """

    def __init__(self, pattern: str, *, folded: bool = False) -> None:
        """`folded`: compare as `fold` does. Raises ValueError for an empty or too long pattern."""
        if not pattern or len(pattern) > MOST_GLOB:
            raise ValueError(f"a glob has 1 to {MOST_GLOB} characters")
        self.pattern = pattern
        self._folded = folded
        text = pattern.removeprefix("./").removeprefix("/")
        if text.endswith("/"):
            text += "**"
        elif not _WILDCARD.search(text):
            text += "\0"  # the end, or a slash and anything
        if folded:
            text = fold(text)
        self._parents = _literal_parents(text)
        self._parent_globs: tuple[Glob, ...] | None = None
        self._characters: dict[str, int] = {}
        self._any = self._folder = self._one = self._skip_one = self._skip_three = self._rest = 0
        self._last = self._compile(text)
        self._literal = max(_WILDCARDS.split(text.rstrip("\0")), key=len)

    def matches(self, path: str) -> bool:
        """Return whether the glob matches the path."""
        return self._matches(fold(path) if self._folded else path)

    def _matches(self, path: str) -> bool:
        if self._literal not in path:  # most globs match few paths, and following the states takes a hundred times as long
            return False
        states = self._closure(1)
        for character in path:
            moved = (states & self._characters.get(character, 0)) << 1 | states & self._any
            if character != "/":
                moved |= states & self._folder | (states & self._one) << 1
            elif states & self._rest:
                return True
            states = self._closure(moved)
            if not states:
                return False
        return bool(states & self._last)

    def _is_parent(self, path: str) -> bool:
        """Return whether a path, folded already, is one of the folders that the glob names: a file or a link there replaces
        them all.
        """
        if self._parent_globs is None:
            prefixes = _prefixes(self.pattern)
            self._parent_globs = tuple(Glob(each, folded=self._folded) for each in prefixes)
        return path in self._parents or any(glob._matches(path) for glob in self._parent_globs)

    def is_same(self, folded: str) -> bool:
        """Return whether a path, folded already, is one of the glob's, or one of its folders."""
        return self._matches(folded) or self._is_parent(folded)

    def _compile(self, text: str) -> int:
        """Fill the sets of states, one bit each: a state is a position in the glob. Return the accepting states."""
        state, position = 1, 0
        while position < len(text):
            if text.startswith("**", position):
                begins_folder = position == 0 or text[position - 1] == "/"
                position += len(text[position:]) - len(text[position:].lstrip("*"))
                if begins_folder and text.startswith("/", position):
                    # `**/`: either nothing, or anything and a slash
                    self._skip_three |= state
                    self._skip_one |= state
                    state <<= 1
                    self._any |= state
                    self._skip_one |= state
                    state <<= 1
                    self._characters["/"] = self._characters.get("/", 0) | state
                    position += 1
                else:
                    self._any |= state
                    self._skip_one |= state
            elif text[position] == "*":
                self._folder |= state
                self._skip_one |= state
                position += 1
            elif text[position] == "?":
                self._one |= state
                position += 1
            elif text[position] == "\0":
                self._rest |= state
                return state
            else:
                self._characters[text[position]] = self._characters.get(text[position], 0) | state
                position += 1
            state <<= 1
        return state

    def _closure(self, states: int) -> int:
        while True:
            more = states | (states & self._skip_one) << 1 | (states & self._skip_three) << 3
            if more == states:
                return states
            states = more


@functools.lru_cache(maxsize=64)
def globs(patterns: tuple[str, ...], *, folded: bool = False) -> tuple[Glob, ...]:
    """Return compiled globs. Raises ValueError."""
    return tuple(Glob(pattern, folded=folded) for pattern in patterns)


def is_same_file(path: str, patterns: Iterable[str]) -> bool:
    """Return whether a path may be one of the patterns' files. Ignores case and what file systems ignore; Windows' other names
    count, too.

    A symbolic link, a submodule or a file in place of a folder that a pattern names counts as well.
    """
    compiled = globs(tuple(patterns), folded=True)
    on_windows = "/".join(part.partition(":")[0] or part for part in path.replace("\\", "/").split("/"))
    for folded in {fold(path), fold(on_windows)}:
        if any(glob.is_same(folded) for glob in compiled):
            return True
    return "~" in path and any(_is_short_name(part, _short_names(tuple(patterns))) for part in fold(on_windows).split("/"))


def fold(path: str) -> str:
    """Return the form in which paths are compared: equal for paths that are the same file to some file system."""
    if path.isascii():
        folded = path.lower()
    else:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", _IGNORED.sub("", path)).casefold())
    if ". " in folded or "./" in folded or " /" in folded or folded.endswith((".", " ")):
        folded = "/".join(part.rstrip(". ") if part.strip(".") else part for part in folded.split("/"))
    return folded


@functools.lru_cache(maxsize=64)
def _short_names(patterns: tuple[str, ...]) -> frozenset[str]:
    """Return how the short names of the patterns' files and folders begin. A name that is short already has no other one."""
    found = set()
    for part in {part for pattern in patterns for part in fold(pattern).split("/")}:
        literal = _WILDCARD.split(part)[0]
        if literal and (literal != part or not _SHORT.fullmatch(literal)):
            name = literal.strip(".")
            found.add((name.rpartition(".")[0] or name).replace(".", "").replace(" ", "")[:6])
    return frozenset(found)


def _is_short_name(name: str, beginnings: frozenset[str]) -> bool:
    """Return whether NTFS may read the name as the short name of a file whose short name begins so.

    It is the beginning of the name, or of several such files two characters and a hash:
    https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file#short-vs-long-names
    """
    match = _SHORT_NAME.fullmatch(name)
    if match is None:
        return False
    return match[1] in beginnings or (
        bool(_HASHED.fullmatch(match[1])) and any(match[1][:2] == each[:2] for each in beginnings)
    )


def _prefixes(pattern: str) -> list[str]:
    """Return globs for the folders that a pattern names after a wildcard; its literal ones are in `_literal_parents`."""
    parts = pattern.removeprefix("./").removeprefix("/").split("/")
    prefixes = ("/".join(parts[:length]) for length in range(1, len(parts)))
    return [each for each in prefixes if _WILDCARD.search(each) and not each.endswith("**")]


def _literal_parents(text: str) -> frozenset[str]:
    """Return the folders that the part before the first wildcard names."""
    wildcard = _WILDCARD.search(text)
    folders = (text[: wildcard.start()] if wildcard else text.rstrip("\0")).split("/")[:-1]
    return frozenset("/".join(folders[: length + 1]) for length in range(len(folders)))
