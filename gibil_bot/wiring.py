"""Composition: the only file that names concrete adapters. It builds the bot and its parts from settings.

Modules that only the bot needs, and adapters with large libraries (githubkit, asyncssh), are imported inside functions, so that
commands that don't need them start fast.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from gibil_bot.caps import Caps
from gibil_bot.config import Secret, Settings, loose_mode
from gibil_bot.database_url import is_postgresql, shown_url
from gibil_bot.errors import DatabaseUnreachable, GibilError, ProviderError
from gibil_bot.model import EgressRestriction, Endpoint, Host, Plan, Run
from gibil_bot.ports import Layering, Ledger, Provider, Restricting, Shell, Store
from gibil_bot.providers.keyring import Keyring, ProjectKeyring
from gibil_bot.providers.lifecycle import MachineFactory, port_forwarder, script_runner
from gibil_bot.retry import RetryPolicy

if TYPE_CHECKING:
    from gibil_bot.agents.proxy.app import Patience
    from gibil_bot.commits.checks import CommitPolicy
    from gibil_bot.github.api.user_pull_requests import PullRequests
    from gibil_bot.host_api.signing import Signer
    from gibil_bot.operator_secrets import ScopedSecrets
    from gibil_bot.planning.agents import AgentSupport
    from gibil_bot.planning.services import ServiceCapabilities
    from gibil_bot.providers.local.runtime_fill import BackgroundFill
    from gibil_bot.providers.local.runtime_store import RuntimeStore
    from gibil_bot.runs.agent_tools import AgentTools
    from gibil_bot.runs.agent_values import Briefing
    from gibil_bot.runs.agreements import Comparison
    from gibil_bot.runs.caches import Caches
    from gibil_bot.runs.context import Policy
    from gibil_bot.runs.local_checkout import Checkout, Limits
    from gibil_bot.runs.maintenance.database import Export, Maintained
    from gibil_bot.runs.maintenance.export import Exported, OnProgress
    from gibil_bot.runs.memory import MemoryRuns
    from gibil_bot.runs.person_runs import PersonRuns
    from gibil_bot.runs.prepared import PreparedMachines
    from gibil_bot.runs.runner import Tools
    from gibil_bot.ssh.shell import SSHShell

log = logging.getLogger("gibil")
T = TypeVar("T")

_RESTARTING = RetryPolicy(attempts=None, first_wait_s=2.0, factor=1, jitter=(1, 1))
"""For a part of the bot that failed."""
_STARTING = RetryPolicy(attempts=None, first_wait_s=1.0, factor=1.5, longest_wait_s=5.0, within_s=60.0)
"""For a database that is restarted, or that starts at the same time as its bot."""
_RUNTIMES_EVERY_S = 3600.0
_SCANNER_AFTER_S = 3.0
"""When a bot starts the scanner for secrets: loading it takes up to three seconds of processor time."""
CLOUD_BOOT_S = 180.0
ROOM_WAIT_S = 900.0
"""How long a run waits for memory of the host that other runs' machines use."""


def process_name(host: Host) -> str:
    """Return a name that is unique among the processes that share a store: host, pid and a random part for reused pids."""
    return f"{host.id}:{os.getpid()}:{os.urandom(3).hex()}"


async def connect_shell(endpoint: Endpoint, client_key: str) -> Shell:
    from gibil_bot.ssh import client

    # A cloud server exists some time before its SSH server answers; a local machine answers at once.
    return await client.connect(endpoint, client_key, timeout_s=30.0 if endpoint.unix_path else CLOUD_BOOT_S)


async def prepare_to_connect() -> None:
    """Import what `connect_shell` needs, in a thread: the import takes longer than the connection."""
    await asyncio.to_thread(importlib.import_module, "gibil_bot.ssh.client")


