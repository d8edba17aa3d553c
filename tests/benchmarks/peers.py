"""The peers, installed by their ordinary clients into a folder that later runs can reuse."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from gibil_bot.agents.engine import Engine
from tests.benchmarks.comparison import LeftOut

INSTALL_WITHIN_S = 300
PROBOT = "probot@14"
NOX = "nox"
UV = "uv"


class Peers:
    """Each method installs what is missing, and raises LeftOut if that fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def probot(self) -> Path:
        """Return a folder whose node_modules contains Probot."""
        folder = self._folder / "probot"
        if not (folder / "node_modules" / "probot").is_dir():
            npm = _program("npm")
            folder.mkdir(parents=True, exist_ok=True)
            _run([npm, "install", "--no-fund", "--no-audit", "--prefix", str(folder), PROBOT])
        _program("node")
        return folder

    def probot_version(self) -> str:
        package = self.probot() / "node_modules" / "probot" / "package.json"
        node = subprocess.run([_program("node"), "--version"], capture_output=True, text=True, check=True).stdout.strip()
        return f"Probot {json.loads(package.read_text())['version']} on node {node}"

    def nox(self) -> Path:
        """Return the program, installed in a virtual environment of this Python."""
        program = self._folder / "nox" / "bin" / "nox"
        if not program.exists():
            _run([sys.executable, "-m", "venv", str(self._folder / "nox")])
            _run([str(self._folder / "nox" / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", NOX])
        return program

    def claude_code(self, engine: Engine) -> Path:
        """Return the program, of the version that machines have, for this processor."""
        arch = {"x86_64": "x64", "aarch64": "arm64"}.get(platform.machine(), "")
        name = engine.packages[0].name.replace("{arch}", arch)
        program = self._folder / "claude" / "node_modules" / name / "claude"
        if not program.exists():
            (self._folder / "claude").mkdir(parents=True, exist_ok=True)
            npm = [_program("npm"), "install", "--no-fund", "--no-audit", "--prefix", str(self._folder / "claude")]
            _run([*npm, f"{name}@{engine.packages[0].version}"])
        return program

    def uv(self) -> Path:
        """Return the program, installed in a virtual environment of this Python."""
        program = self._folder / "uv" / "bin" / "uv"
        if not program.exists():
            _run([sys.executable, "-m", "venv", str(self._folder / "uv")])
            _run([str(self._folder / "uv" / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", UV])
        return program


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise LeftOut(f"{name} is not installed")
    return path


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_WITHIN_S)
    except (subprocess.SubprocessError, OSError) as error:
        raise LeftOut(f"{' '.join(command[:2])} … failed: {error}") from error
