"""Expressions of `if:` and of `${{ … }}`: the subset of GitHub Actions' language that plans need.

Literals, comparison and truthiness follow https://docs.github.com/en/actions/reference/workflows-and-actions/expressions: `==`
is loose, strings are compared without case, and an expression without a status function means `success() && (…)`. The text is
parsed by hand into a small tree; nothing of it ever reaches `eval`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from gibil_bot.errors import GibilError
from gibil_bot.humanize import nearest

MAX_LENGTH = 1000
MAX_DEPTH = 30
_SLACK_LENGTH, _SLACK_DEPTH = 3000, 5
"""How much longer and deeper than `check` allows a condition may become while it is planned (`bind`, `combine`)."""

GITHUB_NAMES = (
    "event_name",
    "actor",
    "sha",
    "ref",
    "head_ref",
    "base_ref",
    "repository",
    "repository_owner",
    "workflow",
    "number",
)
"""The names of the `github` context that are supported."""

STATUSES = ("success", "failure", "cancelled")
STATUS_FUNCTIONS = (*STATUSES, "always")
_FUNCTIONS = (*STATUS_FUNCTIONS, "contains", "startsWith", "endsWith")

Value = str | bool | float | None


class InvalidExpression(GibilError):
    """An expression that can't be parsed. `column` counts from 1 in the original text."""

    code = "WORKFLOW_INVALID"
    exit_status = 2

    def __init__(self, problem: str, column: int) -> None:
        super().__init__(f"{problem} (column {column} of the expression)")
        self.problem, self.column = problem, column


# --- the tree ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Literal:
    value: Value


@dataclass(frozen=True, slots=True)
class Name:
    context: str
    """inputs | github | env"""
    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    """Lower case."""
    arguments: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Not:
    operand: Expression


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Expression
    right: Expression


Expression = Literal | Name | Call | Not | Binary


def parse(text: str) -> Expression:
    """Parse one condition, with or without `${{ }}` around the whole. Raises InvalidExpression."""
    if len(text) > MAX_LENGTH + _SLACK_LENGTH:
        raise InvalidExpression(f"an expression of more than {MAX_LENGTH + _SLACK_LENGTH} characters", 1)
    return parse_at(*body_of(text), max_depth=MAX_DEPTH + _SLACK_DEPTH)


def body_of(text: str) -> tuple[str, int]:
    """Return a condition without the `${{ }}` around it, and its offset."""
    if not text.lstrip().startswith("${{"):
        return text, 0
    start = text.index("${{") + 3
    end = _end_of_piece(text, start)
    if text[end + 2 :].strip():
        raise InvalidExpression("put ${{ }} around the whole condition, or leave it out", end + 3)
    return text[start:end], start


# --- parsing -----------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"(?P<space>[ \t\r\n]+)"
    r"|(?P<string>'(?:[^']|'')*')"
    r"|(?P<number>[-+]?(?:0x[0-9a-fA-F]+|(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?![\w.]))"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_-]*)"
    r"|(?P<sign>==|!=|<=|>=|&&|\|\||[<>!().,])"
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    start: int


def _tokens(text: str, offset: int) -> list[_Token]:
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise InvalidExpression(_character_hint(text[position]), offset + position + 1)
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind, match.group(), offset + position))
        position = match.end()
    tokens.append(_Token("end", "", offset + len(text)))
    return tokens


def _character_hint(character: str) -> str:
    hints = {
        '"': "write strings in 'single quotes'",
        "'": "this string has no closing quote",
        "=": "comparison is written ==",
        "&": "and is written &&",
        "|": "or is written ||",
        "$": "put ${{ }} around the whole condition, or leave it out",
        "[": "an index is not supported; write inputs.NAME",
    }
    return hints.get(character, f"unexpected character {character!r}")


def parse_at(text: str, offset: int, *, max_depth: int = MAX_DEPTH) -> Expression:
    if not text.strip():
        raise InvalidExpression("an empty expression", offset + 1)
    parser = _Parser(_tokens(text, offset), max_depth)
    tree = parser.either(0)
    parser.expect_end()
    return tree


