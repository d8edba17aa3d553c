"""`.ci/words`: the number of words that the project's style replaces."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[2]
PYPROJECT = "[tool.words]\nprose = {}\nidentifiers = {}\n"


@pytest.fixture(scope="module")
def words() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("words", str(REPOSITORY / ".ci" / "words"))
    spec = importlib.util.spec_from_loader("words", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["words"] = module  # dataclasses and named tuples look up their module
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # so that .ci/wordsc isn't written
    loader.exec_module(module)
    sys.dont_write_bytecode = writes
    return module


def found(words: ModuleType, root: Path) -> list[tuple[str, str, int]]:
    pieces = [piece for name in words.files(root) for piece in words.texts(root, name)]
    return [(hit.word, hit.path, hit.line) for piece in pieces for hit in words.hits(piece)]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.slow
def test_the_count_is_within_the_budget(words: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert words.main(["--check"]) == 0, capsys.readouterr().err


def test_words_are_found_in_every_kind_of_prose(words: ModuleType, tmp_path: Path) -> None:
    write(
        tmp_path,
        "gibil_bot/a.py",
        '"""Nobody\nreads it anew."""\n\nx = "#"  # whoever comes\nraise ValueError("a keeper is missing")\n',
    )
    write(tmp_path, "tests/unit/test_a.py", 'def test_nobody_waits() -> None:\n    print("a keeper in a string of a test")\n')
    write(tmp_path, "workflows/README.md", "A desk\n\n```sh\necho keeper\n```\n")
    write(tmp_path, ".ci/run", "#!/bin/sh\n# the keeper\nkeeper=1\n")
    assert found(words, tmp_path) == [
        ("keeper", ".ci/run", 2),
        ("whoever", "gibil_bot/a.py", 4),
        ("somebody", "gibil_bot/a.py", 1),
        ("anew", "gibil_bot/a.py", 2),
        ("keeper", "gibil_bot/a.py", 5),
        ("somebody", "tests/unit/test_a.py", 1),
        ("desk", "workflows/README.md", 1),
    ]


def test_code_and_ordinary_uses_are_not_counted(words: ModuleType, tmp_path: Path) -> None:
    lines = [
        "`keeper.json`",
        "is there a way",
        "takes place",
        "stands for",
        "connection refused",
        "told apart",
        "[a](docs/gate.md)",
    ]
    write(tmp_path, "workflows/README.md", "\n\n".join([*lines, "[a](docs/gate.md)", "forged signatures"]))
    write(tmp_path, "gibil_bot/a.py", 'SQL = "SELECT told FROM outbox"\nkeys = ("keeper", "told")\n')
    assert found(words, tmp_path) == []


def test_the_brand_is_allowed_where_users_meet_it(words: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, "README.md", "# A bot\n\nforges and burns\n\n## Use it\n\nforges\n")
    write(
        tmp_path, "gibil_bot/cli/a.py", '@click.command()\ndef create() -> None:\n    """Forge a machine."""\n    # forge it\n'
    )
    write(tmp_path, "gibil_bot/github/render.py", 'text = "the machine was burned"\n')
    assert found(words, tmp_path) == [("forge", "README.md", 7), ("forge", "gibil_bot/cli/a.py", 4)]


def test_identifiers_and_file_names_are_counted_separately(words: ModuleType, tmp_path: Path) -> None:
    write(
        tmp_path,
        "gibil_bot/keeper.py",
        "class KeeperProcess:\n    def burn_one(self, told: int) -> None:\n        self.gate = told\n        self.kept = 1\n",
    )
    hits = words.identifiers(tmp_path, "gibil_bot/keeper.py")
    assert sorted(hit.text for hit in hits) == ["KeeperProcess", "burn_one", "gate", "keeper", "told"]


def test_the_budget_may_only_fall(words: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "workflows/README.md", "a keeper and a desk\n")
    write(tmp_path, "pyproject.toml", PYPROJECT.format(1, 5))
    at = ["--at", str(tmp_path)]
    assert words.main([*at, "--check"]) == 1
    assert "words: 2 in prose, and the budget in pyproject.toml is 1" in capsys.readouterr().err
    words.main([*at, "--lower"])
    assert "2 is above the budget of 1" in capsys.readouterr().out
    assert words.budget(tmp_path) == {"prose": 1, "identifiers": 5}
    write(tmp_path, "workflows/README.md", "a daemon\n")
    assert words.main([*at, "--check"]) == 0
    words.main([*at, "--lower"])
    assert words.budget(tmp_path) == {"prose": 0, "identifiers": 0}


def test_a_sample_depends_on_its_seed_alone(words: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(REPOSITORY / "gibil_bot" / "planning", tmp_path / "gibil_bot" / "planning")
    printed = []
    for seed in ("1", "1", "2"):
        words.main(["--at", str(tmp_path), "--sample", "20", "--seed", seed])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]
    assert len(printed[0].splitlines()) == 20
