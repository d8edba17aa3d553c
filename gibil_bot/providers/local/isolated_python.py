"""A Python of its own for a module of this package: with nothing of its starter's, and quick to start."""

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
    """The command that runs `main(*arguments)` of a module of this very package, wherever it lies, in an isolated Python.

    It sees this package, the folders of installed packages that we see, and nothing of its environment or its folder. They are
    handed to it, and Python is kept from looking for them (`-S`): that takes as long as all else of its start.
    """
    folders = [str(Path(__file__).resolve().parents[3])]
    folders += [folder for folder in sys.path if os.path.basename(folder) in ("site-packages", "dist-packages")]
    return [sys.executable, "-IS", "-c", _START, module, os.pathsep.join(folders), *arguments]
