"""How a client starts `gibil mcp`."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def entry() -> dict[str, object]:
    """The entry of a client's configuration: works from wherever the client runs. It holds no secret."""
    command, arguments = _command()
    env = {}
    if folder := os.environ.get("GIBIL_DATA_DIR"):
        env["GIBIL_DATA_DIR"] = str(Path(folder).expanduser().absolute())
    return {"type": "stdio", "command": command, "args": arguments, "env": env}


def _command() -> tuple[str, list[str]]:
    """The `gibil` that runs now, or the one in the PATH, or this Python."""
    called = Path(sys.argv[0])
    beside = Path(sys.executable).parent / "gibil"
    candidates = [str(called.absolute())] if called.name == "gibil" else []
    found = shutil.which("gibil")
    for candidate in (*candidates, str(beside), *([found] if found else [])):
        if os.access(candidate, os.X_OK) and Path(candidate).is_file():
            return candidate, ["mcp"]
    return sys.executable, ["-m", "gibil_bot", "mcp"]
