"""What a run leaves on its prepared machine must not reach a run that trusts it less, or another repository."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.model import Conclusion, LayerInfo, Trust
from gibil_bot.providers.local.paths import LocalPaths, read_daemon
from gibil_bot.providers.local.provider import LocalProvider
from gibil_bot.runs.prepared import Scope
from tests.doubles.machines import until
from tests.doubles.workshop import INSTALL, Workshop, workshop

pytestmark = pytest.mark.usefixtures("local_machines")

PLANTED = r"""
printf '#!/bin/sh\ntest $1 != --version || echo PLANTED\nexec /usr/bin/git "$@"\n' >/usr/local/bin/git
chmod 755 /usr/local/bin/git
echo 'echo PLANTED' >>/root/.bashrc
mkdir -p .git/hooks
printf '#!/bin/sh\necho PLANTED >>/root/planted\n' | tee .git/hooks/post-checkout >.git/hooks/reference-transaction
chmod 755 .git/hooks/*
git config core.fsmonitor '/bin/sh -c "echo PLANTED >>/root/planted"'
git config filter.x.smudge '/bin/sh -c "echo PLANTED >>/root/planted; cat"'
git config core.hooksPath /root/project/.git/hooks
echo '* filter=x' >.git/info/attributes 2>/dev/null || { mkdir -p .git/info && echo '* filter=x' >.git/info/attributes; }
rm -f /root/planted
"""
LOOK = r"""
git --version
test ! -e /root/planted || cat /root/planted
test ! -e /root/.bashrc || cat /root/.bashrc
cat .git/config .git/info/attributes 2>/dev/null || true
ls .git/hooks 2>/dev/null || true
"""


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path / "w") as place:
        yield place


async def test_what_an_untrusted_run_leaves_is_used_only_for_the_same_commit(place: Workshop) -> None:
    planted = f"{INSTALL}\n{PLANTED}"
    hostile = place.commit({"source": "hostile\n"})
    first = await place.run(install=planted, test="true", trust=Trust.UNTRUSTED, number=5)
    assert first.conclusion is Conclusion.SUCCESS
    (usage,) = await place.prepared.usages()
    assert usage.entry.scope == f"pull request 5 at {hostile}"

    again = await place.run(install=planted, test="git --version", trust=Trust.UNTRUSTED, number=5)
    assert again.statuses == ["skipped", "success"]  # the same code has the same machine
    assert "PLANTED" in again.output

    place.commit({"source": "harmless\n"})
    later = await place.run(install=planted, test="true", trust=Trust.UNTRUSTED, number=5)
    assert later.statuses == ["success", "success"]

    # The tasks and files are the same, so only the scope can keep that machine from being used.
    others: list[dict[str, Any]] = [
        {"trust": Trust.UNTRUSTED, "number": 6},
        {"trust": Trust.UNTRUSTED, "number": 5, "repository_id": 8},
        {"trust": Trust.UNTRUSTED, "number": 5, "private": True},
        {"trust": Trust.TRUSTED, "number": 5},  # approved since
    ]
    for words in others:
        other = await place.run(hostile, install=planted, test="true", **words)
        assert other.statuses == ["success", "success"], words
    assert [info.parent for info in await place.provider.layers()] == [None] * 5


async def test_an_untrusted_run_reads_the_trusted_machine_and_never_changes_it(place: Workshop) -> None:
    await place.run()
    untrusted: dict[str, Any] = {"trust": Trust.UNTRUSTED, "number": 5, "test": f"{PLANTED}\ntool"}
    reads = await place.run(**untrusted)
    assert (reads.statuses, reads.output[-1]) == (["skipped", "success"], "a tool")
    place.commit({"lock": "hostile\n"})
    on_top = await place.run(**untrusted)
    assert on_top.statuses == ["success", "success"]
    assert sorted(usage.entry.scope.split()[0] for usage in await place.prepared.usages()) == ["pull", "trusted"]
    trusted = await place.run(test=f"cat node_modules/installed; {LOOK}")  # the same commit, now trusted
    assert trusted.output[:2] == ["one", "hostile"]
    assert not any("PLANTED" in line for line in trusted.output)
    assert trusted.statuses == ["success", "success"]


async def test_the_git_configuration_of_a_prepared_machine_is_not_used(place: Workshop) -> None:
    await place.run(install=f"{INSTALL}\n{PLANTED}\nrm /usr/local/bin/git /root/.bashrc", test="true")
    place.commit({"source": "second\n"})
    second = await place.run(install=f"{INSTALL}\n{PLANTED}\nrm /usr/local/bin/git /root/.bashrc", test=LOOK)
    assert second.statuses == ["skipped", "success"]
    assert not any("PLANTED" in line or "filter" in line or "hook" in line for line in second.output)


# Exchanges our folder and a link that then leads to it, at once.
LINK_OUR_FOLDER = """ln -s /root/ours /root/ours
python3 -c 'import ctypes
assert ctypes.CDLL(None).renameat2(-100, b"/root/.gibil", -100, b"/root/ours", 2) == 0'
"""


async def test_folders_that_an_earlier_run_replaced_by_links_change_no_later_run(place: Workshop) -> None:
    for each in (
        "cp -r . /root/other && cd / && rm -rf /root/project && ln -s other /root/project && echo evil >/root/other/source",
        LINK_OUR_FOLDER,
    ):
        words: dict[str, Any] = {"install": f"{INSTALL}\n{each}", "test": "cat source; readlink /root/project || true"}
        first = await place.run(**words)
        assert first.conclusion is Conclusion.SUCCESS, first.run.note
        second = await place.run(**words)
        assert second.conclusion is Conclusion.SUCCESS, (second.results, second.run.note)
        assert second.output == ["first"]


async def test_two_runs_that_save_the_same_at_once_both_succeed(place: Workshop) -> None:
    ended = await asyncio.gather(*(place.run() for _ in range(2)))
    assert [one.conclusion for one in ended] == [Conclusion.SUCCESS] * 2
    assert 1 <= len(await place.provider.layers()) <= 2
    third = await place.run()
    assert third.statuses == ["skipped", "success"]


class KillsItsDaemon(LocalProvider):
    """The daemon is killed while it saves a layer, or before it has made it permanent."""

    paths: LocalPaths
    kills = 0
    when = "while"

    async def save_layer(self, name: str, layer_id: str) -> LayerInfo:
        daemon = read_daemon(KillsItsDaemon.paths)
        assert daemon is not None
        if KillsItsDaemon.kills:
            KillsItsDaemon.kills -= 1
            if KillsItsDaemon.when == "after":
                info = await super().save_layer(name, layer_id)
                os.kill(daemon.pid, signal.SIGKILL)
                return info
            saving = asyncio.ensure_future(super().save_layer(name, layer_id))
            folder = KillsItsDaemon.paths.machine(name)
            await until(lambda: not folder.is_dir() or not (folder / "machine.json").exists() or saving.done(), "it began")
            os.kill(daemon.pid, signal.SIGKILL)
            return await saving
        return await super().save_layer(name, layer_id)


@pytest.mark.parametrize("when", ["while", "after"])
async def test_a_daemon_that_is_killed_when_it_saves_leaves_no_half_machine(tmp_path: Path, when: str) -> None:
    async with workshop(tmp_path / "w", KillsItsDaemon) as place:
        KillsItsDaemon.paths, KillsItsDaemon.kills, KillsItsDaemon.when = LocalPaths(place.data_dir), 1, when
        ended = await place.run()
        assert ended.conclusion is Conclusion.SUCCESS, ended.run.note
        assert ended.output == ["a tool", "sweet", "one", "first"]
        scope = Scope(repository="github 7", reads=("trusted",), writes=None)
        assert len(await place.prepared.readable(scope)) == len(await place.provider.layers())
        assert (await place.run()).output == ["a tool", "sweet", "one", "first"]
