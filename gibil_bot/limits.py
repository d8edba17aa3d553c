"""Limits and names that several rooms share."""

from __future__ import annotations

REPOSITORY_WORKFLOW = ".gibil.yml"
WORKFLOW_FOLDER = ".gibil/workflows"
"""Where a repository keeps its workflow files."""
WORKFLOW_FILE_BYTES = 64 * 1024
"""The largest workflow file. Readers stop one byte later, so that planning can reject a larger file by its name."""
MOST_WORKFLOW_FILES = 30
"""Files of WORKFLOW_FOLDER that are read, the first ones by name."""
ENVIRONMENT_VALUE_BYTES = 120 * 1024
"""The longest value of an environment variable: Linux allows 128 KiB for one string of an execve(2), the name included."""
