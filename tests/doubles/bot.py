"""The real bot for tests: `gibil serve` as a separate process (prefork.py), which can be killed and restarted.

`Journey` joins it with the GitHub double: a comment goes in, a check run comes out, and the provider is empty at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.records import CheckRun, Comment
from tests.doubles.machines import lent_data_dir
from tests.doubles.patience import patient
from tests.doubles.prefork import Forked

T = TypeVar("T")

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
REPOSITORY = "ada/engine"
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""For plain HTTP: reading the certificates of all authorities takes longer than several requests."""


@dataclass(kw_only=True)
class BotProcess:
    """A bot with a data directory. `start` after `kill` continues with the stored state."""

    environment: dict[str, str]
    data_dir: Path
    log: Path
    process: Forked | None = None
    url: str = ""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self, *, wait: bool = True) -> None:
        """Start the bot; with `wait`, until it listens. It keeps the first port, to which GitHub delivers."""
        port = self.url.rpartition(":")[2] or "0"
        with self.log.open("ab") as log:
            offset = log.tell()
            self.process = Forked(("serve", "--port", port), env=self.environment, stdout=log, stderr=log)
        if wait:
            self.url = await self._listening(offset)

    async def _listening(self, offset: int) -> str:
        assert self.process is not None
        exited = asyncio.create_task(self.process.ended())
        try:
            async with asyncio.timeout(patient(START_WITHIN_S)):
                while True:
                    text = self.log.read_bytes()[offset:].decode()
                    for line in text.splitlines():
                        if "listening on " in line:
                            return line.rpartition("listening on ")[2].strip()
                    if exited.done():
                        raise RuntimeError(f"the bot ended: {text}")
                    await asyncio.wait({exited}, timeout=0.02)
        finally:
            if not exited.done():
                exited.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await exited

    async def kill(self) -> None:
        """Send SIGKILL, and wait until the bot has ended."""
        assert self.process is not None
        self.process.kill()
        await self.process.ended()

    async def stop(self) -> int:
        """Send SIGTERM; return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(patient(STOP_WITHIN_S)):
            return await self.process.ended()

    def events(self, run_id: str) -> list[dict[str, object]]:
        """Return the phases of a run so far."""
        path = self.data_dir / "logs" / run_id / "events.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@dataclass(kw_only=True)
class Journey:
    """A bot and its GitHub."""

    github: GitHubDouble
    bot: BotProcess
    extra: dict[str, object] = field(default_factory=dict)

    async def seen(self, predicate: Callable[[], T], timeout_s: float = 30.0) -> T:
        """Wait for a state of GitHub; the failure message contains the bot's log."""
        try:
            return await self.github.wait_for(predicate, patient(timeout_s))
        except TimeoutError:
            raise AssertionError(f"GitHub didn't show the expected state. The bot's log:\n{self.bot.text()[-6000:]}") from None

    async def closed_check(
        self, number: int = 0, *, repository: str = REPOSITORY, count: int = 1, timeout_s: float = 40.0
    ) -> CheckRun:
        """Return the newest check run, once `count` of them are completed and none is open."""

        def closed() -> CheckRun | None:
            runs = self.github.check_runs(repository, self.github.head_sha(repository, number) if number else None)
            done = [run for run in runs if run.status == "completed"]
            return done[-1] if len(done) >= count and len(done) == len(runs) else None

        found = await self.seen(closed, timeout_s)
        assert found is not None
        return found

    async def answer(self, number: int, *, repository: str = REPOSITORY, having: str = "", timeout_s: float = 30.0) -> Comment:
        """Return the bot's newest comment that contains `having`."""

        def find() -> Comment | None:
            ours = [c for c in self.github.comments(repository, number) if c.by_app and having in c.body]
            return ours[-1] if ours else None

        found = await self.seen(find, timeout_s)
        assert found is not None
        return found

    async def all_published(self, timeout_s: float = 30.0) -> None:
        """Wait until nothing is left to handle, run or publish."""
        async with httpx.AsyncClient(verify=NO_AUTHORITIES) as client, asyncio.timeout(patient(timeout_s)):
            while True:
                health = (await client.get(f"{self.bot.url}/healthz")).json()
                if health["status"] == "ok" and not any(
                    health[k] for k in ("deliveries_unhandled", "runs_queued", "runs_running", "tellings_due")
                ):
                    return
                await asyncio.sleep(0.05)  # another process's state: there is no event to wait for

    async def machines(self) -> list[str]:
        """Return the provider's machines."""
        from gibil_bot.providers.local.provider import LocalProvider

        provider = LocalProvider(self.bot.data_dir)
        try:
            return [machine.name for machine in await provider.list_machines()]
        finally:
            await provider.close()

    async def assert_nothing_left(self, timeout_s: float = 20.0) -> None:
        """Wait until every machine is destroyed. A cancelled run's machine is destroyed while GitHub is updated."""
        async with asyncio.timeout(patient(timeout_s)):
            while await self.machines():
                await asyncio.sleep(0.05)  # another process's state: there is no event to wait for


@contextlib.asynccontextmanager
async def journey(
    folder: Path,
    files: Mapping[str, str] | None = None,
    *,
    start: bool = True,
    settings: Mapping[str, str] | None = None,
    workflows: Mapping[str, str] | None = None,
    repository: str = REPOSITORY,
) -> AsyncIterator[Journey]:
    """Start a GitHub with one repository whose owner is `ada`, and a bot that is installed there."""
    secret = secrets.token_hex(16)
    async with lent_data_dir(folder) as data_dir, GitHubDouble.start(folder / "github", webhook_secret=secret) as github:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "GIBIL_DATA_DIR": str(data_dir),
            "GIBIL_GITHUB_URL": github.url,
            "GIBIL_GITHUB_APP_ID": str(github.app_id),
            "GIBIL_GITHUB_PRIVATE_KEY": github.private_key_pem,
            "GIBIL_GITHUB_WEBHOOK_SECRET": secret,
            "PYTHONWARNINGS": "error::RuntimeWarning",
            **(settings or {}),
        }
        if workflows is not None:
            (folder / "workflows").mkdir()
            for name, text in workflows.items():
                (folder / "workflows" / name).write_text(text)
            environment["GIBIL_WORKFLOWS"] = str(folder / "workflows")
        bot = BotProcess(environment=environment, data_dir=data_dir, log=folder / "bot.log")
        await github.add_repository(repository, files or {"README.md": "an engine\n"})
        try:
            if start:
                await bot.start()
                github.webhook_url = f"{bot.url}/webhook"
            yield Journey(github=github, bot=bot)
        finally:
            if bot.process is not None and bot.process.returncode is None:
                await bot.stop()
            await github.webhooks_sent()
