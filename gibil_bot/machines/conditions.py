"""Conditions (`if:`) for a machine that decides by itself: evaluated here where that can be done, else translated into awk.

`env.NAME` may be what an earlier task wrote to GITHUB_ENV, so only the machine knows it. Every machine has awk, which knows
strings, numbers and the environment. Its functions are in scripts/provision.sh and mean what planning/expressions.py does, but
for upper and lower case of letters beyond ASCII.
"""

from __future__ import annotations

from gibil_bot.planning import expressions
from gibil_bot.planning.expressions import (
    STATUS_FUNCTIONS,
    STATUSES,
    Binary,
    Call,
    Expression,
    Literal,
    Name,
    Not,
    Value,
    parse,
)  # fmt: skip


def wanted_after(status: str, condition: str) -> str:
    """Whether a task with this condition runs after `success` or `failure`: yes, no, or an expression for gibil_holds."""
    tree = parse(condition)
    if not _uses_environment(tree) or (status != "success" and not expressions.uses_status(tree)):
        return "yes" if expressions.evaluate(condition, status=status, inputs={}, github={}) else "no"
    return _awk(tree, status)


def _awk(tree: Expression, status: str) -> str:
    match tree:
        case Literal():
            return _value(tree.value)
        case Name():
            return f"env({_string(tree.name)})" if tree.context == "env" else _value(None)
        case Not():
            return f"not({_awk(tree.operand, status)})"
        case Call():
            if tree.function in STATUS_FUNCTIONS:
                return _value(tree.function == "always" or (tree.function in STATUSES and tree.function == status))
            return f"{tree.function}({', '.join(_awk(argument, status) for argument in tree.arguments)})"
        case Binary():
            left, right = _awk(tree.left, status), _awk(tree.right, status)
            if tree.operator in ("&&", "||"):
                return f"{'both' if tree.operator == '&&' else 'either'}({left}, {right})"
            return f"compare({_string(tree.operator)}, {left}, {right})"


def _value(value: Value) -> str:
    if value is None:
        return _string("z")
    if isinstance(value, bool):
        return _string(f"b{value:d}")
    return _string(f"s{value}" if isinstance(value, str) else f"n{value!r}")


def _string(text: str) -> str:
    """One of awk's, whatever is in it."""
    plain = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in text.encode())
    return f'"{plain}"'


def _uses_environment(tree: Expression) -> bool:
    return any(name.context == "env" for name in expressions.names(tree))
