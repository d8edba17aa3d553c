"""Caches: which entry a run restores, what is evicted, keys with hashes of files, and what the bot's disk has."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from gibil_bot.model import Cache, CacheEntry, DetectedProject, Plan, TaskPlan
from gibil_bot.runs.cached_files import CACHE, DOWNLOAD_FOLDERS, lists_of, wanted_caches, with_digests
from gibil_bot.runs.caches import CacheDamaged, CacheNotStored, Caches, CacheUsage, Request, excess, find, version_of
from gibil_bot.runs.prepared import Scope
from gibil_bot.scripts import caches as scripts
from tests.doubles.repositories import git, repository

START = datetime(2026, 1, 1, tzinfo=UTC)
PATHS = ("/root/.npm",)
TRUSTED = Scope(repository="github 7", reads=("trusted",), writes="trusted")
UNTRUSTED = Scope(repository="github 7", reads=("trusted", "pull request 5 at abc"), writes="pull request 5 at abc")


def entry(key: str, minute: int = 0, **words: Any) -> CacheEntry:
    values = {
        "format": 1, "id": f"{minute:016x}", "kind": "cache", "repository": "github 7", "repository_name": "o/r",
        "scope": "trusted", "workflow": "test", "version": version_of("cache", PATHS, "zstd"), "key": key, "paths": PATHS,
        "compression": "zstd", "digest": "", "size_bytes": 1, "created_at": START + timedelta(minutes=minute),
    }  # fmt: skip
    return CacheEntry(**{**values, **words})


def request(key: str, *restore_keys: str) -> Request:
    return Request(kind="cache", paths=PATHS, key=key, restore_keys=restore_keys, compression="zstd")


@pytest.mark.parametrize(
    ("keys", "wanted", "expected"),
    [
        (["npm-1", "npm-2"], request("npm-1", "npm-"), "npm-1"),  # exactly the key
        (["npm-1", "npm-2"], request("npm-3", "npm-"), "npm-2"),  # the newest that begins with a restore key
        (["npm-1-a", "npm-2"], request("npm-1", "npm-"), "npm-1-a"),  # one that begins with the key comes first
        (["a-1", "b-2"], request("x", "a-", "b-"), "a-1"),  # in the order of the restore keys, not by age
        (["npm-1"], request("npm-2"), None),
        (["xnpm-1"], request("npm-2", "npm-"), None),
    ],
)
def test_an_entry_is_found_in_the_order_of_actions_cache(keys: Sequence[str], wanted: Request, expected: str | None) -> None:
    found = find([entry(key, minute) for minute, key in enumerate(keys)], wanted, TRUSTED)
    assert (found.key if found else None) == expected


def test_trust_repository_and_paths_limit_what_is_found() -> None:
    own = entry("k", scope="pull request 5 at abc")
    for hidden in (
        own,
        entry("k", scope="pull request 6 at abc"),
        entry("k", repository="github 8"),
        entry("k", version=version_of("cache", ("/etc",), "zstd")),
        entry("k", version=version_of("cache", PATHS, "tar")),
        entry("k", version=version_of("downloads", PATHS, "zstd")),
    ):
        assert find([hidden], request("k", "k"), TRUSTED) is None
    assert find([own, entry("k", 1)], request("k"), UNTRUSTED) == own
    assert find([entry("k", 1)], request("k"), UNTRUSTED) == entry("k", 1)


def test_untrusted_entries_are_evicted_first_and_then_the_least_recently_used() -> None:
    def usage(name: str, used: int, **words: Any) -> CacheUsage:
        return CacheUsage(entry=entry(name, size_bytes=10, **words), used_at=START + timedelta(minutes=used))

    usages = [usage("old", 1), usage("new", 9), usage("hostile", 99, scope="pull request 5 at abc"), usage("middle", 5)]

    def gone(repository: int, total: int = 1000, more: Sequence[CacheUsage] = ()) -> list[str]:
        return [each.key for each in excess([*usages, *more], repository_bytes=repository, total_bytes=total)]

    assert gone(40) == []
    assert gone(30) == ["hostile"]
    assert gone(20) == ["hostile", "old"]
    others = [usage("other", 0, repository="github 8")]
    assert gone(40, 50, others) == []
    assert gone(40, 40, others) == ["hostile"]
    assert gone(40, 30, others) == ["hostile", "other"]
    assert gone(10, 1000, others) == ["hostile", "old", "middle"]  # a repository's limit doesn't touch another one


def test_hashes_of_files_are_replaced_in_keys() -> None:
    plan = Plan(
        workflow="test", title="", path="", tasks=(),
        caches=(Cache(path=("a",), key="x-${{ hashFiles('a', 'b') }}-${{ hashFiles('c') }}", restore_keys=("x-",)),),
    )  # fmt: skip
    (wanted,) = wanted_caches(plan)
    assert (wanted.kind, lists_of([wanted])) == (CACHE, (("a", "b"), ("c",)))
    assert with_digests(wanted.key, {("a", "b"): "12", ("c",): ""}) == "x-12-"
    long = {with_digests(f"{'k' * 600}{number}", {}) for number in range(2)}
    assert sorted(map(len, long)) == [512, 512]


def test_without_configuration_the_downloads_of_detected_package_managers_are_stored() -> None:
    detected = DetectedProject(purpose="test", key_files=("Gemfile.lock",), caches=("~/.npm", "~/.bundle/cache"))
    plan = Plan(workflow="test", title="", path="", tasks=(TaskPlan(name="t", run=":"),), detected=detected)
    npm, bundle = wanted_caches(plan)
    assert npm.key.startswith("~/.npm ${{ hashFiles('**/package-lock.json', ")
    assert bundle.key == "~/.bundle/cache ${{ hashFiles('Gemfile.lock') }}"
    assert bundle.restore_keys == ("~/.bundle/cache",)
    written = wanted_caches(replace(plan, detected=None))
    assert [cache.paths[0] for cache in written] == list(DOWNLOAD_FOLDERS)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("~/.npm", "/root/.npm"),
        ("~", "/root"),
        ("node_modules/", "/root/project/node_modules"),
        ("./a//b", "/root/project/a/b"),
        ("/opt/x", "/opt/x"),
        ("!~/.npm/_logs", "!/root/.npm/_logs"),
        ("~user/x", "/root/project/~user/x"),
    ],
)
def test_paths_of_caches_are_absolute_on_the_machine(path: str, expected: str) -> None:
    assert scripts.absolute(path) == expected


def test_hash_files_reads_the_files_of_the_commit(tmp_path: Path) -> None:
    here = repository(tmp_path / "r", {"package-lock.json": "1\n", "web/package-lock.json": "2\n", "[x]/go.sum": "3\n"})

    def digests(*lists: tuple[str, ...]) -> tuple[str, ...]:
        text = scripts.evaluate_script([[scripts.pathspec(each) for each in patterns] for patterns in lists], str(here))
        done = subprocess.run(["sh", "-c", text], capture_output=True, check=True)
        found = scripts.parse_evaluated(done.stdout, len(lists))
        assert found is not None
        return found.digests

    every, top, without, none, web = digests(
        ("**/package-lock.json",), ("*.json",), ("**/package-lock.json", "!web/**"), ("missing",), ("web",)
    )
    assert none == ""
    assert top == without
    assert len({every, top, web}) == 3
    (here / "web/package-lock.json").write_text("changed, and not committed\n")
    assert digests(("web",)) == (web,)
    git(here, "commit", "-qam", "x")
    assert digests(("web",)) != (web,)
    assert digests(("*.json",)) == (top,)


@pytest.mark.parametrize("output", [b"", b"zstd\n", b"zstd\nnone", b"zstd\nnone\nnone\n", b"zstd\nhello\n", b"\xff\nnone\n"])
def test_a_machine_that_prints_anything_else_has_evaluated_nothing(output: bytes) -> None:
    assert scripts.parse_evaluated(output, 1) is None


# --- the bot's disk ---


async def blocks(*data: bytes) -> AsyncIterator[bytes]:
    for block in data:
        yield block


async def stored(caches: Caches, key: str, size: int = 4, **words: Any) -> CacheEntry:
    saved = await caches.save(entry(key, **words), blocks(b"x" * (size - 1), b"y"))
    assert saved is not None
    return saved


async def keys(caches: Caches) -> list[str]:
    return [usage.entry.key for usage in await caches.usages()]


async def test_an_archive_is_stored_once_and_read_back(tmp_path: Path) -> None:
    caches = Caches(tmp_path / "caches")
    saved = await stored(caches, "k")
    assert b"".join([block async for block in caches.read(saved)]) == b"xxxy"
    assert await caches.save(entry("k"), blocks(b"another")) is None
    assert sorted(path.suffix for path in (tmp_path / "caches").iterdir()) == [".archive", ".json"]
    assert await stored(caches, "k", scope="pull request 5 at abc")


@pytest.mark.parametrize("how", ["changed", "cut", "longer", "missing", "described badly"])
async def test_a_damaged_entry_is_never_used(tmp_path: Path, how: str) -> None:
    caches = Caches(tmp_path)
    saved = await stored(caches, "k")
    archive = tmp_path / f"{saved.id}.archive"
    if how == "missing":
        archive.unlink()
    elif how == "described badly":
        (tmp_path / f"{saved.id}.json").write_text("{")
    else:
        archive.write_bytes({"changed": b"xxxz", "cut": b"xxx", "longer": b"xxxyz"}[how])
    assert await keys(caches) == (["k"] if how == "changed" else [])
    if how != "described badly":
        with pytest.raises(CacheDamaged):
            async for _ in caches.read(saved):
                pass
        assert await keys(caches) == []


@pytest.mark.parametrize("why", ["too large", "fails", "cancelled"])
async def test_an_archive_that_does_not_arrive_leaves_nothing(tmp_path: Path, why: str) -> None:
    caches = Caches(tmp_path, entry_mb=5 / 1024**2)
    arrived = asyncio.Event()

    async def sent() -> AsyncIterator[bytes]:
        yield b"xxxx"
        arrived.set()
        if why == "too large":
            yield b"yy"
        elif why == "fails":
            raise CacheNotStored("the machine is gone")
        await asyncio.Event().wait()

    saving = asyncio.create_task(caches.save(entry("k"), sent()))
    if why == "cancelled":
        await arrived.wait()
        saving.cancel()
    with pytest.raises(asyncio.CancelledError if why == "cancelled" else CacheNotStored):
        await saving
    assert list(tmp_path.iterdir()) == []


async def test_what_is_read_is_read_to_its_end_even_if_it_is_cleared(tmp_path: Path) -> None:
    caches = Caches(tmp_path)
    saved = await caches.save(entry("k"), blocks(b"x" * 3 * 1024 * 1024))
    assert saved is not None
    reading = caches.read(saved)
    size = len(await anext(reading))
    assert [gone.id for gone in await caches.clear()] == [saved.id]
    assert list(tmp_path.iterdir()) == []
    async for block in reading:
        size += len(block)
    assert size == 3 * 1024 * 1024
    await caches.used(saved)  # it no longer exists, which isn't an error


async def test_storing_evicts_by_last_use(tmp_path: Path) -> None:
    caches = Caches(tmp_path, repository_mb=10 / 1024**2)
    first = await stored(caches, "first")
    second = await stored(caches, "second")
    os.utime(tmp_path / f"{second.id}.json", (1, 1))
    await caches.used(first)
    await stored(caches, "third")
    assert sorted(await keys(caches)) == ["first", "third"]
    assert len(list(tmp_path.iterdir())) == 4


async def test_clearing_one_repository_leaves_the_others(tmp_path: Path) -> None:
    caches = Caches(tmp_path)
    await stored(caches, "k")
    await stored(caches, "k", repository="github 8", repository_name="o/other")
    assert [gone.repository_name for gone in await caches.clear("o/other")] == ["o/other"]
    assert await keys(caches) == ["k"]


async def test_files_of_killed_processes_are_deleted_later(tmp_path: Path) -> None:
    caches = Caches(tmp_path)
    saved = await stored(caches, "k")
    names = ["0123456789abcdef.archive", "0123456789abcdef.draft", ".0123456789abcdef.json", "0123456789abcdef.json", "mine"]
    for name in names:
        (tmp_path / name).write_text("{")
    await caches.evict()
    assert len(list(tmp_path.iterdir())) == 7  # another process may be writing them
    for path in tmp_path.iterdir():
        os.utime(path, (1, 1))
    await caches.evict()
    assert {path.name for path in tmp_path.iterdir()} == {"mine", f"{saved.id}.json", f"{saved.id}.archive"}
