"""Regular expressions that always answer at once: what `pattern:` of an input is matched with.

Python's `re` backtracks, and `(a+)+$` on thirty letters takes minutes; a pattern comes from a repository and a value
from a comment, so neither may cost that. Here a pattern becomes a small automaton that is walked once along the value:
length × states, whatever it says. Supported: literals, `.`, `[…]`, `\\d \\w \\s` and their opposites, `( )`, `(?: )`,
`|`, `* + ?`, `{n} {n,} {n,m}`; `^` first and `$` last change nothing, because the whole value has to match.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

MAX_PATTERN = 200
MAX_STATES = 1000
MAX_VALUE = 1000
_MAX_NESTING = 20

_DIGITS = (("0", "9"),)
_WORD = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_SPACE = (("\t", "\r"), (" ", " "))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}

Ranges = tuple[tuple[str, str], ...]


class InvalidPattern(ValueError):
    """A pattern that is not of this language; the message is a person's sentence."""


@dataclass(frozen=True, slots=True)
class _Set:
    """The characters of these ranges, or all others. ASCII classes only."""

    ranges: Ranges
    negated: bool = False

    def holds(self, character: str) -> bool:
        return any(low <= character <= high for low, high in self.ranges) != self.negated


_ANY = _Set((("\n", "\n"),), negated=True)


@dataclass(frozen=True, slots=True)
class Pattern:
    """An automaton: state 0 begins, `final` ends. Each state has characters that lead on, or silent steps."""

    steps: tuple[tuple[_Set, int] | None, ...]
    silent: tuple[tuple[int, ...], ...]
    final: int

    def fullmatch(self, value: str) -> bool:
        """Whether the whole value matches; a value above MAX_VALUE characters never does."""
        if len(value) > MAX_VALUE:
            return False
        here = self._closure({0})
        for character in value:
            reached = set()
            for state in here:
                step = self.steps[state]
                if step is not None and step[0].holds(character):
                    reached.add(step[1])
            here = self._closure(reached)
            if not here:
                return False
        return self.final in here

    def _closure(self, states: set[int]) -> set[int]:
        waiting = list(states)
        while waiting:
            for following in self.silent[waiting.pop()]:
                if following not in states:
                    states.add(following)
                    waiting.append(following)
        return states


@lru_cache(maxsize=256)
def compile_pattern(text: str) -> Pattern:
    """Raises InvalidPattern for what is not supported, too long or too large."""
    if len(text) > MAX_PATTERN:
        raise InvalidPattern(f"a pattern of more than {MAX_PATTERN} characters")
    tree = _Reader(text).whole()
    automaton = _Automaton()
    final = automaton.add(tree, automaton.state())
    return Pattern(tuple(automaton.steps), tuple(map(tuple, automaton.silent)), final)


# A pattern as a tree: a character set, parts in a row, a choice, or a repetition.


@dataclass(frozen=True, slots=True)
class _Row:
    parts: tuple[_Tree, ...]


