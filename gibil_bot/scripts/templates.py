"""The shell programs of this directory: loading them on first use, and replacing their placeholders.

A file begins with its dialect: `#!/bin/sh` if it is installed on a machine as a program, `# shellcheck shell=…` if its text is
passed to a shell. `@NAME@` is a placeholder: a builder passes a value for each of a file's placeholders, and no other. The
builder knows whether a value is a word, which it quotes, or shell text. Values that users wrote are assignments or environment
variables.
"""

from __future__ import annotations

import functools
import re

_PLACEHOLDER = re.compile(r"@([A-Z_]+)@")


@functools.cache
def text(name: str) -> str:
    """Return the text of `name`.sh, without comments and lines for shellcheck. It ends with one newline.

    A program keeps its comments, because people may read it on the machine.
    """
    from importlib import resources  # 8 ms, and `gibil run` needs no file

    lines = resources.files(__package__).joinpath(f"{name}.sh").read_text("utf-8").split("\n")
    dropped = "# shellcheck " if lines[0].startswith("#!") else "#"
    shown = [line for line in lines if not line.lstrip(" ").startswith(dropped)]
    return "\n".join(shown).strip("\n") + "\n"


def fill(template: str, **values: str) -> str:
    """Replace each `@NAME@` in one pass, so a value that looks like a placeholder stays as it is.

    Raises KeyError for a placeholder without a value, and ValueError for a value without a placeholder.
    """
    filled = _PLACEHOLDER.sub(lambda match: values[match[1]], template)
    if unused := values.keys() - set(_PLACEHOLDER.findall(template)):
        raise ValueError(f"no placeholder for {', '.join(sorted(unused))}")
    return filled


def script(name: str, **values: str) -> str:
    """Return the text of `name`.sh with its placeholders replaced. Raises as `fill` does."""
    return fill(text(name), **values)
