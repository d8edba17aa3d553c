"""Runs of a small repository on local machines in this process, with prepared machines and without GitHub."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from gibil_bot.config import Settings
from gibil_bot.model import Cache, Conclusion, DetectedProject, Endpoint, NewRun, Plan, Run, TaskPlan, TaskResult, Trust
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.ports import Layering, Shell
from gibil_bot.providers.local.provider import LocalProvider
from gibil_bot.runs.archives import ArchiveStore
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.prepared import PreparedMachines
from gibil_bot.runs.runner import Runner, Tools
from gibil_bot.runs.sources import LocalBundle
from gibil_bot.scripts.archive import begin_functions
from gibil_bot.wiring import connect_shell, open_factory
from tests.contracts.store_nouns import new_run
from tests.doubles.machines import lent_data_dir
from tests.doubles.repositories import commit, git, repository

INSTALL = """
mkdir -p node_modules
echo "$(cat lock)" >>node_modules/installed
mkdir -p /root/tools
printf '#!/bin/sh\\necho a tool\\n' >/root/tools/tool
chmod 755 /root/tools/tool
echo /root/tools >>"$GITHUB_PATH"
echo FLAVOUR=sweet >>"$GITHUB_ENV"
"""
TEST = "tool; echo $FLAVOUR; cat node_modules/installed; cat source"
FILES = {"lock": "one\n", "source": "first\n", ".gitignore": "node_modules/\nbuild/\n"}


@dataclass
class Ended:
    """A run that ended."""

    conclusion: Conclusion
    run: Run
    results: list[TaskResult]

    @property
    def statuses(self) -> list[str]:
        return [result.status.value for result in self.results]

    @property
    def output(self) -> list[str]:
        """The lines that the last task printed."""
        return self.results[-1].tail.splitlines()


@dataclass
class Workshop:
    folder: Path
    data_dir: Path
    repository: Path
    tools: Tools
    prepared: PreparedMachines
    provider: LocalProvider
    store: Layering | ArchiveStore

    def commit(self, files: dict[str, str]) -> str:
        return commit(self.repository, files)

    @property
    def head(self) -> str:
        return git(self.repository, "rev-parse", "HEAD")

    def new(
        self,
        sha: str = "",
        *,
        install: str = INSTALL,
        test: str = TEST,
        trust: Trust = Trust.TRUSTED,
        number: int = 1,
        repository_id: int = 7,
        private: bool = False,
        detected: bool = True,
        secrets_of_run: tuple[str, ...] = (),
        caches: tuple[Cache, ...] = (),
        downloads: tuple[str, ...] = (),
    ) -> NewRun:
        base = new_run(secrets.token_hex(8))
        source = replace(
            base.source,
            sha=sha or self.head,
            trust=trust,
            repository=replace(
                base.source.repository, id=repository_id, private=private, clone_url="", full_name=f"o/r{repository_id}"
            ),
            pull_request=replace(base.source.pull_request, number=number, head_sha=sha or self.head),
        )
        plan = Plan(
            workflow="test",
            title="Test",
            path="test.yml",
            tasks=(TaskPlan(name="install", run=install, kind="prepare"), TaskPlan(name="test", run=test)),
            comment="never",
            secrets=secrets_of_run,
            detected=DetectedProject(purpose="test", key_files=("lock",), caches=downloads) if detected else None,
            caches=caches,
        )
        return NewRun(id=base.id, delivery_guid="", source=source, plan=plan)

    async def run(self, sha: str = "", **words: Any) -> Ended:
        new = self.new(sha, **words)
        runs = MemoryRuns()
        runs.queue(new)
        return await self.work(runs, new)

    async def work(self, runs: MemoryRuns, new: NewRun) -> Ended:
        """Claim the run, as a new process would, and work on it until it ends."""
        claim = await runs.claim(f"process {secrets.token_hex(2)}", lease_s=0.0, max_machines=10)
        assert claim is not None
        transfer = LocalBundle(self.repository / ".git", new.source.sha)
        tools = dataclasses.replace(self.tools, runs=runs, transfer=transfer)
        conclusion = await Runner(tools, claim).run()
        run = await runs.get(new.id)
        assert run is not None
        results = await runs.task_results(new.id, run.machine_attempt)
        return Ended(conclusion, run, results)


async def connect_as_in_a_cloud(endpoint: Endpoint, client_key: str) -> Shell:
    """Connect to a local machine, whose first command finds it as cloud-init leaves a cloud machine."""
    shell = await connect_shell(endpoint, client_key)
    done = await shell.run(f"test ! -e /run/gibil-base || exit 0\n{begin_functions()}ready")
    assert done.exit_status == 0, done.stderr
    return shell


@contextlib.asynccontextmanager
async def workshop(
    tmp_path: Path, provider: type[LocalProvider] = LocalProvider, *, archives: bool = False
) -> AsyncIterator[Workshop]:
    """`archives`: prepared machines are archives, as with machines in a cloud."""
    async with lent_data_dir(tmp_path, own_daemon=True) as data_dir:
        settings = Settings(data_dir=data_dir, database_url="")
        opened = provider(data_dir, daemon_idle_s=60)
        factory = dataclasses.replace(open_factory(settings), provider=opened)
        store: LocalProvider | ArchiveStore = opened
        if archives:
            factory = dataclasses.replace(factory, connect_shell=connect_as_in_a_cloud)
            store = ArchiveStore(data_dir / "archives", "local", reserve_bytes=0)
        prepared = PreparedMachines(data_dir / "prepared", store, least_s=0.0)
        tools = Tools(
            runs=MemoryRuns(),
            factory=factory,
            transfer=LocalBundle(tmp_path, ""),
            logs=tmp_path / "logs",
            owner=factory.keyring.machine_owner(),
            secrets=ScopedSecrets(),
            prepared=prepared,
        )
        here = await asyncio.to_thread(repository, tmp_path / "repository", FILES)
        try:
            yield Workshop(tmp_path, data_dir, here, tools, prepared, opened, store)
            assert await opened.list_machines() == []
        finally:
            for machine in await opened.list_machines():
                await opened.destroy(machine.name)
            await factory.close()
