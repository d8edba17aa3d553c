"""This host among those whose bots share a database: its id, its name, and the lock of its data directory."""

from __future__ import annotations

import re
import secrets
import socket
from pathlib import Path

from gibil_bot.durable_files import create_once
from gibil_bot.errors import ConfigurationError
from gibil_bot.model import Host
from gibil_bot.runs.lock_file import Locked, hold

ID_FILE, LOCK_FILE = "host.id", "serve.lock"
_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)


def this_host(data_dir: Path, url: str) -> Host:
    """Return the host of this data directory; its id is created on first use. Raises ConfigurationError."""
    path = data_dir / ID_FILE
    try:
        if (host_id := _read(path)) is None:
            create_once(path, f"{secrets.token_hex(8)}\n".encode())
            host_id = _read(path) or ""
    except OSError as error:
        raise ConfigurationError((f"{path}: {error.strerror}; set GIBIL_DATA_DIR to a writable directory",)) from None
    if not _ID.fullmatch(host_id):
        raise ConfigurationError((f"{path}: expected 16 hexadecimal digits, got {host_id[:40]!r}; delete the file",))
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", socket.gethostname())[:100]
    return Host(id=host_id, name=name or host_id, url=url)


def known_id(data_dir: Path) -> str:
    """Return the id of the host if it has one, else ""."""
    try:
        return _read(data_dir / ID_FILE) or ""
    except OSError:
        return ""


def hold_data_dir(data_dir: Path) -> int:
    """Let no other `gibil serve` use the data directory until the returned descriptor is closed. Raises ConfigurationError."""
    path = data_dir / LOCK_FILE
    try:
        return hold(path)
    except Locked as error:
        problem = (
            f"the data directory {data_dir} is in use: another `gibil serve` ({error.holder}) holds {path}; "
            "stop it first, or set GIBIL_DATA_DIR to another directory"
        )
    except OSError as error:
        problem = f"{path}: {error.strerror}; set GIBIL_DATA_DIR to a writable directory"
    raise ConfigurationError((problem,))


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii", errors="replace").strip()
    except FileNotFoundError:
        return None
