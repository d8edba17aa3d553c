"""Composition: the only file that names concrete adapters. Settings go in, a bot that can be started comes out.

What only the bot needs, and adapters with heavy libraries (githubkit, asyncssh), are imported here inside functions, so that a
command that needs none of them starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import importlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gibil_bot.caps import Caps
from gibil_bot.config import Secret, Settings, loose_mode
from gibil_bot.model import Endpoint
from gibil_bot.ports import Provider, Shell, Store
from gibil_bot.providers.keyring import Keyring, ProjectKeyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.machine_script import script_runner

if TYPE_CHECKING:
    from gibil_bot.github.api.user_pull_requests import PullRequests
    from gibil_bot.planning.services import ServiceCapabilities
    from gibil_bot.runs.context import Policy
    from gibil_bot.runs.local_checkout import Limits

log = logging.getLogger("gibil")

RESTART_AFTER_S = 2.0
CLOUD_BOOT_S = 180.0
ROOM_WAIT_S = 900.0
"""How long a run waits for memory of the host that machines of other runs have."""


def process_name() -> str:
    """Names this process among those that share a store: the host, the pid, and something no reused pid has."""
    return f"{socket.gethostname()}:{os.getpid()}:{os.urandom(3).hex()}"


async def connect_shell(endpoint: Endpoint, client_key: str) -> Shell:
    from gibil_bot.ssh import client

    # A cloud server is there some time before its SSH answers; a local machine answers at once.
    return await client.connect(endpoint, client_key, timeout_s=30.0 if endpoint.unix_path else CLOUD_BOOT_S)


async def prepare_to_connect() -> None:
    """Import what `connect_shell` needs while something else is being waited for: it takes longer than the connection."""
    await asyncio.to_thread(importlib.import_module, "gibil_bot.ssh.client")


PROVIDERS = ("local", "hetzner")
"""Every provider that `open_provider` can open."""


def open_keyring(settings: Settings) -> Keyring:
    """The keys of the machines of that provider."""
    if settings.provider == "hetzner":
        return ProjectKeyring(settings.data_dir, settings.hcloud_token.reveal())
    return Keyring(settings.data_dir)


def machine_caps(settings: Settings) -> Caps:
    """What machines of that provider may be at most. Where the operator doesn't say, a local one has half of the host,
    and another one what its largest size has."""
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
    """`room_wait_s`: how long the creation of a local machine waits for memory that other machines have now."""
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


def open_factory(settings: Settings, *, room_wait_s: float = 0.0) -> MachineFactory:
    """Who forges here, and the keys to what is forged."""
    return MachineFactory(
        provider=open_provider(settings, room_wait_s=room_wait_s),
        keyring=open_keyring(settings),
        connect_shell=connect_shell,
        caps=machine_caps(settings),
    )


def open_pull_requests(settings: Settings, token: Secret, token_from: str) -> PullRequests:
    """Pull requests in the name of the person whose token it is."""
    from gibil_bot.github.api.user_pull_requests import PullRequests

    return PullRequests(settings.github_url, token, token_from)


def service_grounds(settings: Settings) -> ServiceCapabilities:
    """What the machines of that provider can do for the services of a `.gibil.yml`; local ones have this box's packages."""
    from gibil_bot.planning.services import ServiceCapabilities, distribution_versions
    from gibil_bot.providers.local.privilege import own_privilege

    if settings.provider != "local":
        return ServiceCapabilities(containers=True)
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    versions = distribution_versions(_text(Path("/etc/os-release")), "\n".join(_text(path) for path in sources))
    return ServiceCapabilities(containers=False, many_users=own_privilege() == "root", versions=versions)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def machine_owner(keyring: Keyring) -> str:
    """The same for all that share a data directory; a label that fits every provider."""
    return hashlib.sha256(b"owner of machines" + keyring.derive("owner", "machines")).hexdigest()[:16]


def operator_workflows(settings: Settings) -> Callable[[], Mapping[str, bytes]]:
    """Reads the operator's folder anew each time: a changed file counts from the next delivery on."""
    from gibil_bot.workflows_dir import read_workflows, shipped_workflows

    folder = settings.workflows or shipped_workflows()
    return lambda: read_workflows(folder)


def operator_limits(settings: Settings) -> Limits:
    """What the operator allows a run that `gibil try` starts."""
    from gibil_bot.runs.local_checkout import Limits

    return Limits(
        operator_workflows=operator_workflows(settings),
        max_ttl_s=settings.max_ttl_s,
        caps=machine_caps(settings),
        grounds=service_grounds(settings),
    )


