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

MACHINE_SIZES = ("small", "medium", "large")
"""Each provider has its own table of what a size means."""
MACHINE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""A label of RFC 1123, section 2.1."""
MACHINE_NAME_RULE = "lower-case letters, digits and inner dashes, at most 63 characters"

ENVIRONMENT_VALUE_BYTES = 120 * 1024
"""The longest value of an environment variable: Linux allows 128 KiB for one string of execve(2), the name included."""
