"""Starting the daemon on demand, once at a time.

The starting process holds `starting.lock` until the daemon answers or has failed, even if the command that wanted the daemon
has ended. Cheap to import, because a command starts the daemon before it imports most other modules.
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
"""How long a daemon without machines runs."""

_PASSED_ON = ("HOME", "USER", "LOGNAME", "LANG", "XDG_RUNTIME_DIR")
"""Environment variables that the daemon gets: no settings and no secrets of the bot."""


def begin(data_dir: Path) -> None:
    """Start a daemon in the background if none answers. Never raises: `start` reports what went wrong."""
    paths = LocalPaths(data_dir.absolute())
    try:
        paths.prepare()
        lock = os.open(paths.local / "starting.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except (OSError, GibilError):
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _answers(paths):
            # The child inherits the lock with the descriptor. It isn't waited for: it ends before us or is orphaned.
            os.set_inheritable(lock, True)
            command = _command(paths, IDLE_S, lock)
            null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            actions = [(os.POSIX_SPAWN_DUP2, null, number) for number in range(3)]
            os.posix_spawn(command[0], command, _environment(), file_actions=actions)
            os.close(null)
    except OSError:
        pass
    finally:
        os.close(lock)


def start(paths: LocalPaths, idle_s: float) -> None:
    """Start a daemon unless another process is doing that; returns when it answers. Blocking. Raises ProviderError."""
    import subprocess

    paths.prepare()
    with locked(paths.local / "starting.lock", wait_s=START_S) as locked_by_us:
        if not locked_by_us:
            raise ProviderError(
                f"another process has been starting the local-machine daemon for {START_S:.0f} s; see {paths.local}/keeper.log"
            )
        if _answers(paths):
            return
        try:
            done = subprocess.run(
                _command(paths, idle_s),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=START_S,
                check=False,
                cwd="/",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ProviderError(f"cannot start the local-machine daemon: {error}") from error
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise ProviderError(f"the local-machine daemon did not start: {lines[-1] if lines else done.returncode}")


def _command(paths: LocalPaths, idle_s: float, *lock: int) -> list[str]:
    return start_python("gibil_bot.providers.local.daemon", str(paths.data_dir), str(idle_s), *map(str, lock))


def _environment() -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**passed_on, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _answers(paths: LocalPaths) -> bool:
    daemon = read_daemon(paths)
    if daemon is None:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5)
        try:
            probe.connect(daemon.socket)
        except OSError:
            return False
    return True