async def open_store(settings: Settings, *, exclusive: bool = True, limit_s: float | None = None, host_id: str = "") -> Store:
    """Open the database of GIBIL_DATABASE_URL for a bot, and create or migrate it. Raises StoreError with what to do.

    `exclusive`: of a SQLite file, no other bot may use it. A PostgreSQL is always shared. Otherwise it is opened for a command,
    and a bot of an older version may use it: StoreError instead of a migration. A new database is still created.
    `limit_s`: for each transaction of a PostgreSQL, instead of a bot's limit. `host_id`: of the bot. While bots of other hosts
    use a PostgreSQL, StoreError instead of a migration.
    """
    if not exclusive:
        await _require_no_migration(settings)
    if is_postgresql(settings.database_url):
        from gibil_bot.runs.postgres.server import LIMIT_S
        from gibil_bot.runs.postgres.store import open_store as open_shared

        return await open_shared(settings.database_url, limit_s=limit_s or LIMIT_S, host_id=host_id)
    from gibil_bot.runs.sqlite.store import open_store as open_file

    return await open_file(settings.database_url, exclusive=exclusive)


async def _require_no_migration(settings: Settings) -> None:
    """Raise StoreError if the schema has another version than this gibil's. A database without one is allowed."""
    from gibil_bot.runs.maintenance.status import usable

    async with maintained(settings) as database:
        if await database.version() > 0:
            await usable(database)


def open_maintained(settings: Settings) -> Maintained:
    """Return the database of GIBIL_DATABASE_URL as it is: nothing is created or migrated. The caller closes it."""
    if is_postgresql(settings.database_url):
        from gibil_bot.runs.postgres.maintenance import MaintainedServer

        return MaintainedServer(settings.database_url)
    from gibil_bot.runs.sqlite.maintenance import MaintainedFile

    return MaintainedFile(settings.database_url)


@contextlib.asynccontextmanager
async def maintained(settings: Settings) -> AsyncIterator[Maintained]:
    """As `open_maintained`, during the block."""
    database = open_maintained(settings)
    try:
        yield database
    finally:
        await database.close()


async def compare_agreements(settings: Settings) -> list[Comparison]:
    """Return how this host's settings fit those of the database's other bots. Changes nothing. Raises GibilError."""
    from gibil_bot.runs.agreements import compare
    from gibil_bot.runs.host import known_id
    from gibil_bot.runs.sql import agreements, hosts

    async with maintained(settings) as database:
        stored = await database.read(agreements.every)
        seen = await database.read(functools.partial(hosts.every, now=database.now()))
    is_shared = is_postgresql(settings.database_url)

    def compared() -> list[Comparison]:
        return compare(stored, seen, settings, open_keyring(settings), known_id(settings.data_dir), is_shared=is_shared)

    return await asyncio.to_thread(compared)


async def export_database(settings: Settings, url: str, progress: OnProgress) -> Exported:
    """Copy the SQLite file of GIBIL_DATABASE_URL to the PostgreSQL database of `url`. Raises StoreError."""
    from gibil_bot.runs.host import this_host
    from gibil_bot.runs.maintenance.export import export, require_exportable
    from gibil_bot.runs.postgres.export import open_target
    from gibil_bot.runs.sqlite.export import open_source

    async with open_source(settings.database_url) as source:
        host = await asyncio.to_thread(this_host, settings.data_dir, settings.bot_url)
        await require_exportable(source, shown_url(url), host)
        await _require_no_migration(replace(settings, database_url=url))
        async with open_target(url) as target:
            keyring = await asyncio.to_thread(_check_value, open_keyring(settings))
            return await export(source, target, host, progress, provider=settings.provider, keyring=keyring)


def _check_value(keyring: Keyring) -> str | None:
    """Return the check value of a key that exists."""
    return keyring.check_value() if keyring.path.exists() else None


async def undo_export(settings: Settings) -> Export | None:
    """Delete the mark of an exported SQLite file; return it. Raises StoreError."""
    from gibil_bot.runs.sqlite.export import open_source

    async with open_source(settings.database_url) as source:
        mark = await source.mark()
        if mark is not None:
            await source.set_mark(None)
        return mark


PROVIDERS = ("local", "hetzner")
"""Every provider that `open_provider` can open."""


def open_keyring(settings: Settings) -> Keyring:
    """Return the keys of the configured provider's machines."""
    if settings.provider == "hetzner":
        return ProjectKeyring(settings.data_dir, settings.hcloud_token.reveal(), settings.keyring)
    return Keyring(settings.data_dir, settings.keyring)


