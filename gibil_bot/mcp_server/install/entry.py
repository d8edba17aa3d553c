"""How a client starts `gibil mcp`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def entry() -> dict[str, object]:
    """Return the entry of a client's configuration. It works in any working directory and has no secret."""
    command, arguments = _command()
    env = {}
    if folder := os.environ.get("GIBIL_DATA_DIR"):
        env["GIBIL_DATA_DIR"] = str(Path(folder).expanduser().absolute())
    return {"type": "stdio", "command": command, "args": arguments, "env": env}


def _command() -> tuple[str, list[str]]:
    """Return the running `gibil`, the one next to this Python, the one in PATH, or this Python."""
    called = Path(sys.argv[0])
    sibling = Path(sys.executable).parent / "gibil"
    candidates = [str(called.with_name("gibil").absolute())] if called.name in ("gibil", "gibil-python") else []
    found = shutil.which("gibil")
    for candidate in (*candidates, str(sibling), *([found] if found else [])):
        if os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return candidate, ["mcp"]
    return sys.executable, ["-m", "gibil_bot", "mcp"]
