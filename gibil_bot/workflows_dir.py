"""Reads workflow files from disk: the shipped ones and the operator's."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gibil_bot.limits import WORKFLOW_FILE_BYTES
from gibil_bot.planning.workflow import SHIPPED_ENGINES

SHIPPED = Path(__file__).parent / "_workflows"
"""In a checkout, a link to the top-level `workflows/`; in an installed package, the files themselves."""


def shipped_workflows() -> Path:
    """Return the folder of the shipped workflows, the default of GIBIL_WORKFLOWS."""
    return SHIPPED


def read_workflows(folder: Path) -> dict[str, bytes]:
    """Return file name → content of the workflow files in a folder, each cut just above the limit of planning.

    Raises OSError. Blocks: call it in a thread.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".yml", ".yaml") and not path.name.startswith(".") and path.is_file():
            with path.open("rb") as file:
                found[path.name] = file.read(WORKFLOW_FILE_BYTES + 1)
    return found


def engine_names(folder: Path | None) -> tuple[str, ...]:
    """Return the engines that agents may name: the shipped ones, and those of the operator's folder without reading them."""
    names = dict.fromkeys(SHIPPED_ENGINES)
    with contextlib.suppress(OSError):
        paths = sorted(folder.iterdir()) if folder is not None else ()
        names |= {path.stem: None for path in paths if path.suffix in (".yml", ".yaml")}
    return tuple(names)
