"""Node.js with npm packages in a temporary folder, for clients written in JavaScript."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.doubles.patience import patient

MCP_SDK = "@modelcontextprotocol/sdk@1.32.2"
"""The protocol's own client library; exactly one version, so that a red test means a change here."""
MCP_INSPECTOR = "@modelcontextprotocol/inspector@2.12.0"
"""The protocol's own tool for trying servers, as a command line."""

CLAUDE_CODE = "@anthropic-ai/claude-code@2.1.197"
"""The coding agent, whose command line manages MCP servers without an account."""


def claude_code(folder: Path) -> Path:
    """Return the directory of the program `claude`. Skips as `node_folder` does."""
    node_folder(folder, CLAUDE_CODE)
    # npm has not run it: it copies the program for this computer from an optional package.
    script = folder / "node_modules" / "@anthropic-ai" / "claude-code" / "install.cjs"
    done = subprocess.run(["node", script], cwd=folder, capture_output=True, text=True, timeout=patient(60))
    if done.returncode != 0:
        _cannot(f"Claude Code can't be installed here: {(done.stderr or done.stdout).strip()[-500:]}")
    return folder / "node_modules" / ".bin"


def node_folder(folder: Path, *packages: str) -> Path:
    """Return a folder with these packages in `node_modules`. Skips if node, npm or the registry is missing, but never in CI."""
    missing = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if missing:
        _cannot(f"{' and '.join(missing)} is not installed: apt-get install nodejs npm")
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", *packages]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=patient(240))
    except subprocess.TimeoutExpired:
        _cannot("npm did not answer within four minutes")
    if done.returncode != 0:
        _cannot(f"npm could not install {' '.join(packages)}: {done.stderr.strip()[-500:]}")
    return folder


def _cannot(reason: str) -> None:
    if os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"{reason} (in CI this is no reason to skip)")
    pytest.skip(reason)
