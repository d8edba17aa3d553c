"""The caches of one run: their files are restored before the first task and saved after a run whose tasks succeeded.

A run whose file has `cache` uses those. Any other run keeps the downloads of its package managers, each manager's in an entry
whose key is the digest of the project's lock files; after a change, the newest entry is restored and a new one is saved.

What the machine sends is opaque: it is bounded in size and time, stored with its digest, and unpacked only on machines, into a
folder from which only files at the stated paths are moved (scripts/cache_*.sh). A cache never fails a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from gibil_bot.clock import now
from gibil_bot.errors import GibilError, MachineLost, SSHError
from gibil_bot.humanize import megabytes
from gibil_bot.model import CacheEntry, Plan, Run
from gibil_bot.planning.cache_keys import hash_patterns
from gibil_bot.ports import Shell
from gibil_bot.runs.caches import FORMAT, CacheDamaged, CacheNotStored, Caches, Request, find
from gibil_bot.runs.prepared import Scope
from gibil_bot.scripts import caches as scripts
from gibil_bot.ssh.answers import printable

log = logging.getLogger("gibil.runner")

CACHE, DOWNLOADS = "cache", "downloads"
EVALUATE_S = 60.0
RESTORE_S = 300.0
"""Limit for the transfer of one cache to a machine."""
SAVE_S = 300.0
"""Limit for packing and reading all caches of a run."""
MOST_KEY = 512
_SHOWN = 120

_PYTHON = (
    *("**/uv.lock", "**/poetry.lock", "**/pdm.lock", "**/Pipfile.lock", "**/pylock*.toml"),
    *("**/pyproject.toml", "**/setup.py", "**/setup.cfg", "**/*requirements*.txt", "**/requirements/*.txt"),
)
DOWNLOAD_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "~/.cache/pip": _PYTHON,
    "~/.cache/uv": _PYTHON,
    "~/.npm": ("**/package-lock.json", "**/npm-shrinkwrap.json", "**/package.json"),
    "~/.local/share/pnpm/store": ("**/pnpm-lock.yaml", "**/package.json"),
    "~/.cache/yarn": ("**/yarn.lock", "**/package.json"),
    "~/.yarn/berry/cache": ("**/yarn.lock", "**/package.json"),
    "~/go/pkg/mod": ("**/go.sum", "**/go.mod"),
    "~/.cargo/registry": ("**/Cargo.lock", "**/Cargo.toml"),
    "~/.cargo/git": ("**/Cargo.lock", "**/Cargo.toml"),
}
"""Folder → patterns of the files that decide what is downloaded into it."""
_NEVER = tuple(f"!{scripts.HOME}/.gibil/{name}" for name in ("caches", "jobs", "files"))
_PIECE = re.compile(r"\$\{\{(.*?)\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A cache as the plan has it: `key` and `restore_keys` may contain `hashFiles()`."""

    kind: str
    paths: tuple[str, ...]
    """As they were written."""
    key: str
    restore_keys: tuple[str, ...]

    @property
    def shown(self) -> str:
        """The cache's name for people."""
        return printable(", ".join(self.paths), _SHOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A cache that was unpacked on the machine."""

    wanted: Wanted
    key: str
    """Of the entry."""
    size_bytes: int
    took_s: float

    def __str__(self) -> str:
        size = f"{megabytes(self.size_bytes)} in {self.took_s:.1f} s"
        if self.wanted.kind == DOWNLOADS:
            return f"reused the downloads in {self.wanted.shown} ({size})"
        return f"restored the cache {printable(self.key, _SHOWN)} ({size})"


@dataclass(slots=True, kw_only=True)
class _Slot:
    number: int
    wanted: Wanted
    request: Request
    hit: bool = False
    """An entry has exactly this key, so nothing is saved."""
    partial: bool = False
    """An entry of another key was restored."""


def wanted_caches(plan: Plan) -> tuple[Wanted, ...]:
    """Return the caches of a plan whose tasks are known."""
    if plan.caches:
        return tuple(Wanted(kind=CACHE, paths=each.path, key=each.key, restore_keys=each.restore_keys) for each in plan.caches)
    folders = plan.detected.caches if plan.detected is not None else tuple(DOWNLOAD_FOLDERS)
    found = []
    for folder in folders:
        patterns = DOWNLOAD_FOLDERS.get(folder) or (plan.detected.key_files if plan.detected is not None else ())
        quoted = ", ".join(f"'{pattern}'" for pattern in patterns if "'" not in pattern)
        if quoted:
            key = f"{folder} ${{{{ hashFiles({quoted}) }}}}"
            found.append(Wanted(kind=DOWNLOADS, paths=(folder,), key=key, restore_keys=(folder,)))
    return tuple(found)


def lists_of(caches: Sequence[Wanted]) -> tuple[tuple[str, ...], ...]:
    """Return the different lists of patterns that the keys' `hashFiles()` name."""
    found: dict[tuple[str, ...], None] = {}
    for cache in caches:
        for key in (cache.key, *cache.restore_keys):
            for match in _PIECE.finditer(key):
                patterns = hash_patterns(match[1])
                if patterns is not None:
                    found[patterns] = None
    return tuple(found)


def with_digests(key: str, digests: Mapping[tuple[str, ...], str]) -> str:
    """Replace each `hashFiles()` of a key by its digest: empty if no file matches, as in Actions."""
    key = _PIECE.sub(lambda match: digests.get(hash_patterns(match[1]) or (), ""), key).strip()
    return key if len(key) <= MOST_KEY else key[: MOST_KEY - 64] + hashlib.sha256(key.encode()).hexdigest()


class RunCaches:
    """What one run restores and saves. Call `restore` once the commit is on the machine, and `save` after the last task."""

    def __init__(self, caches: Caches, scope: Scope, run: Run) -> None:
        self._caches, self._scope, self._run = caches, scope, run
        self._slots: list[_Slot] = []
        self._workflow = run.plan.workflow
        self.notes: list[str] = []
        """What people should know about the caches that a file names."""

    async def restore(self, shell: Shell, plan: Plan, *, is_prepared: bool) -> list[Restored]:
        """Restore the caches; return those that were unpacked. Raises MachineLost.

        `is_prepared`: nothing will be installed on this machine. Then downloads are of no use, and what it has at the paths of
        other caches is what was installed on top of them.
        """
        wanted = wanted_caches(plan)
        if is_prepared:
            wanted = tuple(cache for cache in wanted if cache.kind != DOWNLOADS)
        if not wanted:
            return []
        lists = lists_of(wanted)
        specs = [[scripts.pathspec(pattern) for pattern in patterns] for patterns in lists]
        answer = await self._run_script(shell, scripts.evaluate_script(specs), EVALUATE_S)
        evaluated = None if answer is None else scripts.parse_evaluated(answer, len(lists))
        if evaluated is None:
            log.warning("run %s: the keys of its caches can't be evaluated on its machine", self._run.id)
            return []
        digests = dict(zip(lists, evaluated.digests, strict=True))
        entries = await self._entries()
        found = []
        for number, cache in enumerate(wanted):
            if cache.kind == DOWNLOADS and plan.detected is None and not any(digests[each] for each in lists_of([cache])):
                continue  # the project has no file for that package manager
            request = Request(
                kind=cache.kind,
                paths=tuple(scripts.absolute(path) for path in cache.paths),
                key=with_digests(cache.key, digests),
                restore_keys=tuple(key for each in cache.restore_keys if (key := with_digests(each, digests))),
                compression=evaluated.compression,
            )
            if not request.key:
                self.notes.append(f"The cache of {cache.shown} isn't used: its key is empty, because no file matches.")
                continue
            slot = _Slot(number=number, wanted=cache, request=request)
            self._slots.append(slot)
            entry = find(entries, request, self._scope)
            if entry is None:
                continue
            restored = await self._restore_one(shell, slot, entry, only_missing=is_prepared or cache.kind == DOWNLOADS)
            if restored is not None:
                found.append(restored)
        return found

    async def _entries(self) -> list[CacheEntry]:
        try:
            return [usage.entry for usage in await self._caches.usages()]
        except OSError as error:
            log.warning("run %s: the caches can't be listed: %s", self._run.id, error.strerror)
            return []

    async def _restore_one(self, shell: Shell, slot: _Slot, entry: CacheEntry, *, only_missing: bool) -> Restored | None:
        exact = entry.key == slot.request.key
        if not exact and slot.wanted.kind == DOWNLOADS and entry.size_bytes > self._caches.entry_bytes // 2:
            return None  # begins again, because downloads that are no longer needed are never deleted from it
        started = time.perf_counter()
        try:
            done = await self._transfer(shell, slot, entry, only_missing=only_missing)
        except CacheDamaged as error:
            log.warning("run %s: %s", self._run.id, error.message)
            await self._run_script(shell, scripts.discard_script(slot.number), EVALUATE_S)
            return None
        slot.hit, slot.partial = exact, not exact
        if not done:
            return None
        await self._caches.used(entry)
        return Restored(wanted=slot.wanted, key=entry.key, size_bytes=entry.size_bytes, took_s=time.perf_counter() - started)

    async def _transfer(self, shell: Shell, slot: _Slot, entry: CacheEntry, *, only_missing: bool) -> bool:
        """Unpack an entry and move its files to their paths; False if the machine can't, or has files there already.

        Raises CacheDamaged, MachineLost.
        """
        compressed = slot.request.compression == "zstd"
        patterns = (*slot.request.paths, *_NEVER)
        text = scripts.unpack_script(slot.number, patterns, compressed=compressed, only_missing=only_missing)
        sent = False

        async def archive() -> AsyncIterator[bytes]:
            nonlocal sent
            async with contextlib.aclosing(self._caches.read(entry)) as blocks:
                async for block in blocks:
                    yield block
            sent = True

        try:
            result = await shell.run(text, timeout_s=RESTORE_S, stdin=archive())
        except MachineLost:
            raise
        except (SSHError, TimeoutError) as error:
            log.warning("run %s: the cache %s isn't restored: %s", self._run.id, entry.id, error)
            return False
        if result.exit_status == scripts.ALREADY_THERE:
            return False
        if result.exit_status != 0 or not sent:
            log.warning("run %s: the cache %s can't be unpacked on its machine", self._run.id, entry.id)
            return False
        moved = await self._run_script(shell, scripts.place_script(slot.number, patterns), RESTORE_S)
        return moved is not None and moved.strip().isdigit() and int(moved) > 0

    async def save(self, shell: Shell) -> list[CacheEntry]:
        """Save what had no exact hit, after the tasks succeeded. Returns the stored entries. Never raises."""
        slots = [slot for slot in self._slots if not slot.hit]
        if self._scope.writes is None:
            if self._run.plan.secrets and any(slot.wanted.kind == CACHE for slot in slots):
                self.notes.append("The run has secrets, so its caches aren't saved: they could contain one.")
            return []
        stored = []
        try:
            async with asyncio.timeout(SAVE_S):
                for slot in await self._filled(shell, slots):
                    entry = await self._save_one(shell, slot, self._scope.writes)
                    if entry is not None:
                        stored.append(entry)
        except TimeoutError:
            self._not_saved("caches", f"it takes longer than {SAVE_S:g} s")
        except GibilError as error:
            self._not_saved("caches", error.message)
        except OSError as error:
            self._not_saved("caches", str(error.strerror))
        return stored

    async def _filled(self, shell: Shell, slots: Sequence[_Slot]) -> list[_Slot]:
        """Return the caches of files, and those of downloads whose folders have any: most projects use one of them."""
        folders = [slot.request.paths[0] for slot in slots if slot.wanted.kind == DOWNLOADS]
        answer = await self._run_script(shell, scripts.filled_script(folders), EVALUATE_S) if folders else b""
        filled = set((answer or b"").decode("utf-8", "replace").split("\n"))
        return [slot for slot in slots if slot.wanted.kind == CACHE or slot.request.paths[0] in filled]

    async def _save_one(self, shell: Shell, slot: _Slot, scope: str) -> CacheEntry | None:
        limit = self._caches.entry_bytes
        text = scripts.pack_script(
            slot.number,
            (*slot.request.paths, *_NEVER),
            compressed=slot.request.compression == "zstd",
            only_changed=slot.partial and slot.wanted.kind == DOWNLOADS,
            most_bytes=limit,
        )
        answer = await self._run_script(shell, text, SAVE_S)
        packed = None if answer is None else scripts.parse_packed(answer)
        if packed == "nothing" and slot.wanted.kind == CACHE:
            self._not_saved(slot.wanted.shown, "no file matches its paths", slot)
        if packed == "large":
            self._not_saved(slot.wanted.shown, f"it is larger than {megabytes(limit)}", slot)
        if not isinstance(packed, int):
            return None
        entry = CacheEntry(
            format=FORMAT,
            id="",
            kind=slot.wanted.kind,
            repository=self._scope.repository,
            repository_name=self._run.source.repository.full_name,
            scope=scope,
            workflow=self._workflow,
            version=slot.request.version,
            key=slot.request.key,
            paths=slot.wanted.paths,
            compression=slot.request.compression,
            digest="",
            size_bytes=0,
            created_at=now(),
        )
        try:
            async with contextlib.aclosing(self._packed(shell, slot.number, packed)) as archive:
                return await self._caches.save(entry, archive)
        except CacheNotStored as error:
            self._not_saved(slot.wanted.shown, error.message, slot)
            return None
        finally:
            await self._run_script(shell, scripts.discard_script(slot.number), EVALUATE_S)

    async def _packed(self, shell: Shell, number: int, size: int) -> AsyncGenerator[bytes, None]:
        """Yield an archive of that size in pieces, so that the disk and not the machine decides how fast it comes."""
        offset = 0
        while offset < size:
            result = await shell.run(scripts.read_script(number, offset), timeout_s=EVALUATE_S, most_bytes=scripts.CHUNK + 4096)
            if result.exit_status != 0 or not 0 < len(result.stdout) <= scripts.CHUNK:
                raise CacheNotStored("its machine didn't send all of it")
            offset += len(result.stdout)
            yield result.stdout
        if offset != size:
            raise CacheNotStored("its machine sent more than it had announced")

    def _not_saved(self, what: str, why: str, slot: _Slot | None = None) -> None:
        log.info("run %s: %s not saved: %s", self._run.id, what, why)
        if slot is not None and slot.wanted.kind == CACHE:
            self.notes.append(f"The cache {what} wasn't saved: {why}.")

    async def _run_script(self, shell: Shell, text: str, timeout_s: float) -> bytes | None:
        """Return what a script printed; None if it failed. Raises MachineLost."""
        try:
            result = await shell.run(text, timeout_s=timeout_s)
        except MachineLost:
            raise
        except (SSHError, TimeoutError) as error:
            log.warning("run %s: its machine didn't answer about caches: %s", self._run.id, error)
            return None
        return result.stdout if result.exit_status == 0 else None