class _Parser:
    """Recursive descent, from the lowest precedence: `||`, `&&`, comparison, `!`, atoms."""

    def __init__(self, tokens: list[_Token], max_depth: int) -> None:
        self._tokens = tokens
        self._position = 0
        self._max_depth = max_depth

    @property
    def _here(self) -> _Token:
        return self._tokens[self._position]

    def _take(self, *signs: str) -> str | None:
        token = self._here
        if token.kind == "sign" and token.text in signs:
            self._position += 1
            return token.text
        return None

    def _error(self, problem: str, token: _Token | None = None) -> InvalidExpression:
        return InvalidExpression(problem, (token or self._here).start + 1)

    def expect_end(self) -> None:
        if self._here.kind != "end":
            raise self._error(f"unexpected {self._here.text!r} after the end of the expression")

    def either(self, depth: int) -> Expression:
        return self._chain(("||",), lambda: self._both(depth))

    def _both(self, depth: int) -> Expression:
        return self._chain(("&&",), lambda: self._equal(depth))

    def _equal(self, depth: int) -> Expression:
        return self._chain(("==", "!="), lambda: self._ordered(depth))

    def _ordered(self, depth: int) -> Expression:
        return self._chain(("<", "<=", ">", ">="), lambda: self._not(depth))

    def _chain(self, signs: tuple[str, ...], operand: Callable[[], Expression]) -> Expression:
        tree = operand()
        links = 0
        while sign := self._take(*signs):
            links += 1
            if links > MAX_DEPTH:
                raise self._error(f"more than {MAX_DEPTH} {sign} in a row")
            tree = Binary(sign, tree, operand())
        return tree

    def _not(self, depth: int) -> Expression:
        if depth > self._max_depth:
            raise self._error(f"nested more than {MAX_DEPTH} deep")
        if self._take("!"):
            return Not(self._not(depth + 1))
        return self._atom(depth)

    def _atom(self, depth: int) -> Expression:
        token = self._here
        if self._take("("):
            tree = self.either(depth + 1)
            self._close()
            return tree
        if token.kind == "string":
            self._position += 1
            return Literal(token.text[1:-1].replace("''", "'"))
        if token.kind == "number":
            self._position += 1
            return Literal(number_of(token.text))
        if token.kind == "word":
            self._position += 1
            return self._word(token, depth)
        raise self._error("the expression is incomplete" if token.kind == "end" else f"{token.text!r} is unexpected here")

    def _close(self) -> None:
        if not self._take(")"):
            raise self._error("expected a )")

    def _word(self, token: _Token, depth: int) -> Expression:
        word = token.text
        if word in ("true", "false"):
            return Literal(word == "true")
        if word == "null":
            return Literal(None)
        if self._take("("):
            return self._call(token, depth)
        if self._take("."):
            return self._name(token)
        if word.lower() in {name.lower() for name in _FUNCTIONS}:
            raise self._error(f"{word} is a function: write {word}()", token)
        raise self._error(f"{word!r} is unknown; write strings in 'single quotes' and inputs as inputs.NAME", token)

    def _call(self, token: _Token, depth: int) -> Call:
        function = token.text.lower()
        if function not in {name.lower() for name in _FUNCTIONS}:
            raise self._error(f"there is no function {token.text!r}{nearest(token.text, _FUNCTIONS)}", token)
        arguments: list[Expression] = []
        if not self._take(")"):
            arguments.append(self.either(depth + 1))
            while self._take(","):
                arguments.append(self.either(depth + 1))
            self._close()
        expected = 0 if function in STATUS_FUNCTIONS else 2
        if len(arguments) != expected:
            raise self._error(f"{token.text}() takes {expected or 'no'} arguments, got {len(arguments)}", token)
        return Call(function, tuple(arguments))

    def _name(self, token: _Token) -> Name:
        context, name = token.text, self._here
        if context not in ("inputs", "github", "env"):
            hint = nearest(context, ("inputs", "github", "env"))
            raise self._error(f"{context!r} is unknown; the contexts are inputs, github and env{hint}", token)
        if name.kind != "word":
            raise self._error(f"expected a name after {context}.")
        self._position += 1
        if context == "github" and name.text not in GITHUB_NAMES:
            hint = nearest(name.text, GITHUB_NAMES) or "; there are " + ", ".join(GITHUB_NAMES)
            raise self._error(f"there is no github.{name.text} here{hint}", name)
        return Name(context, name.text, token.start, name.start + len(name.text))


