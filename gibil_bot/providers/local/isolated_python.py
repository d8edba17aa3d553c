"""Starting a module of this package in an isolated Python process that starts fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_START = """
import os, sys
module, folders = sys.argv[1:3]
del sys.argv[1:3]
sys.path[:0] = [folder for folder in folders.split(os.pathsep) if folder not in sys.path]
from importlib import import_module
import_module(module).main(*sys.argv[1:])
"""


def start_python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs `main(*arguments)` of a module of this package in an isolated Python.

    Its path has this package and our folders of installed packages, and nothing from its environment or working directory. They
    are passed as arguments, so that Python needn't search for them (`-S`), which would take half of its start.
    """
    folders = [str(Path(__file__).resolve().parents[3])]
    folders += [folder for folder in sys.path if os.path.basename(folder) in ("site-packages", "dist-packages")]
    return [sys.executable, "-IS", "-c", _START, module, os.pathsep.join(folders), *arguments]
