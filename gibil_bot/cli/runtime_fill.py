"""Stores what a run had to install in a separate process, after the command that the user waited for has ended."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gibil_bot.config import Settings

_LOG = "runtimes.log"
_NICE = 10
_MOST_S = 3600


def start(settings: Settings, trees: tuple[str, ...]) -> int | None:
    """Start the process and return its id, or None if nothing is missing, one is running or it can't be started."""
    from gibil_bot.providers.local.isolated_python import start_python
    from gibil_bot.wiring import missing_runtimes

    try:
        if not missing_runtimes(settings, trees):
            return None
        command = start_python(__name__, *trees)
        local = settings.data_dir.absolute() / "local"
        log = os.open(local / _LOG, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The process inherits the lock as its output, so there is one at a time, and none once it was killed.
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(log, 0)
            actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate((null, log, log))]
            env = {**os.environ, "GIBIL_DATA_DIR": str(settings.data_dir.absolute())}
            return os.posix_spawn(command[0], command, env, file_actions=actions, setsid=True)
        finally:
            os.close(log)
            os.close(null)
    except OSError:
        return None


def main(*trees: str) -> None:
    import asyncio
    import logging

    from gibil_bot.config import load_settings
    from gibil_bot.wiring import store_missing_runtimes

    settings = load_settings()
    os.nice(_NICE)
    os.chdir("/")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    log = logging.getLogger("gibil.runtimes")
    log.setLevel(logging.INFO)
    try:
        asyncio.run(asyncio.wait_for(store_missing_runtimes(settings, trees), _MOST_S))
    except TimeoutError:
        log.warning("ended after %d minutes; a later run stores the rest", _MOST_S // 60)
