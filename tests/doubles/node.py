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
