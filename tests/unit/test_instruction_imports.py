"""Imports in instruction files, which would include files of an untrusted head."""

from __future__ import annotations

import time

import pytest

from gibil_bot.agents.imports import imported, included
from tests.doubles.patience import patient


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("@README.md and @docs/git.md.", ("README.md", "docs/git.md")),
        ("- @./x\n(@../up/y)\n@z", ("sub/x", "up/y", "sub/z")),
        ("@/etc/passwd @~/x @../../outside @.. @", ()),
        ("`@code` ``@x ` @y`` mail@example.com\n```\n@block\n```\n@after", ("sub/after",)),
        ("@types/node @ada", ("sub/types/node", "sub/ada")),
    ],
)
def test_imports_are_found_as_the_programs_do(text: str, paths: tuple[str, ...]) -> None:
    where = "CLAUDE.md" if text.startswith("@README") else "sub/CLAUDE.md"
    assert imported(where, text) == paths


def test_the_result_imports_nothing() -> None:
    texts = {"CLAUDE.md": "See @a.md, `@b.md` and @head.md!", "a.md": "@CLAUDE.md @b.md", "b.md": "@a.md", "c.md": "unused"}
    text = included("CLAUDE.md", texts)
    assert text == "See `@a.md`, `@b.md` and `@head.md`!\n## a.md\n\n`@CLAUDE.md` `@b.md`\n\n## b.md\n\n`@a.md`\n"
    assert imported("CLAUDE.md", text) == ()


@pytest.mark.parametrize("part", ["@", "`", "@a ", "`@", "``@`", "` ``", "@`"])
def test_hostile_text_takes_little_time(part: str) -> None:
    started = time.process_time()
    included("a", {"a": part * (100_000 // len(part))})
    assert time.process_time() - started < patient(3)