@dataclass(kw_only=True)
class Bot:
    """Everything that runs while `gibil serve` does."""

    settings: Settings
    store: Store
    delivery_lost: Callable[[], None] = lambda: None
    """To be called when a delivery could not be stored: it is fetched sooner."""
    parts: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def stopped_parts(self) -> list[str]:
        return [name for name, task in self.parts.items() if task.done()]


async def _supervise(name: str, part: Callable[[], Coroutine[object, object, None]]) -> None:
    """A part that fails is a fault of ours: it is logged and started again, and takes nothing else down."""
    while True:
        try:
            await part()
        except Exception:
            log.exception("%s stopped; it is started again", name)
        await asyncio.sleep(RESTART_AFTER_S)


@contextlib.asynccontextmanager
async def running_bot(settings: Settings) -> AsyncIterator[Bot]:
    """The bot: its store open and its parts at work, until the block is left. Then runs are left to the next process."""
    from gibil_bot.github.api.client import GitHubClient
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
            log.warning("%s had mode %o: others can't read it any more (0700)", settings.data_dir, loose)
    process = process_name()
    store = await open_store(settings.database_url)
    bot = Bot(settings=settings, store=store)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        github = GitHubClient(settings.github_url, settings.github_app_id, settings.github_private_key.reveal())
        stack.push_async_callback(github.close)
        forge = open_factory(settings, room_wait_s=ROOM_WAIT_S)
        stack.push_async_callback(forge.close)
        owner = machine_owner(forge.keyring)
        logs = settings.data_dir / "logs"
        tools = Tools(
            runs=store.runs,
            forge=forge,
            supply=PullRequestClone(github),
            logs=logs,
            owner=owner,
            secrets=settings.secrets,
            egress=settings.egress,
            public_url=settings.public_url,
            max_ttl_s=settings.max_ttl_s,
            fingerprint_key=forge.keyring.derive("fingerprints", "secrets"),
            max_logs_bytes=settings.max_run_logs_bytes,
        )
        policy = intake_policy(settings, forge.keyring)
        reaper = Reaper(store, forge, github, owner, logs, settings.max_logs_bytes)
        bot.delivery_lost = reaper.delivery_lost
        parts: dict[str, Callable[[], Coroutine[object, object, None]]] = {
            "intake": Intake(store, github, policy, process).run,
            "dispatcher": Dispatcher(tools, store.runs, store.outbox, process, settings.max_machines).run,
            "publisher": OutboxPublisher(store.outbox, github, process).run,
            "reaper": reaper.run,
        }
        bot.parts = {name: asyncio.create_task(_supervise(name, part), name=name) for name, part in parts.items()}
        try:
            yield bot
        finally:
            for task in bot.parts.values():
                task.cancel()
            await asyncio.gather(*bot.parts.values(), return_exceptions=True)


def intake_policy(settings: Settings, keyring: Keyring) -> Policy:
    """What the operator allows."""
    from gibil_bot.runs.context import Policy

    return Policy(
        allowed_accounts=settings.allowed_accounts,
        # A cloud machine is a virtual one of its own: untrusted code may run there, without secrets.
        untrusted=settings.local_untrusted if settings.provider == "local" else "allow",
        provider=settings.provider,
        trusted_apps=settings.trusted_apps,
        max_ttl_s=settings.max_ttl_s,
        caps=machine_caps(settings),
        public_url=settings.public_url,
        commands_per_hour=settings.commands_per_hour,
        run_id=_run_ids(keyring),
        operator_workflows=operator_workflows(settings),
        grounds=service_grounds(settings),
    )


def _run_ids(keyring: Keyring) -> Callable[[bytes, str], str]:
    """Run ids from the digest of a delivery's body, and not from its GUID or its event.

    GitHub signs the body alone: a recorded request is accepted under any GUID, and must not queue the same runs twice. The
    event isn't enough either, because two real clicks on Re-run mean equal events. The key makes the ids unguessable: they are
    the only protection of a run's page.
    """
    key = keyring.derive("run ids", "")

    def run_id(digest: bytes, distinction: str) -> str:
        return hmac.new(key, digest + b"\0" + distinction.encode(), hashlib.sha256).hexdigest()[:16]

    return run_id