@dataclass(frozen=True, slots=True)
class _Choice:
    branches: tuple[_Tree, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Tree
    fewest: int
    most: int | None


_Tree = _Set | _Row | _Choice | _Repeat


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def _peek(self) -> str:
        return self._text[self._position] if self._position < len(self._text) else ""

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise InvalidPattern("the pattern ends too early")
        self._position += 1
        return character

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._position):
            self._position += len(text)
            return True
        return False

    def whole(self) -> _Tree:
        tree = self._choice(0)
        if self._peek():
            raise InvalidPattern("a ) without its (")
        return tree

    def _choice(self, depth: int) -> _Tree:
        if depth > _MAX_NESTING:
            raise InvalidPattern(f"groups nested more than {_MAX_NESTING} deep")
        branches = [self._row(depth)]
        while self._take("|"):
            branches.append(self._row(depth))
        return branches[0] if len(branches) == 1 else _Choice(tuple(branches))

    def _row(self, depth: int) -> _Tree:
        parts: list[_Tree] = []
        while self._peek() not in ("", "|", ")"):
            # At the very ends the anchors say what holds anyway.
            if self._position == 0 and self._take("^"):
                continue
            if self._position == len(self._text) - 1 and self._take("$"):
                continue
            parts.append(self._repeated(self._atom(depth)))
        return _Row(tuple(parts))

    def _atom(self, depth: int) -> _Tree:
        character = self._next()
        if character == "(":
            if self._peek() == "?" and not self._take("?:"):
                raise InvalidPattern("of the (?…) groups only (?:…) is supported")
            tree = self._choice(depth + 1)
            if not self._take(")"):
                raise InvalidPattern("a ( without its )")
            return tree
        if character == "[":
            return self._set()
        if character == ".":
            return _ANY
        if character == "\\":
            return _Set(*self._escape())
        if character in "*+?{":
            raise InvalidPattern(f"nothing stands before {character} that it could repeat")
        if character in "^$":
            raise InvalidPattern(f"{character} is only allowed at the end it stands for; write \\{character} for the character")
        return _Set(((character, character),))

    def _escape(self) -> tuple[Ranges, bool]:
        character = self._next()
        if character.lower() in _CLASSES and character.isascii():
            return _CLASSES[character.lower()], character.isupper()
        if character in _ESCAPES:
            character = _ESCAPES[character]
        elif character.isalnum():
            raise InvalidPattern(f"\\{character} is not supported")
        return ((character, character),), False

    def _set(self) -> _Set:
        negated = self._take("^")
        ranges: list[tuple[str, str]] = []
        first = True
        while first or not self._take("]"):
            first = False
            low = self._next()
            if low == "\\":
                found, opposite = self._escape()
                if opposite:
                    raise InvalidPattern("\\D, \\W and \\S are not supported inside [ ]")
                if found in _CLASSES.values():
                    ranges += found
                    continue
                low = found[0][0]
            high = low
            if self._peek() == "-" and self._text[self._position + 1 : self._position + 2] not in ("]", ""):
                self._next()
                high = self._next()
                if high == "\\":
                    high = self._escape()[0][0][0]
            if high < low:
                raise InvalidPattern(f"the range {low}-{high} is upside down")
            ranges.append((low, high))
        return _Set(tuple(ranges), negated)

    def _repeated(self, part: _Tree) -> _Tree:
        if self._take("*"):
            tree: _Tree = _Repeat(part, 0, None)
        elif self._take("+"):
            tree = _Repeat(part, 1, None)
        elif self._take("?"):
            tree = _Repeat(part, 0, 1)
        elif self._take("{"):
            tree = self._counted(part)
        else:
            return part
        if self._peek() in ("*", "+", "?", "{") and self._peek():
            raise InvalidPattern("a repetition of a repetition; put the inner one into ( )")
        return tree

    def _counted(self, part: _Tree) -> _Tree:
        fewest = self._number()
        most: int | None = fewest
        if self._take(","):
            most = None if self._peek() == "}" else self._number()
        if not self._take("}"):
            raise InvalidPattern("a { without its }; write \\{ for the character")
        if most is not None and most < fewest:
            raise InvalidPattern(f"the repetition {{{fewest},{most}}} is upside down")
        return _Repeat(part, fewest, most)

    def _number(self) -> int:
        digits = ""
        while self._peek() and self._peek() in "0123456789":
            digits += self._next()
        if not digits or len(digits) > 4:
            raise InvalidPattern("a repetition is {n}, {n,} or {n,m}; write \\{ for the character")
        return int(digits)


class _Automaton:
    """Thompson's construction; a counted repetition is written out, and the number of states is bounded."""

    def __init__(self) -> None:
        self.steps: list[tuple[_Set, int] | None] = []
        self.silent: list[list[int]] = []

    def state(self) -> int:
        if len(self.steps) >= MAX_STATES:
            raise InvalidPattern("the pattern is too large when its repetitions are written out")
        self.steps.append(None)
        self.silent.append([])
        return len(self.steps) - 1

    def add(self, tree: _Tree, start: int) -> int:
        """Build the tree from `start`; the state where it ends."""
        match tree:
            case _Set():
                end = self.state()
                self.steps[start] = (tree, end)
                return end
            case _Row():
                for part in tree.parts:
                    start = self._fresh(self.add(part, start))
                return start
            case _Choice():
                end = self.state()
                for branch in tree.branches:
                    self.silent[self.add(branch, self._after(start))].append(end)
                return end
            case _Repeat():
                return self._repeat(tree, start)

    def _after(self, state: int) -> int:
        following = self.state()
        self.silent[state].append(following)
        return following

    def _fresh(self, state: int) -> int:
        """A state without a step of its own yet."""
        return self._after(state) if self.steps[state] is not None else state

    def _repeat(self, tree: _Repeat, start: int) -> int:
        for _ in range(tree.fewest):
            start = self.add(tree.part, self._after(start))
        end = self.state()
        self.silent[start].append(end)
        if tree.most is None:
            again = self._after(start)
            last = self.add(tree.part, again)
            self.silent[last] += [again, end]
            return end
        for _ in range(tree.most - tree.fewest):
            start = self.add(tree.part, self._after(start))
            self.silent[start].append(end)
        return end
