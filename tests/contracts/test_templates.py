"""The contracts of ports.Templating and ports.Forking, on local machines: copies of disks of machines that go on."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.errors import MachineNotFound, ProviderError, UsageError
from gibil_bot.model import Machine
from gibil_bot.ports import LAYER_GONE, Forking, Templating
from tests.doubles.machines import (
    LocalLodging,
    alive,
    end_daemon,
    local_lodging,
    output,
    processes_with,
    provider_of,
    shared_folder,
    until,
)

pytestmark = pytest.mark.usefixtures("local_machines")

FORK = "00000001"


@pytest.fixture
async def lodging(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        yield lodging


async def start(lodging: LocalLodging, name: str, layer: str | None = None, **more: Any) -> Machine:
    return await lodging.provider.create(lodging.spec(name, layer=layer, memory_mb=256, **more))


def layers_on_disk(lodging: LocalLodging) -> list[str]:
    folder = lodging.paths.layers
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []


async def permanent(lodging: LocalLodging, layer_id: str) -> None:
    await until((lodging.paths.layer(layer_id) / "manifest.json").exists, "it is permanent")  # another process writes it


async def test_a_fork_has_the_disk_of_a_machine_that_goes_on(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    assert isinstance(provider, Forking)
    source = await start(lodging, "source", labels={"repo": "https://github.com/o/n", "commit": "c", "purpose": "x"})
    await output(lodging, source, "echo 1 > /root/file; rm -rf /srv; touch /usr/bin/new; chmod 4755 /usr/bin/new")
    info = await provider.fork_layer("source", FORK)
    assert (info.kind, info.labels) == ("fork", {"repo": "https://github.com/o/n", "commit": "c"})
    after = await provider.get("source")
    assert after is not None
    assert (after.endpoint, after.expires_at, after.created_at, after.labels) == (
        source.endpoint, source.expires_at, source.created_at, source.labels
    )  # fmt: skip
    fork = await start(lodging, "fork", FORK)
    look = "cat /root/file; ls -d /srv 2>&1 | grep -c cannot; stat -c %a /usr/bin/new; hostname"
    assert await output(lodging, fork, look) == "1\n1\n4755\nfork\n"
    assert await output(lodging, source, look) == "1\n1\n4755\nsource\n"
    await output(lodging, source, "echo source > /root/file")
    await output(lodging, fork, "echo fork > /root/file")
    assert await output(lodging, source, "cat /root/file") == "source\n"
    assert await provider.layers() == [], "runs don't use the layers of forks"


async def test_a_machine_is_forked_again_with_what_it_has_written_since(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    source = await start(lodging, "source")
    for number in range(1, 11):  # more than a run's layers
        await output(lodging, source, f"echo {number} >> /root/file")
        await provider.fork_layer("source", f"{number:08x}")
    early, late = await start(lodging, "early", f"{3:08x}"), await start(lodging, "late", f"{10:08x}")
    assert await output(lodging, early, "wc -l < /root/file") == "3\n"
    assert await output(lodging, late, "wc -l < /root/file") == "10\n"


async def test_the_layer_of_a_fork_is_deleted_with_the_last_machine_on_it(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    await start(lodging, "source")
    await provider.fork_layer("source", FORK)
    fork = await start(lodging, "fork", FORK)
    await provider.destroy("source")
    assert layers_on_disk(lodging) == [FORK]
    assert await output(lodging, fork, "echo on") == "on\n"
    await provider.destroy("fork")
    assert layers_on_disk(lodging) == []
    with pytest.raises(ProviderError) as failed:
        await start(lodging, "late", FORK)
    assert failed.value.code == LAYER_GONE


async def test_processes_prevent_a_copy_unless_they_are_to_end(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    source = await start(lodging, "busy")
    mark = "31415926"
    await output(lodging, source, f"setsid -f sh -c 'sleep 600; : {mark}' >/dev/null 2>&1 </dev/null")
    await until(lambda: processes_with(mark) != [], "it runs")
    with pytest.raises(UsageError, match=r"processes run on busy \(.*sh.*--stop") as refused:
        await provider.fork_layer("busy", FORK)
    assert refused.value.code == "MACHINE_BUSY"
    with pytest.raises(UsageError) as refused:
        await provider.save_template("busy", "ready")
    assert refused.value.code == "MACHINE_BUSY"
    assert processes_with(mark) != []
    await provider.fork_layer("busy", FORK, stop=True)
    assert processes_with(mark) == []
    assert await output(lodging, source, "echo on") == "on\n"


async def test_a_repeated_request_for_a_fork_returns_the_layer(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    await start(lodging, "source")
    info = await provider.fork_layer("source", FORK)
    assert await provider.fork_layer("source", FORK) == info
    with pytest.raises(MachineNotFound):
        await provider.fork_layer("absent", "00000002")
    with pytest.raises(UsageError):
        await provider.fork_layer("source", "../x")


async def test_a_machine_with_its_disk_in_memory_is_not_copied_and_continues(lodging: LocalLodging) -> None:
    machine = await start(lodging, "tiny", disk_mb=16)
    with pytest.raises(UsageError, match="memory"):
        await provider_of(lodging).fork_layer("tiny", FORK)
    assert await output(lodging, machine, "echo on") == "on\n"


async def test_a_forked_machine_expires_as_before(lodging: LocalLodging) -> None:
    await start(lodging, "source", ttl_s=2)
    await provider_of(lodging).fork_layer("source", FORK)
    assert layers_on_disk(lodging) == [FORK]
    # The daemon's timer destroys it, and then the layer has no user.
    await until(lambda: layers_on_disk(lodging) == [], "the machine has expired")


async def test_a_template_outlives_its_machine_and_the_daemon(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    assert isinstance(provider, Templating)
    source = await start(lodging, "source", labels={"repo": "https://github.com/o/n", "branch": "main"})
    await output(lodging, source, "echo 1 > /root/file; head -c 20000000 /dev/zero > /root/large")
    await provider.fork_layer("source", FORK)  # the template is based on a layer that wouldn't outlive the daemon
    await output(lodging, source, "echo 2 >> /root/file")
    saved = await provider.save_template("source", "ready")
    assert (saved.name, saved.provider, saved.image, saved.price_monthly) == ("ready", "local", None, None)
    assert saved.labels == {"repo": "https://github.com/o/n", "branch": "main"}
    assert saved.size_mb >= 19, "the layers below it are parts of it"
    assert await output(lodging, source, "cat /root/file") == "1\n2\n"
    await provider.destroy("source")
    await end_daemon(lodging.paths)
    assert await provider.templates() == [saved]
    machine = await start(lodging, "next", saved.layer)
    assert await output(lodging, machine, "cat /root/file") == "1\n2\n"
    assert await provider.layers() == [], "runs don't use templates"


async def test_the_name_of_a_template_is_used_once(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    source = await start(lodging, "source")
    await provider.save_template("source", "ready")
    with pytest.raises(UsageError, match="gibil template delete ready") as refused:
        await provider.save_template("source", "ready")
    assert refused.value.code == "TEMPLATE_EXISTS"
    assert await output(lodging, source, "echo on") == "on\n"


async def test_a_deleted_template_stays_below_the_machines_that_have_it(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    source = await start(lodging, "source")
    await output(lodging, source, "echo 1 > /root/file")
    saved = await provider.save_template("source", "ready")
    await permanent(lodging, saved.id)
    machine = await start(lodging, "next", saved.layer)
    assert await provider.delete_template("ready") is True
    assert await provider.delete_template("ready") is False
    assert await provider.templates() == []
    await provider.save_template("source", "ready")  # the name is free
    assert await output(lodging, machine, "cat /root/file") == "1\n"
    for name in ("source", "next"):
        await provider.destroy(name)
    assert await provider.delete_template("ready") is True
    assert layers_on_disk(lodging) == []


async def test_layers_of_forks_dont_outlive_a_killed_daemon(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    await start(lodging, "source")
    await provider.fork_layer("source", FORK)
    saved = await provider.save_template("source", "ready")
    await permanent(lodging, saved.id)
    await start(lodging, "next", saved.layer)
    await provider.delete_template("ready")
    pid = lodging.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not alive(pid), "the daemon was killed")
    assert await provider.templates() == []
    assert layers_on_disk(lodging) == []


async def test_a_template_stays_when_a_machine_cant_start_from_it(lodging: LocalLodging) -> None:
    provider = provider_of(lodging)
    await start(lodging, "source")
    saved = await provider.save_template("source", "ready")
    await permanent(lodging, saved.id)
    with pytest.raises(ProviderError) as failed:
        await start(lodging, "next", saved.layer, mirrors={"pypi": "https://pypi.example/simple"})  # another base tree
    assert failed.value.code == LAYER_GONE
    assert [template.name for template in await provider.templates()] == ["ready"]
