"""The bot without machines: its webhook over HTTP, its store, intake and outbox, in this process, against the GitHub double.

Its decisions about deliveries appear as waiting runs in the store, and as comments and check runs on GitHub.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from gibil_bot.access_tokens import AccessTokens
from gibil_bot.config import Settings, load_settings
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.records import HookDelivery
from gibil_bot.demo.server import serving
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.api.session import Session
from gibil_bot.host_api.client import HostClient
from gibil_bot.host_api.signing import Signer
from gibil_bot.mcp_server.http import bot_endpoint
from gibil_bot.model import Run
from gibil_bot.providers.keyring import Keyring
from gibil_bot.runs.intake import Intake
from gibil_bot.runs.outbox import OutboxPublisher
from gibil_bot.runs.person_runs import PersonRuns
from gibil_bot.runs.run_files import RunFiles
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot, intake_policy
from tests.doubles.patience import patient

REPOSITORY = "ada/engine"
WORKFLOWS = {
    "test.yml": "on: {command: test}\nsecrets: [DEPLOY]\ntasks:\n  - {name: only, run: 'true'}\n",
    "auto.yml": "on: pull_request\nsecrets: [DEPLOY]\ntasks:\n  - {name: only, run: 'true'}\n",
}
WITHIN_S = 30.0
HOST_ID = "0" * 16


@dataclass(kw_only=True)
class IntakeBot:
    """`ada` owns REPOSITORY, `ann` may write to it, and no other account."""

    github: GitHubDouble
    settings: Settings
    store: SqlStore
    client: GitHubClient
    url: str

    def token(self, login: str, *scopes: str) -> str:
        """Return a new access token for /mcp."""
        return AccessTokens(self.settings.data_dir).create(login, scopes or ("runs:read", "runs:write"), 3600)[1]

    async def handled(self) -> None:
        """Wait until every delivery is handled and everything is published."""
        await self.github.webhooks_sent()
        signals = [self.store.inbox.changed(), self.store.outbox.changed()]
        async with asyncio.timeout(patient(WITHIN_S)):
            while True:
                counts = await self.store.counts()
                if not counts["deliveries_unhandled"] and not counts["tellings_due"]:
                    await self.github.webhooks_sent()
                    if (await self.store.counts()) == counts:
                        return
                await asyncio.wait([asyncio.create_task(signal.wait(0.2)) for signal in signals], return_when="FIRST_COMPLETED")

    async def runs(self, number: int | None = None) -> list[Run]:
        """Return the runs, oldest first."""
        repository = self.github.state.repository(REPOSITORY)
        return list(reversed(await self.store.runs.of_repository(repository.id, number=number)))

    async def finish_runs(self, conclusion: str = "success") -> None:
        """End every waiting run as a runner would, and close its check run."""
        from gibil_bot.clock import now
        from gibil_bot.github.render import RunReport, check_run
        from gibil_bot.model import Conclusion

        while claim := await self.store.runs.claim("the test", lease_s=60.0, max_machines=100):
            report = RunReport(run=claim.run, conclusion=Conclusion(conclusion), now=now())
            await self.store.runs.finish(claim, Conclusion(conclusion), [check_run(report)])
        await self.handled()

    def answers(self, number: int) -> str:
        """Return everything that the bot wrote in a pull request."""
        return "\n".join(comment.body for comment in self.github.comments(REPOSITORY, number) if comment.by_app)

    def approvals(self, number: int) -> list[tuple[str, str | None]]:
        """Return (commit, conclusion) of the check runs that ask for an approval."""
        runs = self.github.check_runs(REPOSITORY)
        return [(run.head_sha, run.conclusion) for run in runs if run.name == "gibil / approval"]

    @contextlib.contextmanager
    def bot_is_down(self) -> Iterator[list[HookDelivery]]:
        """In the block, deliveries fail; GitHub lists them, and `redeliver` sends them again."""
        seen = len(self.github.deliveries)
        missed: list[HookDelivery] = []
        self.github.fail_deliveries(1000)
        yield missed
        missed += self.github.deliveries[seen:]

    async def back_up(self, missed: list[HookDelivery], *, redeliver: bool = True) -> None:
        """Wait until the deliveries have failed; then listen again and redeliver them in order."""
        await self.github.webhooks_sent()
        self.github.accept_deliveries()
        for delivery in missed if redeliver else ():
            self.github.redeliver(delivery.id)
            await self.handled()


@contextlib.asynccontextmanager
async def intake_bot(
    folder: Path,
    settings: Mapping[str, str] | None = None,
    *,
    workflows: Mapping[str, str] = WORKFLOWS,
    files: Mapping[str, str] | None = None,
) -> AsyncIterator[IntakeBot]:
    """Start an intake bot: provider `local` with the default settings, and a secret DEPLOY."""
    secret = secrets.token_hex(16)
    (folder / "workflows").mkdir()
    for name, text in workflows.items():
        (folder / "workflows" / name).write_text(text)
    async with GitHubDouble.start(folder / "github", webhook_secret=secret) as github:
        read = load_settings(
            {
                "GIBIL_DATA_DIR": str(folder / "data"),
                "GIBIL_PROVIDER": "local",
                "GIBIL_WORKFLOWS": str(folder / "workflows"),
                "GIBIL_GITHUB_URL": github.url,
                "GIBIL_GITHUB_APP_ID": str(github.app_id),
                "GIBIL_GITHUB_PRIVATE_KEY": github.private_key_pem,
                "GIBIL_GITHUB_WEBHOOK_SECRET": secret,
                "GIBIL_SECRET_DEPLOY": secrets.token_hex(16),
                **(settings or {}),
            }
        )
        await github.add_repository(REPOSITORY, files or {"README.md": "an engine\n"})
        github.set_permission(REPOSITORY, "ann", "write")
        async with bot_on(github, read, read.database_url) as it:
            yield it


@contextlib.asynccontextmanager
async def bot_on(github: GitHubDouble, settings: Settings, database_url: str) -> AsyncIterator[IntakeBot]:
    """Start the bot with a database; the process has no other state of an earlier bot."""
    settings.data_dir.mkdir(exist_ok=True, mode=0o700)
    async with contextlib.AsyncExitStack() as stack:
        store = await open_store(database_url)
        stack.push_async_callback(store.close)
        client = GitHubClient(Session(settings.github_url, settings.github_app_id, settings.github_private_key.reveal()))
        stack.push_async_callback(client.close)
        keyring = Keyring(settings.data_dir)
        policy = intake_policy(settings, keyring)
        other_hosts = await stack.enter_async_context(HostClient(Signer(keyring.derive("hosts", "files"), HOST_ID)))
        person_runs = PersonRuns(store, client, policy, RunFiles(settings.data_dir / "logs", HOST_ID, store.hosts, other_hosts))
        parts = [
            asyncio.create_task(Intake(store, client, policy, "the test").run()),
            asyncio.create_task(OutboxPublisher(store.outbox, client, "the test").run()),
        ]
        stack.push_async_callback(_stop, parts)
        it = Bot(settings=settings, store=store, person_runs=person_runs)
        mcp = _Later()
        url = await stack.enter_async_context(serving(create_app(it, mcp=mcp)))
        mcp.app = await stack.enter_async_context(bot_endpoint(it, "127.0.0.1", int(url.rpartition(":")[2])))
        github.webhook_url = f"{url}/webhook"
        bot = IntakeBot(github=github, settings=settings, store=store, client=client, url=url)
        yield bot
        await bot.handled()


class _Later:
    """An application that needs its own port, which is known once it is served."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


async def _stop(parts: list[asyncio.Task[None]]) -> None:
    for part in parts:
        part.cancel()
    await asyncio.gather(*parts, return_exceptions=True)
