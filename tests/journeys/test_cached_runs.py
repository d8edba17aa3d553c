"""Files and downloads that a run keeps for the next one, on real machines, and the commands that show and delete them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.config import Secret
from gibil_bot.model import Cache, Conclusion
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.runs.caches import Caches
from tests.doubles.commandline import CommandLine
from tests.doubles.patience import patient
from tests.doubles.workshop import INSTALL, Ended, Workshop, workshop

pytestmark = pytest.mark.usefixtures("local_machines")

DOWNLOAD = "mkdir -p ~/.npm && ls ~/.npm >~/found; test -e ~/.npm/$(cat lock) || cp lock ~/.npm/$(cat lock)"


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path / "w") as place:
        place.tools = dataclasses.replace(place.tools, caches=Caches(place.data_dir / "caches"))
        yield place


async def stored(place: Workshop) -> list[str]:
    assert place.tools.caches is not None
    return sorted(usage.entry.key for usage in await place.tools.caches.usages())


async def test_a_cache_is_restored_by_key_and_by_prefix_and_saved_after_success(place: Workshop) -> None:
    place.tools = dataclasses.replace(place.tools, prepared=None)
    cache = Cache(path=("~/kept", "!~/kept/log", "out/**"), key="k-${{ hashFiles('lock') }}", restore_keys=("k-",))
    words: dict[str, Any] = {
        "install": "mkdir -p ~/kept out/deep; ls ~/kept out; touch ~/kept/log",
        "test": "echo x >~/kept/$(cat lock); echo y >out/deep/y",
        "caches": (cache,),
    }

    async def run(**more: Any) -> Ended:
        ended = await place.run(**{**words, **more})
        assert ended.conclusion is Conclusion.SUCCESS, ended.run.note
        return ended

    def printed(ended: Ended) -> list[str]:
        return [line for line in ended.results[0].tail.splitlines() if line not in ("", "out:", "/root/kept:")]

    failed = await place.run(**{**words, "test": "false"})
    assert (failed.conclusion, await stored(place)) == (Conclusion.FAILURE, [])

    place.tools = dataclasses.replace(place.tools, secrets=ScopedSecrets({"TOKEN": Secret("a value of this test")}))
    secret = await run(secrets_of_run=("TOKEN",))
    assert secret.run.note == "The run has secrets, so its caches aren't saved: they could contain one."
    assert await stored(place) == []

    assert printed(await run()) == ["deep"]
    (key,) = await stored(place)
    second = await run()
    assert second.run.note is not None
    assert second.run.note.startswith(f"Restored the cache {key} (0.0 MB in ")
    first_line, *rest = printed(second)
    assert first_line.startswith(f"gibil: restored the cache {key} (0.0 MB in ")
    assert rest == ["one", "deep"]
    assert await stored(place) == [key]

    place.commit({"lock": "two\n"})
    _, *rest = printed(await run())
    assert rest == ["one", "deep"]  # from the other key
    assert len(await stored(place)) == 2
    _, *rest = printed(await run())
    assert rest == ["one", "two", "deep"]


async def test_downloads_are_restored_only_if_something_will_be_installed(place: Workshop) -> None:
    place.commit({"package-lock.json": "1", "lock": "one\n"})
    words: dict[str, Any] = {"install": f"{INSTALL}\n{DOWNLOAD}", "test": "cat ~/found", "downloads": ("~/.npm", "~/.cache/uv")}
    assert (await place.run(**words)).output == []
    assert [key.split()[0] for key in await stored(place)] == ["~/.npm"]

    reused = await place.run(**words)
    assert (reused.statuses, reused.output) == (["skipped", "success"], [])
    assert reused.run.note is not None
    assert "downloads" not in reused.run.note

    await place.prepared.clear()
    again = await place.run(**words)
    assert (again.statuses, again.output) == (["success", "success"], ["one"])
    assert again.run.note is not None
    assert again.run.note.startswith("Reused the downloads in ~/.npm (0.0 MB in ")
    assert again.results[0].tail.startswith("gibil: reused the downloads in ~/.npm (0.0 MB in ")

    await place.prepared.clear()
    place.commit({"package-lock.json": "2"})
    await place.run(**words)
    assert len(await stored(place)) == 1  # nothing new was downloaded
    await place.prepared.clear()
    place.commit({"package-lock.json": "3", "lock": "two\n"})
    assert (await place.run(**words)).output == ["one"]
    assert len(await stored(place)) == 2


async def test_both_kinds_are_listed_and_cleared_even_while_a_run_uses_them(place: Workshop) -> None:
    line = CommandLine(place.folder / "line", {"GIBIL_DATA_DIR": str(place.data_dir)})
    line.here.mkdir(parents=True)

    async def gibil(*words: str) -> Any:
        done = await asyncio.to_thread(line.gibil, "cache", *words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    cache = (Cache(path=("~/kept",), key="k"),)
    words: dict[str, Any] = {"install": f"{INSTALL}\nmkdir -p ~/kept", "caches": cache}
    await place.run(**words, test="echo x >~/kept/x")
    listed = await gibil("list")
    assert sorted((each["kind"], each["repository"], each.get("key")) for each in listed) == [
        ("cache", "o/r7", "k"),
        ("prepared", "o/r7", None),
    ]
    shown = await asyncio.to_thread(line.gibil, "cache", "list")
    assert "KIND" in shown.stdout.splitlines()[0]
    assert len(shown.stdout.splitlines()) == 3
    assert (await gibil("clear", "--repository", "o/other")) == {"deleted": [], "kept": []}

    started = asyncio.Event()

    def on_output(_: int, data: bytes) -> None:
        if b"started" in data:
            started.set()

    place.tools = dataclasses.replace(place.tools, output=on_output)
    waits = "echo started; until test -e ~/go; do sleep 0.05; done; cat ~/kept/x"
    running = asyncio.create_task(place.run(**words, test=waits))
    async with asyncio.timeout(patient(60)):
        await started.wait()
    cleared = await gibil("clear")
    assert [each["kind"] for each in cleared["deleted"]] == ["cache"]
    assert [each["kind"] for each in cleared["kept"]] == ["prepared"]
    assert [each["id"] for each in await gibil("list")] == [each["id"] for each in cleared["kept"]]
    (machine,) = await place.provider.list_machines()
    shell = await place.tools.factory.open(machine)
    await shell.run("touch ~/go")
    await shell.close()
    ended = await running
    assert (ended.statuses, ended.output[1:]) == (["skipped", "success"], ["started", "x"])

    assert [each["kind"] for each in (await gibil("clear"))["deleted"]] == ["prepared"]
    assert await gibil("list") == []
    assert await place.provider.layers() == []