def machine_caps(settings: Settings) -> Caps:
    """Return the limits for machines of the configured provider.

    Defaults: half of the host for local machines, the largest size for others.
    """
    if settings.provider != "local":
        from gibil_bot.providers.hetzner.server_types import SIZES

        largest = SIZES["large"]
        return Caps(
            memory_mb=settings.max_memory_mb or largest.memory_gb * 1024,
            disk_mb=settings.max_disk_mb or largest.disk_gb * 1024,
            pids=settings.max_pids,
            server_types=settings.server_types,
        )
    from gibil_bot.providers.local.limits import DISK_MB, SIZES_MB, half_of_the_disk_mb, half_of_the_memory_mb

    return Caps(
        memory_mb=settings.max_memory_mb or half_of_the_memory_mb(),
        disk_mb=settings.max_disk_mb or half_of_the_disk_mb(settings.data_dir),
        pids=settings.max_pids,
        sizes_mb=SIZES_MB,
        default_disk_mb=DISK_MB,
    )


def open_provider(settings: Settings, *, room_wait_s: float = 0.0) -> Provider:
    """Open the configured provider. `room_wait_s`: how long creating a local machine waits for other machines' memory."""
    if settings.provider == "hetzner":
        from gibil_bot.providers.hetzner.provider import HetznerProvider

        keyring = open_keyring(settings)
        token = settings.hcloud_token.reveal()
        return HetznerProvider(
            token,
            endpoint=settings.hcloud_endpoint,
            run_on=script_runner(keyring, connect_shell),
            forward=port_forwarder(keyring),
            reuse=settings.reuse,
            server_types=settings.server_types,
        )
    from gibil_bot.providers.local.provider import LocalProvider

    return LocalProvider(settings.data_dir, room_wait_s=room_wait_s)


def open_prepared(settings: Settings, provider: Provider) -> PreparedMachines:
    """Open the prepared machines of this data directory: layers of local machines, archives of others."""
    from gibil_bot.providers.local.provider import LocalProvider
    from gibil_bot.runs.archives import LEAST_S, ArchiveStore
    from gibil_bot.runs.prepared import PreparedMachines

    folder = settings.data_dir / "prepared"
    archives = ArchiveStore(settings.data_dir / "archives", "hetzner")
    if isinstance(provider, Layering):
        return PreparedMachines(folder, provider, name=provider.name, others={archives.name: archives})
    return PreparedMachines(
        folder, archives, name=archives.name, others={"local": LocalProvider(settings.data_dir)}, least_s=LEAST_S
    )


def open_caches(settings: Settings) -> Caches:
    """Open the caches of this data directory, which machines of every provider use."""
    from gibil_bot.runs.caches import Caches

    return Caches(settings.data_dir / "caches")


def open_factory(settings: Settings, *, room_wait_s: float = 0.0) -> MachineFactory:
    """Open the configured provider with its keys. The caller closes it."""
    return MachineFactory(
        provider=open_provider(settings, room_wait_s=room_wait_s),
        keyring=open_keyring(settings),
        connect_shell=connect_shell,
        ca_bundle=settings.ca_bundle,
        mirrors=settings.mirrors,
        caps=machine_caps(settings),
    )


async def store_runtimes(settings: Settings, factory: MachineFactory) -> AsyncIterator[tuple[str, str | None, str]]:
    """Store the runtimes of GIBIL_RUNTIMES for local machines. Yields for each: its name, the stored tree, and the problem.

    Without a tree and a problem, the host's own program satisfies.
    """
    if settings.provider != "local" or not settings.runtimes:
        return
    from gibil_bot.providers.local.runtime_fill import fill, store_of

    owner = await asyncio.to_thread(factory.keyring.machine_owner)
    for name, version in settings.runtimes:
        label = f"{name}{'@' if version else ''}{version}"
        try:
            tree = await fill(factory, store_of(settings.data_dir), name, version, owner, settings.egress)
        except (GibilError, OSError, TimeoutError) as error:
            yield label, None, str(error) or "it takes too long"
        else:
            yield label, tree, ""
    # Links them for machines now, instead of when a user waits for one.
    with contextlib.suppress(GibilError):
        await factory.provider.probe()


def open_filling(settings: Settings, factory: MachineFactory, owner: str) -> BackgroundFill | None:
    """Return what stores the runtimes that runs had to install; None if the provider's machines don't share any."""
    from gibil_bot.providers.local.runtime_fill import BackgroundFill

    store = open_runtimes(settings)
    return BackgroundFill(factory, store, owner, settings.egress) if store is not None else None


