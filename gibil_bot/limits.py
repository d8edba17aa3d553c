"""Limits and names that several packages share."""

from __future__ import annotations

import re

REPOSITORY_FILE = ".gibil.yml"
WORKFLOW_FOLDER = ".gibil/workflows"
"""The folder of a repository's workflow files."""
WORKFLOW_FILE_BYTES = 64 * 1024
"""The largest workflow file. Readers stop one byte later, so that planning can reject a larger file by its name."""
MOST_WORKFLOW_FILES = 30
"""Maximum number of files of WORKFLOW_FOLDER that are read, the first ones by name."""

_BRANCH = re.compile(r"(?![-+/])[^\x00-\x20\x7f~^:?*\[\\]{1,200}(?<![/.])")

MOST_GLOB = 500
"""The longest glob of paths in a repository, in characters."""

APPLY_PATCH = "apply-patch"
"""Identifier of the button on a check run that applies the run's patch."""

MACHINE_SIZES = ("small", "medium", "large")
"""Each provider has its own table of what a size means."""
MACHINE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A label of RFC 1123, section 2.1."""
MACHINE_NAME_RULE = "lower-case letters, digits and inner dashes, at most 63 characters"

ENVIRONMENT_VALUE_BYTES = 120 * 1024
"""The longest value of an environment variable: Linux allows 128 KiB for one string of execve(2), the name included."""


def is_branch_name(name: str) -> bool:
    """Return whether a branch may have that name (git-check-ref-format(1))."""
    parts = name.split("/")
    return (
        _BRANCH.fullmatch(name) is not None
        and ".." not in name
        and "@{" not in name
        and not any(part in ("", "@") or part.startswith(".") or part.endswith(".lock") for part in parts)
    )
