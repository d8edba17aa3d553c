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
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gibil_bot.caps import Caps
from gibil_bot.config import Secret, Settings, loose_mode
from gibil_bot.errors import GibilError
from gibil_bot.model import Endpoint
from gibil_bot.ports import Layering, Provider, Shell, Store
from gibil_bot.providers.keyring import Keyring, ProjectKeyring
from gibil_bot.providers.lifecycle import MachineFactory, script_runner
from gibil_bot.retry import RetryPolicy

if TYPE_CHECKING:
    from gibil_bot.github.api.user_pull_requests import PullRequests
    from gibil_bot.planning.services import ServiceCapabilities
    from gibil_bot.providers.local.runtime_fill import BackgroundFill
    from gibil_bot.providers.local.runtime_store import RuntimeStore
    from gibil_bot.runs.caches import Caches
    from gibil_bot.runs.context import Policy
    from gibil_bot.runs.local_checkout import Limits
    from gibil_bot.runs.prepared import PreparedMachines

log = logging.getLogger("gibil")

_RESTARTING = RetryPolicy(attempts=None, first_wait_s=2.0, factor=1, jitter=(1, 1))
"""For a part of the bot that failed."""
_RUNTIMES_EVERY_S = 3600.0
CLOUD_BOOT_S = 180.0
ROOM_WAIT_S = 900.0
"""How long a run waits for memory of the host that other runs' machines use."""


def process_name() -> str:
    """Return a name that is unique among the processes that share a store: host, pid and a random part for reused pids."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"


async def connect_shell(endpoint: Endpoint, client_key: str) -> Shell:
    from gibil_bot.ssh import client

    # A cloud server exists some time before its SSH server answers; a local machine answers at once.
    return await client.connect(endpoint, client_key, timeout_s=30.0 if endpoint.unix_path else CLOUD_BOOT_S)


async def prepare_to_connect() -> None:
    """Import what `connect_shell` needs, in a thread: the import takes longer than the connection."""
    await asyncio.to_thread(importlib.import_module, "gibil_bot.ssh.client")


PROVIDERS = ("local", "hetzner")
"""Every provider that `open_provider` can open."""


def open_keyring(settings: Settings) -> Keyring:
    """Return the keys of the configured provider's machines."""
    if settings.provider == "hetzner":
        return ProjectKeyring(settings.data_dir, settings.hcloud_token.reveal())
    return Keyring(settings.data_dir)


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

        run_on = script_runner(open_keyring(settings), connect_shell)
        token = settings.hcloud_token.reveal()
        return HetznerProvider(
            token,
            endpoint=settings.hcloud_endpoint,
            run_on=run_on,
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
    )


@dataclass(kw_only=True)
class Bot:
    """The running parts of `gibil serve`."""

    settings: Settings
    store: Store
    delivery_lost: Callable[[], None] = lambda: None
    """Called when a delivery could not be stored, so that it is fetched from GitHub sooner."""
    parts: dict[str, asyncio.Task[None]] = field(default_factory=dict)

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


@contextlib.asynccontextmanager
async def running_bot(settings: Settings) -> AsyncIterator[Bot]:
    """Run the bot during the block: its store is open and its parts run. Afterwards the next process continues its runs."""
    from gibil_bot.github.api.client import GitHubClient
    from gibil_bot.github.api.session import Session
    from gibil_bot.providers.optional import prepare
    from gibil_bot.runs.dispatcher import Dispatcher
    from gibil_bot.runs.intake import Intake
    from gibil_bot.runs.outbox import OutboxPublisher
    from gibil_bot.runs.reaper import Reaper
    from gibil_bot.runs.runner import Tools
    from gibil_bot.runs.sources import PullRequestClone
    from gibil_bot.runs.sqlite.store import open_store

    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (loose := loose_mode(settings.data_dir)) is not None:
        with contextlib.suppress(OSError):
            settings.data_dir.chmod(0o700)
            log.warning("%s had mode %o; changed it to 700, so that other users can't read it", settings.data_dir, loose)
    process = process_name()
    store = await open_store(settings.database_url)
    bot = Bot(settings=settings, store=store)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        github = GitHubClient(Session(settings.github_url, settings.github_app_id, settings.github_private_key.reveal()))
        stack.push_async_callback(github.close)
        factory = open_factory(settings, room_wait_s=ROOM_WAIT_S)
        stack.push_async_callback(factory.close)
        owner = factory.keyring.machine_owner()
        logs = settings.data_dir / "logs"
        filling = open_filling(settings, factory, owner)
        tools = Tools(
            runs=store.runs,
            factory=factory,
            transfer=PullRequestClone(github),
            logs=logs,
            owner=owner,
            secrets=settings.secrets,
            egress=settings.egress,
            public_url=settings.public_url,
            max_ttl_s=settings.max_ttl_s,
            fingerprint_key=factory.keyring.derive("fingerprints", "secrets"),
            max_logs_bytes=settings.max_run_logs_bytes,
            prepared=open_prepared(settings, factory.provider),
            caches=open_caches(settings),
            on_runtimes=filling.want if filling is not None else None,
        )
        policy = intake_policy(settings, factory.keyring)
        reaper = Reaper(store, factory, github, owner, logs, settings.max_logs_bytes, tools.prepared)
        bot.delivery_lost = reaper.delivery_lost
        parts: dict[str, Callable[[], Coroutine[object, object, None]]] = {
            "intake": Intake(store, github, policy, process).run,
            "dispatcher": Dispatcher(tools, store.runs, store.outbox, process, settings.max_machines).run,
            "publisher": OutboxPublisher(store.outbox, github, process).run,
            "reaper": reaper.run,
        }
        if settings.provider == "local" and settings.runtimes:
            parts["runtimes"] = functools.partial(_keep_runtimes, settings, factory)
        if filling is not None:
            parts["missing runtimes"] = filling.run
        bot.parts = {name: asyncio.create_task(_supervise(name, part), name=name) for name, part in parts.items()}
        preparing = asyncio.create_task(prepare(factory.provider, log.info))
        try:
            yield bot
        finally:
            tasks = (*bot.parts.values(), preparing)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


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
    )
