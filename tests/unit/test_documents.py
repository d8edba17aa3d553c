"""The links in documents lead to existing files, and so do the file names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", ".github/*.md", "gibil_bot/**/*.md", "workflows/**/*.md", "tests/**/*.md")
    for path in REPOSITORY.glob(pattern)
    if "demo/project" not in path.as_posix()
)
TOP = {"LICENSE", "README.md", "app.yml", "gibil_bot", "pyproject.toml", "tests", "workflows"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_relative_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_every_decision_is_short_and_names_its_file() -> None:
    records = (REPOSITORY / "gibil_bot" / "decisions.md").read_text().split("\n## ")[1:]
    assert len(records) >= 15
    for record in records:
        title, *lines = record.strip().splitlines()
        assert len(list(filter(None, lines))) <= 8, title
        for part in ("Context: ", "Decision: ", "Consequences: "):
            assert f"\n{part}" in record, title
        named = re.search(r"\(`(.+)`\)$", title)
        assert named is not None, title
        assert (REPOSITORY / "gibil_bot" / named[1]).is_file(), title


def test_the_top_folder_has_only_the_agreed_files() -> None:
    here = {path.name for path in REPOSITORY.iterdir() if not path.name.startswith(".")}
    generated = {"gibil_bot.egg-info", "build", "dist"}
    assert here - generated == TOP
