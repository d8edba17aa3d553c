"""The real bot as a process: `python -m gibil_bot serve` on a temporary data directory."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.errors import GibilError

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
LISTENING = "listening on "


class BotFailed(GibilError):
    """The bot ended, or doesn't listen."""

    code = "DEMO_BOT"


class BotProcess:
    """The running bot: its address and the end of its log."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._lines: deque[str] = deque(maxlen=200)
        self._listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read())
        self.pid = process.pid
        self.url = ""

    @property
    def ended(self) -> bool:
        return self._process.returncode is not None

    def log_tail(self, lines: int = 25) -> list[str]:
        return list(self._lines)[-lines:]

    async def _read(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            self._lines.append(text)
            if LISTENING in text and not self._listening.done():
                self._listening.set_result(text.rpartition(LISTENING)[2].split()[0])
        if not self._listening.done():
            self._listening.set_exception(BotFailed("the bot ended before it was listening" + self._log_excerpt()))

    async def wait_until_listening(self) -> None:
        """Wait until the bot listens. Raises BotFailed with the bot's last log lines."""
        try:
            self.url = await asyncio.wait_for(self._listening, START_WITHIN_S)
        except TimeoutError:
            raise BotFailed(f"the bot was not listening within {START_WITHIN_S:.0f} s" + self._log_excerpt()) from None

    def _log_excerpt(self) -> str:
        return f"; its last log lines: {' / '.join(self.log_tail(8)) or 'none'}"

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if it doesn't end in time."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
            try:
                await asyncio.wait_for(self._process.wait(), STOP_WITHIN_S)
                break
            except TimeoutError:
                continue
        await self._reading


def bot_environment(github: GitHubDouble, data_dir: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return the bot's settings, `more` of them included, without those of the user's own bot."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}
    return own | {
        "GIBIL_DATA_DIR": str(data_dir),
        "GIBIL_PROVIDER": "local",
        "GIBIL_GITHUB_URL": github.url,
        "GIBIL_GITHUB_APP_ID": str(github.app_id),
        "GIBIL_GITHUB_PRIVATE_KEY": github.private_key_pem,
        "GIBIL_GITHUB_WEBHOOK_SECRET": github.webhook_secret,
        "GIBIL_HOST": "127.0.0.1",
        "GIBIL_PORT": "0",
        **more,
    }


@contextlib.asynccontextmanager
async def running_bot(github: GitHubDouble, data_dir: Path, more: Mapping[str, str]) -> AsyncIterator[BotProcess]:
    """Run the bot with these further settings until the block ends.

    It runs in a new session, so that Ctrl-C reaches only the demonstration, which then stops the bot.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "gibil_bot",
        "serve",
        env=bot_environment(github, data_dir, more),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    bot = BotProcess(process)
    try:
        await bot.wait_until_listening()
        yield bot
    finally:
        await asyncio.shield(bot.stop())


async def destroy_leftovers(data_dir: Path) -> list[str]:
    """Destroy machines that a bot left for its next start, and end their daemon. Returns the machines' names."""
    from gibil_bot.providers.local.provider import LocalProvider

    if not await asyncio.to_thread(data_dir.exists):
        return []
    provider = LocalProvider(data_dir)
    try:
        names = [machine.name for machine in await provider.list_machines()]
        for name in names:
            await provider.destroy(name)
    finally:
        await provider.close()
        await asyncio.to_thread(_end_daemon, data_dir)
    return names


def _end_daemon(data_dir: Path) -> None:
    """End the daemon of local machines, which would run for half a minute on a deleted folder. Blocking."""
    from gibil_bot.providers.local.paths import LocalPaths, locked, read_daemon

    paths = LocalPaths(data_dir)
    daemon, lock = read_daemon(paths), paths.local / "keeper.lock"
    if daemon is None or not lock.exists():
        return
    with locked(lock, wait_s=0) as has_ended:
        if has_ended:
            return  # it has ended, and another process may have its pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon.pid, signal.SIGTERM)
    with locked(lock, wait_s=STOP_WITHIN_S):  # released when it has ended
        shutil.rmtree(paths.runtime(), ignore_errors=True)
