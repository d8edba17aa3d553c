"""Where the workflows are that come with gibil: the one file of this room that looks at the disk."""

from __future__ import annotations

from pathlib import Path

from gibil_bot.limits import WORKFLOW_FILE_BYTES

SHIPPED = Path(__file__).parent / "_workflows"
"""A link to the top-level `workflows/` in a checkout; the files themselves in an installed package."""


def shipped_workflows() -> Path:
    """The folder with the shipped workflows, for an operator who names none."""
    return SHIPPED


def read_workflows(folder: Path) -> dict[str, bytes]:
    """The workflow files of a folder: file name → content, each cut just above the size that planning refuses.

    Raises OSError. Blocks: call it in a thread.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".yml", ".yaml") and not path.name.startswith(".") and path.is_file():
            with path.open("rb") as file:
                found[path.name] = file.read(WORKFLOW_FILE_BYTES + 1)
    return found
