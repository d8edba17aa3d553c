"""Starting the keeper: by whoever needs it, once at a time.

`starting.lock` is held while one comes up, by the process that brings it up: so it is free again as soon as the keeper answers
or has failed, whatever became of who asked for it. Light to import: a command starts the keeper before it knows much else.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from gibil_bot.errors import GibilError, ProviderError
from gibil_bot.providers.local.isolated_python import start_python
from gibil_bot.providers.local.paths import LocalPaths, locked, read_daemon

START_S = 60.0
IDLE_S = 30.0
"""How long a keeper without machines stays."""

_PASSED_ON = ("HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR")
"""Of our environment to the keeper: it holds no setting and no secret of the bot's."""


def begin(data_dir: Path) -> None:
    """Let a keeper come up if none answers, and do not wait for it. What goes wrong is found by `start`. Never raises."""
    home = LocalPaths(data_dir.absolute())
    try:
        home.prepare()
        lock = os.open(home.local / "starting.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, GibilError):
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _answers(home):
            # The lock goes along with the descriptor. Nobody waits for the process: it ends before we do, or is orphaned.
            os.set_inheritable(lock, True)
            command = _command(home, IDLE_S, lock)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
            os.posix_spawn(command[0], command, _environment(), file_actions=actions)
            os.close(null)
    except OSError:
        pass
    finally:
        os.close(lock)


def start(home: LocalPaths, idle_s: float) -> None:
    """Start a keeper, unless somebody else is just doing that; returns when it answers. Blocking. Raises ProviderError."""
    import subprocess

    home.prepare()
    with locked(home.local / "starting.lock", wait_s=START_S) as mine:
        if not mine:
            raise ProviderError(f"somebody has been starting a keeper for {START_S:.0f} s; see {home.local}/keeper.log")
        if _answers(home):
            return
        try:
            done = subprocess.run(
                _command(home, idle_s),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=START_S,
                check=False,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProviderError(f"the keeper of local machines cannot be started: {error}") from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise ProviderError(f"the keeper of local machines did not start: {lines[-1] if lines else done.returncode}")


def _command(home: LocalPaths, idle_s: float, *lock: int) -> list[str]:
    return start_python("gibil_bot.providers.local.daemon", str(home.data_dir), str(idle_s), *map(str, lock))


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**kept, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _answers(home: LocalPaths) -> bool:
    keeper = read_daemon(home)
    if keeper is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(keeper.socket)
        except OSError:
            return False
    return True
