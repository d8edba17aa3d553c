"""The language of `if:` and of `${{ … }}` pieces: GitHub Actions' expressions, the part that a plan needs.

Literals, comparison and truth follow https://docs.github.com/en/actions/reference/workflows-and-actions/expressions:
`==` is loose, strings compare without case, and an expression without a status function means `success() && (…)`.
Everything is parsed by hand into a small tree (`syntax.py`); nothing of it ever reaches `eval`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping

from gibil_bot.humanize import nearest
from gibil_bot.planning.syntax import (
    GITHUB_NAMES,
    MAX_DEPTH,
    MAX_LENGTH,
    STATUS_FUNCTIONS,
    STATUSES,
    Binary,
    Call,
    Expression,
    InvalidExpression,
    Literal,
    Name,
    Not,
    Value,
    body_of,
    is_number,
    number_of,
    parse,
    parse_at,
    pieces_of,
)

__all__ = [
    "GITHUB_NAMES",
    "MAX_DEPTH",
    "MAX_LENGTH",
    "InvalidExpression",
    "bind",
    "check",
    "check_interpolation",
    "combine",
    "evaluate",
    "interpolate",
]

_TEXT_FUNCTIONS: dict[str, Callable[[str, str], bool]] = {
    "contains": lambda text, part: part in text,
    "startswith": lambda text, part: text.startswith(part),
    "endswith": lambda text, part: text.endswith(part),
}


def check(text: str, *, inputs: Collection[str] | None = None) -> None:
    """Refuse what `evaluate` could not take. With `inputs`, an `inputs.NAME` beyond them is refused too.

    Raises InvalidExpression.
    """
    if len(text) > MAX_LENGTH:
        raise InvalidExpression(f"an expression of more than {MAX_LENGTH} characters", 1)
    for name in _names(parse_at(*body_of(text), deepest=MAX_DEPTH)):
        _check_input(name, inputs)


def evaluate(
    text: str,
    *,
    status: str,
    inputs: Mapping[str, str],
    github: Mapping[str, str],
    env: Mapping[str, str] | None = None,
) -> bool:
    """Whether a task with this condition runs. `status` is how the run stands: success, failure or cancelled.

    Names that are absent are null, as in GitHub Actions. Raises InvalidExpression for what `check` refuses.
    """
    tree = parse(text)
    contexts = {"inputs": inputs, "github": github, "env": env or {}}
    if not _uses_status(tree) and status != "success":
        return False
    return _truth(_evaluate(tree, status, contexts))


def bind(text: str, values: Mapping[str, bool | float]) -> str:
    """The condition with `inputs.NAME` of booleans and numbers replaced by their values, which are known when planning.

    A plan carries inputs as text, and the text `false` would be true.
    """
    parts: list[str] = []
    done = 0
    for name in sorted(_names(parse(text)), key=lambda found: found.start):
        if name.context == "inputs" and name.name in values:
            value = values[name.name]
            parts += [text[done : name.start], str(value).lower() if isinstance(value, bool) else f"{value:.15g}"]
            done = name.end
    return "".join([*parts, text[done:]])


def check_interpolation(text: str, *, inputs: Collection[str] | None = None) -> None:
    """Refuse what `interpolate` could not take. Raises InvalidExpression."""
    for piece, start in pieces_of(text):
        if start is None:
            continue
        tree = parse_at(piece, start)
        if _uses_status(tree):
            raise InvalidExpression("success(), failure(), always() and cancelled() belong into if:", start + 1)
        for name in _names(tree):
            _check_input(name, inputs)


def interpolate(text: str, *, inputs: Mapping[str, str], github: Mapping[str, str]) -> str:
    """`deploy-${{ github.base_ref }}` with its pieces filled in. Raises InvalidExpression."""
    check_interpolation(text)
    contexts: dict[str, Mapping[str, str]] = {"inputs": inputs, "github": github, "env": {}}
    return "".join(
        piece if start is None else _string(_evaluate(parse_at(piece, start), "success", contexts))
        for piece, start in pieces_of(text)
    )


def combine(outer: str, inner: str) -> str:
    """A condition that holds where both hold, each with the `success()` that it implies. Raises InvalidExpression."""
    return " && ".join(
        f"({body_of(text)[0].strip()})" if _uses_status(parse(text)) else f"(success() && ({body_of(text)[0].strip()}))"
        for text in (outer, inner)
    )


# --- looking at trees ------------------------------------------------------------------------------------------------


def _names(tree: Expression) -> Iterator[Name]:
    match tree:
        case Name():
            yield tree
        case Call():
            for argument in tree.arguments:
                yield from _names(argument)
        case Not():
            yield from _names(tree.operand)
        case Binary():
            yield from _names(tree.left)
            yield from _names(tree.right)


def _uses_status(tree: Expression) -> bool:
    match tree:
        case Call():
            return tree.function in STATUS_FUNCTIONS or any(map(_uses_status, tree.arguments))
        case Not():
            return _uses_status(tree.operand)
        case Binary():
            return _uses_status(tree.left) or _uses_status(tree.right)
    return False


def _check_input(name: Name, inputs: Collection[str] | None) -> None:
    if name.context == "inputs" and inputs is not None and name.name not in inputs:
        declared = nearest(name.name, inputs) or (f"; there are {', '.join(inputs)}" if inputs else "; the workflow has none")
        raise InvalidExpression(f"there is no input {name.name!r}{declared}", name.start + 1)


# --- meaning -----------------------------------------------------------------------------------------------------


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
    # Both are text, or both are numbers: `_compare` sees to it, and a NaN is neither below nor above anything.
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
    """How a comparison of different types sees a value; text that is no number is NaN, which equals nothing."""
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