async def store_missing_runtimes(settings: Settings, trees: tuple[str, ...]) -> list[str]:
    """Store what is missing of a run's runtimes; return what was stored. A failure is only logged."""
    from gibil_bot.providers.local.runtime_fill import store_missing, store_of

    factory = open_factory(settings)
    try:
        owner = await asyncio.to_thread(factory.keyring.machine_owner)
        return await store_missing(factory, store_of(settings.data_dir), trees, owner, settings.egress)
    finally:
        await factory.close()


def missing_runtimes(settings: Settings, trees: tuple[str, ...]) -> bool:
    """Return whether some of a run's runtimes should be stored; mark the stored ones as used."""
    from gibil_bot.providers.local.runtime_fill import missing

    store = open_runtimes(settings)
    return store is not None and bool(missing(store, trees))


def open_runtimes(settings: Settings) -> RuntimeStore | None:
    """Return the store of runtimes; None if the provider's machines don't share any."""
    if settings.provider != "local":
        return None
    from gibil_bot.providers.local.runtime_fill import store_of

    return store_of(settings.data_dir)


async def _keep_runtimes(settings: Settings, factory: MachineFactory) -> None:
    """Store the runtimes of GIBIL_RUNTIMES, and retry failures every hour."""
    while True:
        async for name, _tree, problem in store_runtimes(settings, factory):
            if problem:
                log.warning("GIBIL_RUNTIMES: %s can't be stored; retrying in an hour: %s", name, problem)
        await asyncio.sleep(_RUNTIMES_EVERY_S)


def open_pull_requests(settings: Settings, token: Secret, token_from: str) -> PullRequests:
    """Return an API client for pull requests in the name of the token's owner."""
    from gibil_bot.github.api.user_pull_requests import PullRequests

    return PullRequests(settings.github_url, token, token_from)


def service_capabilities(settings: Settings) -> ServiceCapabilities:
    """Return which services of a `.gibil.yml` machines of the configured provider can run, and in which versions."""
    from gibil_bot.planning.services import ServiceCapabilities, distribution_versions

    if settings.provider != "local":
        return ServiceCapabilities(containers=True)
    from gibil_bot.providers.local.base_tree import package_sources
    from gibil_bot.providers.local.paths import own_privilege

    versions = distribution_versions(*package_sources())
    return ServiceCapabilities(containers=False, many_users=own_privilege() == "root", versions=versions)


def operator_workflows(settings: Settings) -> Callable[[], Mapping[str, bytes]]:
    """Return a function that reads the operator's folder, so that a changed file applies from the next delivery on."""
    from gibil_bot.workflows_dir import read_workflows, shipped_workflows

    folder = settings.workflows or shipped_workflows()
    return lambda: read_workflows(folder)


def operator_limits(settings: Settings) -> Limits:
    """Return what the operator allows for runs of `gibil try`."""
    from gibil_bot.runs.local_checkout import Limits

    return Limits(
        operator_workflows=operator_workflows(settings),
        max_ttl_s=settings.max_ttl_s,
        caps=machine_caps(settings),
        service_capabilities=service_capabilities(settings),
        agents=agent_support(settings, has_bot=False),
    )


@dataclass(kw_only=True)
class Bot:
    """The running parts of `gibil serve`."""

    settings: Settings
    store: Store
    delivery_lost: Callable[[], None] = lambda: None
    """Called when a delivery could not be stored, so that it is fetched from GitHub sooner."""
    parts: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    person_runs: PersonRuns | None = None
    """Runs as people use them over the API."""
    signer: Signer | None = None
    """Checks the requests of other hosts' bots; None: they don't reach this one."""

    def stopped_parts(self) -> list[str]:
        return [name for name, task in self.parts.items() if task.done()]


async def _supervise(name: str, part: Callable[[], Coroutine[object, object, None]]) -> None:
    """Run a part of the bot. If it fails, which is an internal error, log that and restart it; other parts continue."""

    async def run() -> None:
        await part()
        raise RuntimeError(f"{name} returned, but it should run as long as the bot does")

    await _RESTARTING.call(
        run,
        retry_after_s=lambda error: 0.0,
        before_retry=lambda error, failures: log.error("%s failed; restarting it", name, exc_info=error),
    )


