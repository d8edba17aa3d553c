"""The JSON Schema for editors: the shipped files are the printed ones, and they agree with the parser on the samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from gibil_bot.planning.json_schema import FILES, schema_text
from gibil_bot.planning.yaml_nodes import Node, read_yaml
from gibil_bot.workflows_dir import shipped_workflows
from tests.doubles.patience import patient

SAMPLES = Path(__file__).parent / "samples"

BEYOND_A_SCHEMA = {
    # Only the parser can check these: semantics, and details of YAML that JSON doesn't have.
    "catastrophic-pattern", "choice-without-options", "condition", "condition-github", "default-outside-options",
    "duplicate-key", "group", "inputs-collide", "merge-key", "needs-default", "never", "outside", "reserved-command",
    "reserved-env", "secret-and-env", "shell", "tab", "tag-condition", "task-without-run", "two-documents", "uses-twice",
}  # fmt: skip


def plain(node: Node) -> Any:
    if node.kind == "scalar":
        return node.value()
    if node.kind == "list":
        return [plain(item) for item in node.items]
    return {key.text: plain(value) for key, value in node.entries}


def validator(path: Path) -> jsonschema.Draft202012Validator:
    name = "gibil.schema.json" if path.name == ".gibil.yml" else "workflow.schema.json"
    schema = json.loads((shipped_workflows() / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("name", list(FILES))
def test_the_shipped_schema_matches_the_tables(name: str) -> None:
    assert (shipped_workflows() / name).read_text() == schema_text(*FILES[name]), (
        "run python -m gibil_bot.planning.json_schema workflows"
    )


def test_the_module_writes_both_files(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gibil_bot.planning.json_schema", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    "path",
    [*sorted((SAMPLES / "valid").iterdir()), *sorted(shipped_workflows().glob("*.yml"))],
    ids=lambda path: path.name,
)
def test_the_schema_accepts_what_the_parser_accepts(path: Path) -> None:
    document = plain(read_yaml(path.name, path.read_bytes()))
    assert [error.message for error in validator(path).iter_errors(document)] == []


@pytest.mark.parametrize(
    "path",
    [path for path in sorted((SAMPLES / "broken").rglob("*")) if path.is_file() and path.stem not in BEYOND_A_SCHEMA],
    ids=lambda path: f"{path.parent.name}/{path.name}",
)
def test_the_schema_rejects_what_the_parser_rejects_where_it_can(path: Path) -> None:
    document = plain(read_yaml(path.name, path.read_bytes()))
    assert not validator(path).is_valid(document)
