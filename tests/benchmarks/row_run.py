"""A whole run of three tasks: our runner above the bare script, against asyncssh by hand above the bare script.

Both bring the same commit as a git bundle to a fresh local machine and burn it at the end; the bare script clones into a fresh
folder of this box. The difference to the bare script is the overhead.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path
from statistics import median

import uvloop

from gibil_bot.cli import checkout
from gibil_bot.model import Conclusion, Plan, TaskPlan
from gibil_bot.runs.runner import Runner, Tools
from gibil_bot.runs.sources import LocalBundle
from gibil_bot.runs.store import open_store
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


def run(context: Context) -> list[Comparison]:
    return uvloop.run(_run(context))


async def _run(context: Context) -> list[Comparison]:
    repository = context.folder("repository")
    _make_repository(repository)
    here = await checkout.read(repository, dirty=False)
    bare: list[float] = []
    by_hand: list[float] = []
    ours: list[float] = []
    async with yard(context.folder("d")) as machines:
        for number in range(ROUNDS + 2):
            begun = time.perf_counter()
            await asyncio.to_thread(_bare, repository, here.sha, context.folder(f"clone-{number}"))
            bare_s = time.perf_counter() - begun
            begun = time.perf_counter()
            await _by_hand(machines, repository, here.sha)
            by_hand_s = time.perf_counter() - begun
            ours_s = await _ours(machines, here, context.folder(f"run-{number}"))
            if number >= 2:
                bare.append(bare_s * 1000)
                by_hand.append(by_hand_s * 1000)
                ours.append(ours_s * 1000)
    script = median(bare)
    return [
        Comparison(
            what="three tasks on a fresh machine, above the bare script",
            peer="asyncssh by hand",
            unit="ms",
            ours=[sample - script for sample in ours],
            peers=[sample - script for sample in by_hand],
            aim=at_most(1.3),
            facts={"bare_script_ms": script},
        )
    ]


async def _ours(machines: Yard, here: checkout.Checkout, folder: Path) -> float:
    """Seconds from the claim to the stored conclusion."""
    tasks = tuple(TaskPlan(name=name, run=script) for name, script in TASKS)
    new = checkout.new_run(here, Plan(workflow="bench", title="bench", path="bench.yml", tasks=tasks, comment="never"))
    store = await open_store(f"sqlite:///{folder / 'gibil.db'}")
    try:
        claim = await checkout.queue_and_claim(store, "bench", new)
        tools = Tools(
            store=store,
            forge=machines.forge,
            bring_source=LocalBundle(here.folder, here.sha),
            logs=folder / "logs",
            owner=machines.owner,
            secrets={},
        )
        begun = time.perf_counter()
        conclusion = await Runner(tools, claim).run()
        took = time.perf_counter() - begun
        if conclusion is not Conclusion.SUCCESS:
            raise RuntimeError(f"the run ended as {conclusion}: {await store.run(new.id)}")
    finally:
        await store.close()
    return took


async def _by_hand(machines: Yard, repository: Path, sha: str) -> None:
    """Forge, connect, bring the code, three commands, burn."""
    machine = await machines.create_by_hand()
    try:
        connection = await machines.connect_by_hand(machine)
        bundle = await _bundle(repository)
        unpack = "cat > /root/source.bundle && git clone --quiet /root/source.bundle /root/project && cd /root/project"
        await connection.run(f"{unpack} && git checkout --quiet --detach {sha}", input=bundle, encoding=None, check=True)
        for _, script in TASKS:
            await connection.run(f"cd /root/project && {script}", check=True)
        connection.close()
        await connection.wait_closed()
    finally:
        await machines.forge.provider.destroy(machine.name)


async def _bundle(repository: Path) -> bytes:
    process = await asyncio.create_subprocess_exec(
        "git", "-C", str(repository), "bundle", "create", "--quiet", "-", "HEAD", stdout=asyncio.subprocess.PIPE
    )
    bundle, _ = await process.communicate()
    return bundle


def _bare(repository: Path, sha: str, folder: Path) -> None:
    """The script on a fresh clone, one shell for each task as everywhere."""
    environment = bare_environment(folder)
    clone = f"git clone --quiet {repository} project && cd project && git checkout --quiet --detach {sha}"
    subprocess.run(["bash", "-ec", clone], cwd=folder, env=environment, check=True)
    for _, script in TASKS:
        subprocess.run(["bash", "-ec", script], cwd=folder / "project", env=environment, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)


def _make_repository(folder: Path) -> None:
    for number in range(FILES):
        (folder / f"{number}.txt").write_text(f"file {number}\n" * 200)
    identity = ["-c", "user.name=Bench", "-c", "user.email=bench@localhost"]
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=folder, check=True)
    subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "--message", "files"], cwd=folder, check=True)
