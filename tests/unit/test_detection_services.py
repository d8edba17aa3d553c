"""Services of a project's CI: quoted, offered in the suggested `.gibil.yml`, and named when the tests run without them."""

from __future__ import annotations

from gibil_bot.detection.detect import detect
from gibil_bot.detection.project import Project
from gibil_bot.detection.suggestion import from_quotes
from gibil_bot.planning.plan import check_files

WORKFLOW = """
on: push
jobs:
  lint:
    runs-on: ubuntu-latest
    services: { other: { image: "memcached:1" } }
    steps: [{ run: ruff check }]
  test:
    runs-on: ubuntu-latest
    strategy: { matrix: { postgres: ["postgres:14", "postgres:17"] } }
    env: { TZ: UTC, TOKEN: "${{ secrets.TOKEN }}" }
    services:
      db:
        image: ${{ matrix.postgres }}
        env: { POSTGRES_PASSWORD: pass word, OTHER: "${{ secrets.X }}" }
        ports: ["5432:5432", "1:${{ x }}"]
      search: { image: docker.elastic.co/search:8, ports: [9200/tcp] }
      portless: docker.elastic.co/other
      Bad_Name: redis
    steps:
      - run: pip install -e .
      - run: pytest
        env: { DATABASE_URL: postgres://localhost }
"""


def project(workflow: str = WORKFLOW) -> Project:
    files = {
        ".github/workflows/test.yml": workflow.encode(),
        "pyproject.toml": b"[project]\nname = 'x'\n",
        "test_x.py": b"import pytest\n",
    }
    return Project(frozenset(files), files)


def test_services_of_the_job_that_tests_are_quoted_and_suggested() -> None:
    found = detect(project(), "test")
    assert [(quote.command, quote.line) for quote in found.quotes] == [
        ("pytest", 22),
        ("services: postgres:14", 14),
        ("services: docker.elastic.co/search:8", 17),
        ("services: docker.elastic.co/other", 18),
    ]
    for text in (found.suggestion, from_quotes(project(), found.quotes)):
        assert check_files({".gibil.yml": text.encode()}) == ()
        assert (
            """services:
  db: # .github/workflows/test.yml:14 (its CI starts postgres:14)
    image: postgres
    env:
      POSTGRES_PASSWORD: "pass word"
    ports: ["5432:5432"]
  search: # .github/workflows/test.yml:17 (its CI starts docker.elastic.co/search:8)
    image: docker.elastic.co/search:8
    ports: ["9200"]
env:
  TZ: "UTC"
  DATABASE_URL: "postgres://localhost"
"""
            in text
        )
        assert "portless" not in text  # its port isn't known


def test_tests_without_the_services_of_the_ci_begin_with_a_note() -> None:
    found = detect(project(), "test")
    note = ".github/workflows/test.yml:14 (its CI starts postgres:14), which only services of a .gibil.yml start here"
    assert note in found.tasks[-1].run
    assert any(line.startswith("services: none ← .github/workflows/test.yml:14") for line in found.evidence)
    assert "its CI starts" not in detect(project(), "lint").tasks[-1].run


def test_services_that_cannot_be_read_are_left_out() -> None:
    for services in (
        "services: 1",
        "services: [a]",
        "services: { db: { image: { a: b } } }",
        "services: { db: { image: '$x y' } }",
    ):
        workflow = f"jobs:\n  test:\n    runs-on: x\n    {services}\n    steps: [{{ run: pytest }}]\n"
        found = detect(project(workflow), "test")
        assert [quote.command for quote in found.quotes] == ["pytest"]
        assert "services" not in found.suggestion