def _end_of_piece(text: str, start: int) -> int:
    """Return the offset of the `}}` that closes the `${{` before `start`, ignoring those inside strings."""
    quoted = False
    for position in range(start, len(text)):
        if text[position] == "'":
            quoted = not quoted
        elif not quoted and text.startswith("}}", position):
            return position
    raise InvalidExpression("a ${{ without its }}", start - 2)


def pieces_of(text: str, *, max_length: int = MAX_LENGTH) -> Iterator[tuple[str, int | None]]:
    """Yield literal text with None, and the contents of each `${{ }}` with their offset."""
    if len(text) > max_length:
        raise InvalidExpression(f"an expression of more than {max_length} characters", 1)
    position = 0
    while (found := text.find("${{", position)) >= 0:
        if found > position:
            yield text[position:found], None
        end = _end_of_piece(text, found + 3)
        yield text[found + 3 : end], found + 3
        position = end + 2
    if position < len(text):
        yield text[position:], None


def number_of(text: str) -> float:
    sign, digits = (-1, text[1:]) if text[0] == "-" else (1, text.removeprefix("+"))
    return sign * (float(int(digits[:34], 16)) if digits.startswith("0x") else float(digits))


def is_number(text: str) -> bool:
    """Return whether the whole text is one number literal."""
    match = _TOKEN.fullmatch(text)
    return match is not None and match.lastgroup == "number"


# --- entry points ----------------------------------------------------------------------------------------------------

_TEXT_FUNCTIONS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda text, part: part in text,
    "startswith": lambda text, part: text.startswith(part),
    "endswith": lambda text, part: text.endswith(part),
}


def check(text: str, *, inputs: Collection[str] | None = None) -> None:
    """Raise InvalidExpression for a condition that `evaluate` wouldn't accept. With `inputs`, also for other `inputs.NAME`."""
    if len(text) > MAX_LENGTH:
        raise InvalidExpression(f"an expression of more than {MAX_LENGTH} characters", 1)
    for name in names(parse_at(*body_of(text), max_depth=MAX_DEPTH)):
        _check_input(name, inputs)


def evaluate(
    text: str,
    *,
    status: str,
    inputs: Mapping[str, str],
    github: Mapping[str, str],
    env: Mapping[str, str] | None = None,
) -> bool:
    """Return whether a task with this condition runs. `status` is the run's status: success, failure or cancelled.

    Missing names are null, as in GitHub Actions. Raises InvalidExpression as `check` does.
    """
    tree = parse(text)
    contexts = {"inputs": inputs, "github": github, "env": env or {}}
    if not uses_status(tree) and status != "success":
        return False
    return _truth(_evaluate(tree, status, contexts))


def bind(text: str, values: Mapping[str, bool | float]) -> str:
    """Replace `inputs.NAME` of booleans and numbers by their values, which are known when planning.

    A plan stores inputs as text, and the text `false` would be true.
    """
    parts: list[str] = []
    done = 0
    for name in sorted(names(parse(text)), key=lambda found: found.start):
        if name.context == "inputs" and name.name in values:
            value = values[name.name]
            parts += [text[done : name.start], str(value).lower() if isinstance(value, bool) else f"{value:.15g}"]
            done = name.end
    return "".join([*parts, text[done:]])


def check_interpolation(text: str, *, inputs: Collection[str] | None = None) -> None:
    """Raise InvalidExpression for a text that `interpolate` wouldn't accept."""
    for piece, start in pieces_of(text):
        if start is not None:
            check_piece(piece, start, inputs=inputs)


def check_piece(piece: str, start: int, *, inputs: Collection[str] | None) -> None:
    """Raise InvalidExpression for the contents of a `${{ }}`, at that offset, which `evaluate_piece` wouldn't accept."""
    if len(piece) > MAX_LENGTH:
        raise InvalidExpression(f"an expression of more than {MAX_LENGTH} characters", start + 1)
    tree = parse_at(piece, start)
    if uses_status(tree):
        raise InvalidExpression("success(), failure(), always() and cancelled() are allowed only in if:", start + 1)
    for name in names(tree):
        _check_input(name, inputs)


def interpolate(text: str, *, inputs: Mapping[str, str], github: Mapping[str, str]) -> str:
    """Replace the expressions in a text such as `deploy-${{ github.base_ref }}`. Raises InvalidExpression."""
    check_interpolation(text)
    return "".join(
        piece if start is None else evaluate_piece(piece, start, inputs=inputs, github=github)
        for piece, start in pieces_of(text)
    )


