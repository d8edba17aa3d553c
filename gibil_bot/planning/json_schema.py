"""Exports the JSON Schemas of both file kinds, for editors, from the tables that the parser uses.

`python -m gibil_bot.planning.json_schema FOLDER` writes `workflow.schema.json` and `gibil.schema.json` there. `gibil check`
reports what a schema can't express (names in a condition, an input's default against its pattern).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from gibil_bot.planning.file_schema import REPOSITORY, WORKFLOW
from gibil_bot.planning.schema_types import Record

FILES = {"workflow.schema.json": (WORKFLOW, "A gibil workflow"), "gibil.schema.json": (REPOSITORY, "A repository's .gibil.yml")}


def schema_text(record: Record, title: str) -> str:
    """Return the schema as JSON text; the output is deterministic."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **record.schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write_schemas(folder: Path) -> list[Path]:
    """Write both files; return their paths."""
    written = []
    for name, (record, title) in FILES.items():
        path = folder / name
        path.write_text(schema_text(record, title), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m gibil_bot.planning.json_schema FOLDER")
    for path in write_schemas(Path(sys.argv[1])):
        sys.stdout.write(f"{path}\n")
