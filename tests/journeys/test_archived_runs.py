"""Runs with prepared machines as archives: what they must not change, and when an archive isn't used."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.model import Conclusion, LayerInfo, Trust
from gibil_bot.ports import Shell
from gibil_bot.runs.archives import ArchiveStore
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.prepared import PreparedMachines
from tests.doubles.workshop import INSTALL, Ended, Workshop, workshop

pytestmark = pytest.mark.usefixtures("local_machines")

EXPECTED = ["a tool", "sweet", "one", "first"]


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path / "w", archives=True) as place:
        yield place


def use(place: Workshop, store: ArchiveStore) -> None:
    place.store = store
    prepared = PreparedMachines(place.data_dir / "prepared", store, least_s=0.0)
    place.prepared = prepared
    place.tools = dataclasses.replace(place.tools, prepared=prepared)


def check(ended: Ended, statuses: list[str]) -> None:
    assert ended.conclusion is Conclusion.SUCCESS, (ended.results, ended.run.note)
    assert (ended.statuses, ended.output) == (statuses, EXPECTED)


def the_file(place: Workshop) -> Path:
    (path,) = (place.data_dir / "archives").glob("*/data")
    return path


async def test_modes_links_and_deletions_reach_the_next_machine(place: Workshop) -> None:
    install = (
        f"{INSTALL}\n"
        "mkdir -p /opt/deep/er && ln -s /opt/deep /opt/link && chmod 700 /opt/deep && cp /bin/true /opt/true "
        "&& chmod 4711 /opt/true && ln /opt/true /opt/second && rm /etc/os-release "
        "&& rm -r /usr/share/doc/git* && rm -r /srv && ln -s /opt /srv"
    )
    look = (
        "cd /opt && stat -c '%n %a %h' deep link true second; readlink /srv; "
        "(ls -d /etc/os-release /usr/share/doc/git* 2>&1 || true) | "
        "grep -c such; cat /etc/hostname"
    )
    first, second = await place.run(install=install, test=look), await place.run(install=install, test=look)
    assert (first.statuses, second.statuses) == (["success", "success"], ["skipped", "success"])
    assert first.output[:-1] == second.output[:-1]  # the last line is the machine's own name
    assert first.output[-1] != second.output[-1]
    assert first.output[:6] == ["deep 700 3", "link 777 1", "true 4711 2", "second 4711 2", "/opt", "2"]


@pytest.mark.parametrize("how", ["damaged", "cut off", "of another image", "of another format"])
async def test_an_archive_that_can_not_be_used_is_deleted_and_everything_is_installed(place: Workshop, how: str) -> None:
    await place.run()
    path = the_file(place)
    if how == "damaged":
        with path.open("r+b") as file:
            file.seek(200)
            file.write(b"damaged")
    elif how == "cut off":
        os.truncate(path, path.stat().st_size // 2)
    else:
        old = place.store
        assert isinstance(old, ArchiveStore)
        connect = place.tools.factory.connect_shell
        change = "sed -i 1s/./x/ /run/gibil-base" if how.endswith("image") else "echo - >/run/gibil-base"

        async def on_another_image(endpoint: object, key: str) -> Shell:
            shell = await connect(endpoint, key)  # type: ignore[arg-type]
            await shell.run(f"touch -r /run/gibil-base /run/then; {change}; touch -r /run/then /run/gibil-base")
            return shell

        place.tools = dataclasses.replace(
            place.tools, factory=dataclasses.replace(place.tools.factory, connect_shell=on_another_image)
        )
    check(await place.run(), ["success", "success"])
    assert not path.exists() or path.stat().st_ino  # replaced by the second run's, or gone
    assert len(await place.store.layers()) <= 1


class Interrupted(ArchiveStore):
    """Something happens while a machine is archived."""

    shells: list[Shell]
    how = ""

    async def archive(self, shell: Shell, layer_id: str, parent: str | None, *, timeout_s: float = 60.0) -> LayerInfo:
        archiving = asyncio.ensure_future(super().archive(shell, layer_id, parent, timeout_s=timeout_s))
        folder = self.folder
        while not any(folder.glob(".*/data")):
            await asyncio.sleep(0.005)  # a thread creates it
        if self.how == "connection":
            await shell.close()
        elif self.how == "killed":
            archiving.cancel()
            await asyncio.gather(archiving, return_exceptions=True)
            raise asyncio.CancelledError
        return await archiving

    folder: Path


async def test_a_connection_that_is_lost_while_a_machine_is_archived_changes_no_result(place: Workshop) -> None:
    store = Interrupted(place.data_dir / "archives", "local", reserve_bytes=0)
    store.folder, store.how = place.data_dir / "archives", "connection"
    use(place, store)
    ended = await place.run()
    check(ended, ["success", "success"])
    assert ended.run.machine_attempt == 1
    assert await store.layers() == []
    assert list(store.folder.iterdir()) == []


async def test_a_process_that_ends_while_it_archives_leaves_nothing(place: Workshop) -> None:
    store = Interrupted(place.data_dir / "archives", "local", reserve_bytes=0)
    store.folder, store.how = place.data_dir / "archives", "killed"
    use(place, store)
    new, runs = place.new(), MemoryRuns()
    runs.queue(new)
    with pytest.raises(asyncio.CancelledError):
        await place.work(runs, new)
    assert list(store.folder.iterdir()) == []
    ended = await place.work(runs, new)
    check(ended, ["success", "success"])
    assert ended.run.machine_attempt == 1


@pytest.mark.parametrize("limit", ["full disk", "too large"])
async def test_an_archive_for_which_there_is_no_room_changes_no_result(place: Workshop, limit: str) -> None:
    words = {"reserve_bytes": 1 << 60} if limit == "full disk" else {"most_bytes": 200, "reserve_bytes": 0}
    use(place, ArchiveStore(place.data_dir / "archives", "local", **words))
    check(await place.run(), ["success", "success"])
    assert list((place.data_dir / "archives").iterdir()) == []
    assert await place.prepared.usages() == []


async def test_a_run_that_started_from_an_archive_continues_after_its_process_dies(place: Workshop) -> None:
    await place.run()
    new, runs = place.new(), MemoryRuns()
    runs.queue(new)
    working = asyncio.ensure_future(place.work(runs, new))
    while not any(result.index == 0 for result in await runs.task_results(new.id, 1)):
        await asyncio.sleep(0.005)  # until it has skipped the preparation
    working.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await working
    check(await place.work(runs, new), ["skipped", "success"])


async def test_what_an_untrusted_run_leaves_is_restored_only_for_the_same_commit(place: Workshop) -> None:
    planted = f"{INSTALL}\nprintf '#!/bin/sh\\necho PLANTED\\n' >/usr/local/bin/planted; chmod 755 /usr/local/bin/planted"
    look = "command -v planted || echo clean"
    place.commit({"source": "hostile\n"})
    words = {"install": planted, "test": look, "trust": Trust.UNTRUSTED, "number": 5}
    assert (await place.run(**words)).statuses == ["success", "success"]  # type: ignore[arg-type]
    again = await place.run(**words)  # type: ignore[arg-type]
    assert (again.statuses, again.output) == (["skipped", "success"], ["/usr/local/bin/planted"])
    trusted = await place.run(install=INSTALL, test=look)
    assert (trusted.statuses, trusted.output) == (["success", "success"], ["clean"])
    other = await place.run(**{**words, "number": 6, "install": INSTALL})  # type: ignore[arg-type]
    assert other.output == ["clean"]