def evaluate_piece(piece: str, start: int, *, inputs: Mapping[str, str], github: Mapping[str, str]) -> str:
    """Return the value of the contents of a `${{ }}`, at that offset, as text. Raises InvalidExpression."""
    contexts: dict[str, Mapping[str, str]] = {"inputs": inputs, "github": github, "env": {}}
    return _string(_evaluate(parse_at(piece, start), "success", contexts))


def combine(outer: str, inner: str) -> str:
    """Return a condition that holds if both hold, each with its implied `success()`. Raises InvalidExpression."""
    return " && ".join(
        f"({body_of(text)[0].strip()})" if uses_status(parse(text)) else f"(success() && ({body_of(text)[0].strip()}))"
        for text in (outer, inner)
    )


# --- walking trees ---------------------------------------------------------------------------------------------------


def names(tree: Expression) -> Iterator[Name]:
    """Yield every `context.NAME` of a condition."""
    match tree:
        case Name():
            yield tree
        case Call():
            for argument in tree.arguments:
                yield from names(argument)
        case Not():
            yield from names(tree.operand)
        case Binary():
            yield from names(tree.left)
            yield from names(tree.right)


def uses_status(tree: Expression) -> bool:
    """Return whether the condition uses the run's status; if not, it means `success() && (…)`."""
    match tree:
        case Call():
            return tree.function in STATUS_FUNCTIONS or any(map(uses_status, tree.arguments))
        case Not():
            return uses_status(tree.operand)
        case Binary():
            return uses_status(tree.left) or uses_status(tree.right)
    return False


def _check_input(name: Name, inputs: Collection[str] | None) -> None:
    if name.context == "inputs" and inputs is not None and name.name not in inputs:
        declared = nearest(name.name, inputs) or (f"; there are {', '.join(inputs)}" if inputs else "; the workflow has none")
        raise InvalidExpression(f"there is no input {name.name!r}{declared}", name.start + 1)


# --- evaluation --------------------------------------------------------------------------------------------------


def _evaluate(tree: Expression, status: str, contexts: Mapping[str, Mapping[str, str]]) -> Value:
    match tree:
        case Literal():
            return tree.value
        case Name():
            return contexts[tree.context].get(tree.name)
        case Not():
            return not _truth(_evaluate(tree.operand, status, contexts))
        case Call():
            if tree.function == "always":
                return True
            if tree.function in STATUSES:
                return status == tree.function
            text, part = (_string(_evaluate(argument, status, contexts)).lower() for argument in tree.arguments)
            return _TEXT_FUNCTIONS[tree.function](text, part)
        case Binary():
            left = _evaluate(tree.left, status, contexts)
            if tree.operator == "&&":
                return _evaluate(tree.right, status, contexts) if _truth(left) else left
            if tree.operator == "||":
                return left if _truth(left) else _evaluate(tree.right, status, contexts)
            return _compare(tree.operator, left, _evaluate(tree.right, status, contexts))


def _compare(operator: str, left: Value, right: Value) -> bool:
    if isinstance(left, str) and isinstance(right, str):
        return _ordering(operator, left.upper(), right.upper())
    return _ordering(operator, _as_number(left), _as_number(right))


def _ordering(operator: str, left: str | float, right: str | float) -> bool:
    if operator == "==":
        return left == right
    if operator == "!=":
        return left != right
    # `_compare` ensures that both are text or both are numbers. NaN is neither less nor greater than anything.
    if isinstance(left, str) and isinstance(right, str):
        below, above = left < right, left > right
    else:
        below, above = float(left) < float(right), float(left) > float(right)
    if operator == "<":
        return below
    if operator == ">":
        return above
    return left == right or (below if operator == "<=" else above)


def _as_number(value: Value) -> float:
    """Convert a value for a comparison of different types; text that isn't a number becomes NaN, which equals nothing."""
    if value is None:
        return 0.0
    if isinstance(value, str):
        text = value.strip()
        if not text:
            return 0.0
        return number_of(text) if is_number(text) else math.nan
    return float(value)


def _truth(value: Value) -> bool:
    if isinstance(value, float):
        return not math.isnan(value) and value != 0
    return bool(value)


def _string(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.15g}"
    return value