async def _when_reachable(act: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `act`; wait a minute at most for the server of the database. Raises as `act` does."""

    def waiting(error: Exception, failures: int) -> None:
        if failures == 1:
            log.warning("waiting for the database, for a minute at most: %s", error)

    return await _STARTING.call(
        act,
        retry_after_s=lambda error: 0.0 if isinstance(error, DatabaseUnreachable) else None,
        before_retry=waiting,
    )


@contextlib.asynccontextmanager
async def running_bot(settings: Settings, *, patience: Patience | None = None) -> AsyncIterator[Bot]:
    """Run the bot during the block: its store is open and its parts run. Afterwards the next process continues its runs.

    `patience`: of the model proxy.
    """
    from gibil_bot.github.api.client import GitHubClient
    from gibil_bot.github.api.session import Session
    from gibil_bot.host_api.client import HostClient
    from gibil_bot.host_api.signing import Signer
    from gibil_bot.providers.optional import prepare
    from gibil_bot.runs.agreements import check_agreements, warn_of_differences
    from gibil_bot.runs.commit_steps import CommitTools
    from gibil_bot.runs.dispatcher import Dispatcher
    from gibil_bot.runs.host import hold_data_dir, this_host
    from gibil_bot.runs.intake import Intake
    from gibil_bot.runs.outbox import OutboxPublisher
    from gibil_bot.runs.person_runs import PersonRuns
    from gibil_bot.runs.presence import Presence
    from gibil_bot.runs.reaper import Reaper
    from gibil_bot.runs.run_files import RunFiles
    from gibil_bot.runs.runner import Tools
    from gibil_bot.runs.sources import PullRequestClone

    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (loose := loose_mode(settings.data_dir)) is not None:
        with contextlib.suppress(OSError):
            settings.data_dir.chmod(0o700)
            log.warning("%s had mode %o; changed it to 700, so that other users can't read it", settings.data_dir, loose)
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(os.close, hold_data_dir(settings.data_dir))
        host = this_host(settings.data_dir, settings.bot_url)
        process = process_name(host)
        store = await _when_reachable(lambda: open_store(settings, host_id=host.id))
        bot = Bot(settings=settings, store=store)
        stack.push_async_callback(store.close)
        session = Session(settings.github_url, settings.github_app_id, settings.github_private_key.reveal())
        github = GitHubClient(session)
        stack.push_async_callback(github.close)
        factory = open_factory(settings, room_wait_s=ROOM_WAIT_S)
        stack.push_async_callback(factory.close)
        agree = functools.partial(check_agreements, store, settings, factory.keyring, host.id, is_shared=store.is_shared)
        await _when_reachable(agree)
        owner = factory.keyring.machine_owner()
        logs = settings.data_dir / "logs"
        signer = Signer(factory.keyring.derive("hosts", "files"), host.id)
        bot.signer = signer if host.url else None
        files = RunFiles(logs, host.id, store.hosts, await stack.enter_async_context(HostClient(signer)))
        filling = open_filling(settings, factory, owner)

        def briefing(run: Run) -> Briefing:
            from gibil_bot.runs.agent_briefing import PullRequestBriefing

            return PullRequestBriefing(github, store.runs, run)

        agents = await stack.enter_async_context(
            _opened_once(lambda: open_agents(settings, factory, store.ledger, briefing, patience))
        )
        tools = Tools(
            runs=store.runs,
            factory=factory,
            transfer=PullRequestClone(github),
            logs=logs,
            owner=owner,
            secrets=settings.secrets,
            masked=tuple(settings.models.keys.values()),
            egress=settings.egress,
            public_url=settings.public_url,
            max_ttl_s=settings.max_ttl_s,
            fingerprint_key=factory.keyring.derive("fingerprints", "secrets"),
            max_logs_bytes=settings.max_run_logs_bytes,
            prepared=open_prepared(settings, factory.provider),
            caches=open_caches(settings),
            commits=CommitTools(
                github=github,
                git_data=github.git_data,
                policy=commit_policy(settings),
                logs=logs,
                public_url=settings.public_url,
                files=files,
                find_run=store.runs.get,
            ).steps,
            files=files,
            on_runtimes=filling.want if filling is not None else None,
            agents=agents,
            max_machines=settings.max_machines,
            host=host.id,
            hosts=store.hosts,
            is_shared=store.is_shared,
        )
        policy = intake_policy(settings, factory.keyring)
        reaper = Reaper(store, factory, github, owner, logs, settings.max_logs_bytes, tools.prepared)
        bot.delivery_lost = reaper.delivery_lost
        bot.person_runs = PersonRuns(store, github, policy, files)
        dispatcher = Dispatcher(tools, store.runs, process, away_s=settings.host_away_s)
        publisher = OutboxPublisher(store.outbox, github, process, is_present=lambda: not store.is_shared or presence.holds())
        on_bots = (session.share_limits, dispatcher.share)
        on_lapse = (dispatcher.stop_all, publisher.stop_all) if store.is_shared else ()
        presence = Presence(store.hosts, host, process, on_bots=on_bots, on_lapse=on_lapse)
        await _when_reachable(presence.start)
        stack.push_async_callback(presence.leave)
        if store.is_shared:  # another bot may have started at the same time; now each sees the other
            await _when_reachable(agree)
        await _when_reachable(functools.partial(warn_of_differences, store, settings, host.id))
        log.info("host %s (%s), process %s, database %s", host.name, host.id, process, shown_url(settings.database_url))
        parts: dict[str, Callable[[], Coroutine[object, object, None]]] = {
            "intake": Intake(store, github, policy, process).run,
            "presence": presence.run,
            "dispatcher": dispatcher.run,
            "publisher": publisher.run,
            "reaper": reaper.run,
        }
        if settings.provider == "local" and settings.runtimes:
            parts["runtimes"] = functools.partial(_keep_runtimes, settings, factory)
        if filling is not None:
            parts["missing runtimes"] = filling.run
        bot.parts = {name: asyncio.create_task(_supervise(name, part), name=name) for name, part in parts.items()}
        preparing = asyncio.create_task(prepare(factory.provider, log.info))
        warming = asyncio.create_task(warm_scanner(_SCANNER_AFTER_S))
        try:
            yield bot
        finally:
            tasks = (*bot.parts.values(), preparing, warming)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _opened_once(
    open_agents: Callable[[], contextlib.AbstractAsyncContextManager[AgentTools]],
) -> AsyncIterator[Callable[[], Awaitable[AgentTools]]]:
    """Return a function that opens what agent tasks need, for the first run that asks: 20 MB, and a listening port."""
    lock = asyncio.Lock()
    opened: list[AgentTools] = []
    async with contextlib.AsyncExitStack() as stack:

        async def tools() -> AgentTools:
            async with lock:
                if not opened:
                    opened.append(await stack.enter_async_context(open_agents()))
                return opened[0]

        yield tools


@contextlib.asynccontextmanager
async def open_agents(
    settings: Settings,
    factory: MachineFactory,
    ledger: Ledger,
    briefing: Callable[[Run], Briefing],
    patience: Patience | None = None,
) -> AsyncIterator[AgentTools]:
    """Return what agent tasks need. The proxy that holds the models' keys runs during the block."""
    from gibil_bot.agents.engines.loading import load_engines
    from gibil_bot.agents.prices import Prices
    from gibil_bot.agents.proxy.server import ModelProxy
    from gibil_bot.agents.proxy.tokens import token_from
    from gibil_bot.agents.proxy.upstream import Upstream
    from gibil_bot.registries import hosts
    from gibil_bot.runs.agent_tools import AgentTools

    models = settings.models
    engines = await asyncio.to_thread(load_engines, models.engines)
    upstreams = [Upstream(name=vendor, key=key, url=models.urls[vendor]) for vendor, key in models.keys.items()]

    async def restrict(name: str, allow: tuple[str, ...], shell: Shell) -> EgressRestriction:
        provider = factory.provider
        if not isinstance(provider, Restricting):
            raise ProviderError(f"machines of {provider.name} can't be limited to an allow-list, so no agent works on them")
        wanted = hosts(allow, mirrors=settings.mirrors, operator=settings.egress_allow)
        return await provider.restrict_egress(name, wanted, shell)

    async def open_shell(name: str) -> SSHShell:
        return cast("SSHShell", await factory.reopen(name))

    async with ModelProxy(upstreams, patience=patience) as proxy:
        yield AgentTools(
            engines=engines,
            settings=models,
            proxy=proxy,
            prices=Prices(models.prices),
            ledger=ledger,
            briefing=briefing,
            open_shell=open_shell,
            restrict=restrict,
            token=lambda name: token_from(factory.keyring.derive("agents", name)),
        )


@contextlib.asynccontextmanager
async def checkout_agents(
    settings: Settings, factory: MachineFactory, checkout: Checkout, plan: Plan
) -> AsyncIterator[Callable[[], Awaitable[AgentTools]] | None]:
    """Return what opens the tools for agents of a local checkout's run; None if it has none.

    The bot's budgets of a day include them.
    """
    if not plan.has_agent:
        yield None
        return
    from gibil_bot.runs.agent_briefing import CheckoutBriefing

    store = await open_store(settings, exclusive=False)
    try:
        briefing = CheckoutBriefing(checkout.repository, checkout.name, checkout.sha)
        async with _opened_once(lambda: open_agents(settings, factory, store.ledger, lambda run: briefing)) as agents:
            yield agents
    finally:
        await store.close()


async def warm_scanner(after_s: float) -> None:
    """Start the scanner for secrets, so that the first run with commits doesn't wait for it."""
    from gibil_bot.commits.scanner import NoScanner, shared_scanner

    await asyncio.sleep(after_s)
    try:
        await shared_scanner().warm()
    except NoScanner as error:
        log.warning("commits of runs can't be checked: %s", error.message)


def checkout_tools(
    settings: Settings,
    factory: MachineFactory,
    checkout: Checkout,
    runs: MemoryRuns,
    *,
    owner: str,
    logs: Path,
    secrets: ScopedSecrets,
    agents: Callable[[], Awaitable[AgentTools]] | None = None,
) -> Tools:
    """Return what a run of a local checkout needs. It pushes nothing: give its plan to `commit_steps.as_patch` before."""
    from gibil_bot.runs.commit_steps import LocalCommitTools
    from gibil_bot.runs.runner import Tools
    from gibil_bot.runs.sources import LocalBundle

    return Tools(
        runs=runs,
        factory=factory,
        transfer=LocalBundle(checkout.repository, checkout.sha, checkout.promisor, checkout.surroundings),
        logs=logs,
        owner=owner,
        secrets=secrets,
        masked=tuple(settings.models.keys.values()),
        egress=settings.egress,
        max_ttl_s=settings.max_ttl_s,
        tethered=True,
        prepared=open_prepared(settings, factory.provider),
        caches=open_caches(settings),
        commits=LocalCommitTools(repository=checkout.repository, policy=commit_policy(settings), logs=logs).steps,
        local_checkout=checkout.identity,
        agents=agents,
    )


def commit_policy(settings: Settings) -> CommitPolicy:
    """Return the operator's rules for commits from machines."""
    from gibil_bot.commits.checks import CommitPolicy
    from gibil_bot.commits.paths import PROTECTED

    return CommitPolicy(
        most_files=settings.commit_files,
        most_bytes=settings.commit_bytes,
        protected=(*PROTECTED, *settings.protected_paths),
    )


def agent_support(settings: Settings, *, has_bot: bool = True) -> AgentSupport:
    """Return which agents can work here; `has_bot` as in planning.agents. Blocks.

    Raises ConfigurationError for the operator's engines.
    """
    from gibil_bot.agents.engines.loading import default_engine, load_engines
    from gibil_bot.planning import agents

    models = settings.models
    engines = load_engines(models.engines)
    vendors = {name: engine.provider for name, engine in engines.items()}
    return agents.agent_support(vendors, models.keys, default=default_engine(engines, models.engine), has_bot=has_bot)


def intake_policy(settings: Settings, keyring: Keyring) -> Policy:
    """Return what the operator allows."""
    from gibil_bot.runs.context import Policy

    return Policy(
        allowed_accounts=settings.allowed_accounts,
        # A cloud machine is a separate virtual machine: untrusted code may run there, without secrets.
        untrusted=settings.local_untrusted if settings.provider == "local" else "allow",
        provider=settings.provider,
        trusted_apps=settings.trusted_apps,
        max_ttl_s=settings.max_ttl_s,
        caps=machine_caps(settings),
        public_url=settings.public_url,
        commands_per_hour=settings.commands_per_hour,
        run_id=keyring.run_id,
        operator_workflows=operator_workflows(settings),
        service_capabilities=service_capabilities(settings),
        agents=agent_support(settings),
    )
