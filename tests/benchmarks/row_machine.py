"""A machine's start and end: creation to first command, and destruction, against an overlay with bubblewrap."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from tests.benchmarks.comparison import Comparison, LeftOut, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import Yard, yard

ROUNDS = 12
FULL_ROUNDS = 4
_FILL = "cd /root; for d in $(seq 100); do mkdir $d; (cd $d; seq -f f%g 1000 | xargs touch); done"


def machine(context: Context) -> list[Comparison]:
    """Each round uses a new machine and a new overlay; both get a few files before they are destroyed."""
    return uvloop.run(_machine(context))


async def _machine(context: Context) -> list[Comparison]:
    if os.geteuid() != 0 or shutil.which("bwrap") is None:
        raise LeftOut("an overlay by hand needs root, and bubblewrap (bwrap)")
    first: dict[str, list[float]] = {"ours": [], "by hand": []}
    destroy: dict[str, list[float]] = {"ours": [], "by hand": []}
    async with yard(context.folder("d")) as machines:
        for number in range(ROUNDS + 2):
            begun = time.perf_counter()
            created, shell = await machines.create()
            result = await shell.run("echo ready > /root/file; cat /root/file")
            ready = time.perf_counter() - begun
            assert result.stdout == b"ready\n"
            begun = time.perf_counter()
            await shell.close()
            await machines.factory.destroy(created.name)
            destroyed = time.perf_counter() - begun
            with by_hand(context.folder(f"o{number}")) as overlay:
                pass
            if number >= 2:
                first["ours"].append(ready * 1000)
                destroy["ours"].append(destroyed * 1000)
                first["by hand"].append(overlay.first_s * 1000)
                destroy["by hand"].append(overlay.destroy_s * 1000)
        full, empty = await _with_and_without_files(machines)
    peer = "overlay + bubblewrap"
    return [
        Comparison(
            what="create, connect, first command", peer=peer, unit="ms",
            ours=first["ours"], peers=first["by hand"], aim=at_most(2.5),
        ),
        Comparison(what="destroy", peer=peer, unit="ms", ours=destroy["ours"], peers=destroy["by hand"], aim=at_most(1.5)),
        Comparison(
            what="destroy with 100,000 files", peer="an empty machine", unit="ms", ours=full, peers=empty, aim=at_most(2.0),
        ),
    ]  # fmt: skip


async def _with_and_without_files(machines: Yard) -> tuple[list[float], list[float]]:
    """Return how many ms it takes to destroy a machine with 100,000 files, and one without."""
    took: tuple[list[float], list[float]] = [], []
    for _ in range(FULL_ROUNDS):
        for times, script in zip(took, (_FILL, "true"), strict=True):
            created, shell = await machines.create()
            assert (await shell.run(script, timeout_s=300)).exit_status == 0
            await shell.close()
            begun = time.perf_counter()
            await machines.factory.destroy(created.name)
            times.append((time.perf_counter() - begun) * 1000)
    return took


class Took:
    first_s = 0.0
    destroy_s = 0.0


@contextlib.contextmanager
def by_hand(folder: Path) -> Iterator[Took]:
    """Do the same by hand: an overlay over the host's files, a shell in new namespaces on it; then remove both."""
    took = Took()
    for name in ("upper", "work", "merged"):
        (folder / name).mkdir()
    begun = time.perf_counter()
    options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
    mounted = subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, f"{folder}/merged"], capture_output=True)
    if mounted.returncode != 0:
        raise LeftOut(f"no overlay can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        shell = subprocess.Popen(
            ["bwrap", "--bind", f"{folder}/merged", "/", "--proc", "/proc", "--dev", "/dev", "--unshare-all",
             "--die-with-parent", "--new-session", "sh", "-c", "echo ready > /root/file; cat /root/file; exec sleep 600"],
            stdout=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert shell.stdout is not None
            if shell.stdout.readline() != b"ready\n":
                raise LeftOut("bubblewrap cannot run a command here")
            took.first_s = time.perf_counter() - begun
            yield took
            begun = time.perf_counter()
        finally:
            shell.send_signal(signal.SIGKILL)
            shell.communicate()
    finally:
        _unmount(folder / "merged")
    shutil.rmtree(folder)
    took.destroy_s = time.perf_counter() - begun


def _unmount(path: Path) -> None:
    """Processes of bubblewrap may need a moment to end, and until then keep the overlay busy."""
    deadline = time.perf_counter() + 10
    while subprocess.run(["umount", path], capture_output=True).returncode != 0:
        if time.perf_counter() > deadline:
            raise RuntimeError(f"{path} cannot be unmounted")
        time.sleep(0.001)
