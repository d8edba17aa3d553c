"""A whole run of three tasks by gibil's runner, against the same steps with asyncssh by hand.

Both create a local machine, clone the same commit over HTTP from the same server, run the tasks and destroy the machine.
The runner also requests a clone token and revokes it, and stores and journals every step; the steps by hand don't.
The duration of the tasks on this host, without a machine, is reported as a fact and not subtracted: a machine's disk can be
faster than the host's.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.api.session import Session
from gibil_bot.model import Conclusion, Delivery, Ignored, NewRun, Plan, Repository, Source, TaskPlan, Trust
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.ports import DeliveryOutcome
from gibil_bot.runs.runner import Runner, Tools
from gibil_bot.runs.sources import PullRequestClone
from gibil_bot.runs.sqlite.store import open_store
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import Yard, yard
from tests.benchmarks.servers import bare_environment

ROUNDS = 12
FILES = 40
TASKS = (
    ("build", 'for file in *.txt; do sha256sum "$file"; done > sums'),
    ("check", "sha256sum --check --quiet sums && wc -l *.txt"),
    ("report", 'for number in $(seq 200); do echo "line $number"; done'),
)
REPOSITORY = "ada/engine"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The server, repository and folders that both sides use."""

    github: GitHubClient
    source: Source
    egress: str

    @property
    def clone(self) -> str:
        """Clone by hand, into a new folder."""
        return (
            f"git clone --quiet {self.source.repository.clone_url} project && cd project "
            f"&& git fetch --quiet origin {self.source.sha} && git checkout --quiet --detach {self.source.sha}"
        )


def run(context: Context) -> list[Comparison]:
    return asyncio.run(_run(context))


async def _run(context: Context) -> list[Comparison]:
    bare: list[float] = []
    by_hand: list[float] = []
    ours: list[float] = []
    async with yard(context.folder("d")) as machines, GitHubDouble.start(context.folder("github")) as double:
        setting = await _setting(double)
        try:
            for number in range(ROUNDS + 2):
                begun = time.perf_counter()
                await asyncio.to_thread(_bare, setting, context.folder(f"bare-{number}"))
                bare_s = time.perf_counter() - begun
                begun = time.perf_counter()
                await _by_hand(machines, setting)
                by_hand_s = time.perf_counter() - begun
                ours_s = await _ours(machines, setting, context.folder(f"run-{number}"))
                if number >= 2:
                    bare.append(bare_s * 1000)
                    by_hand.append(by_hand_s * 1000)
                    ours.append(ours_s * 1000)
        finally:
            await setting.github.close()
    return [
        Comparison(
            what="three tasks on a fresh machine",
            peer="asyncssh by hand",
            unit="ms",
            ours=ours,
            peers=by_hand,
            aim=at_most(1.3),
            facts={"bare_script_ms": median(bare)},
        )
    ]


async def _setting(double: GitHubDouble) -> Setting:
    files = {f"{number}.txt": f"file {number}\n" * 200 for number in range(FILES)}
    await double.add_repository(REPOSITORY, files)
    number = await double.open_pull_request(REPOSITORY, "change", {"change.txt": "changed\n"}, "ada")
    github = GitHubClient(Session(double.url, str(double.app_id), double.private_key_pem))
    installation = double.installation(REPOSITORY).id
    pull_request = await github.pull_request(installation, REPOSITORY, number)
    repository = Repository(
        id=double.state.repository(REPOSITORY).id,
        full_name=REPOSITORY,
        clone_url=f"{double.url}/{REPOSITORY}.git",
        default_branch="main",
    )
    source = Source(
        installation_id=installation,
        repository=repository,
        pull_request=pull_request,
        sha=pull_request.head_sha,
        trust=Trust.TRUSTED,
        actor="ada",
    )
    return Setting(github=github, source=source, egress=urlsplit(double.url).netloc)


async def _ours(machines: Yard, setting: Setting, folder: Path) -> float:
    """Return the seconds from the claim to the stored conclusion."""
    tasks = tuple(TaskPlan(name=name, run=script) for name, script in TASKS)
    plan = Plan(workflow="bench", title="bench", path="bench.yml", tasks=tasks, comment="never")
    new = NewRun(id=secrets.token_hex(8), delivery_guid="try", source=setting.source, plan=plan)
    store = await open_store(f"sqlite:///{folder / 'gibil.db'}")
    try:
        delivery = Delivery(guid="bench", event_name="bench", event=Ignored(reason="bench"), received_at=datetime.now(UTC))
        await store.inbox.accept(delivery)
        await store.inbox.claim("bench", limit=1, lease_s=60)
        await store.inbox.complete("bench", delivery.guid, DeliveryOutcome(runs=[new]))
        claim = await store.runs.claim("bench", lease_s=3600, max_machines=1)
        assert claim is not None
        tools = Tools(
            runs=store.runs,
            factory=machines.factory,
            transfer=PullRequestClone(setting.github),
            logs=folder / "logs",
            owner=machines.owner,
            secrets=ScopedSecrets(),
            egress=(setting.egress,),
        )
        begun = time.perf_counter()
        conclusion = await Runner(tools, claim).run()
        took = time.perf_counter() - begun
        if conclusion is not Conclusion.SUCCESS:
            raise RuntimeError(f"the run ended as {conclusion}: {await store.runs.get(new.id)}")
    finally:
        await store.close()
    return took


async def _by_hand(machines: Yard, setting: Setting) -> None:
    """Create, connect, clone, run three commands, destroy."""
    machine = await machines.create_by_hand(egress_allow=(setting.egress,))
    try:
        connection = await machines.connect_by_hand(machine)
        await connection.run(f"cd /root && {setting.clone}", check=True)
        for _, script in TASKS:
            await connection.run(f"cd /root/project && {script}", check=True)
        connection.close()
        await connection.wait_closed()
    finally:
        await machines.factory.provider.destroy(machine.name)


def _bare(setting: Setting, folder: Path) -> None:
    """Run the script in a new clone, with one shell for each task, as on a machine."""
    environment = bare_environment(folder)
    subprocess.run(["bash", "-ec", setting.clone], cwd=folder, env=environment, check=True)
    for _, script in TASKS:
        subprocess.run(["bash", "-ec", script], cwd=folder / "project", env=environment, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)
