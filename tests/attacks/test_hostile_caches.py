"""Archives that a hostile machine sent as a cache: they are unpacked below the stated paths only, and bounded where stored."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.errors import MachineLost
from gibil_bot.model import Cache, Conclusion, Result, Trust
from gibil_bot.runs.cached_files import RunCaches
from gibil_bot.runs.caches import Caches
from gibil_bot.runs.prepared import Scope
from gibil_bot.scripts import caches as scripts
from tests.doubles.patience import patient
from tests.doubles.workshop import Workshop, workshop


@dataclasses.dataclass
class Tree:
    """A machine's files in a folder of this computer."""

    root: Path

    def run(self, text: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["sh", "-c", text], input=given, capture_output=True, timeout=patient(60))

    def restore(self, archive: bytes, *patterns: str, only_missing: bool = False) -> int | None:
        """Unpack and move; return the number of moved paths, None if the archive was rejected."""
        words = [f"!{self.root}{each[1:]}" if each.startswith("!") else f"{self.root}{each}" for each in patterns]
        folder = str(self.root / "caches")
        unpacked = self.run(
            scripts.unpack_script(0, words, compressed=False, only_missing=only_missing, folder=folder), archive
        )
        if unpacked.returncode != 0:
            assert not (self.root / "caches/0").exists()
            return None
        placed = self.run(scripts.place_script(0, words, folder=folder))
        assert placed.returncode == 0, placed.stderr
        assert not (self.root / "caches/0").exists()
        return int(placed.stdout)

    def pack(self, *patterns: str, only_changed: bool = False, most_bytes: int = 10**9) -> bytes | object:
        words = [f"!{self.root}{each[1:]}" if each.startswith("!") else f"{self.root}{each}" for each in patterns]
        folder = str(self.root / "caches")
        done = self.run(
            scripts.pack_script(0, words, compressed=False, only_changed=only_changed, most_bytes=most_bytes, folder=folder)
        )
        assert done.returncode == 0, done.stderr
        size = scripts.parse_packed(done.stdout)
        if not isinstance(size, int):
            return size
        data = self.run(scripts.read_script(0, 0, folder=folder)).stdout
        assert len(data) == size
        return data

    def listed(self) -> list[str]:
        found = (path for path in self.root.rglob("*") if "caches" not in path.parts[len(self.root.parts) :])
        return sorted(str(path.relative_to(self.root)) for path in found if path.is_symlink() or not path.is_dir())


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "machine").mkdir()
    return Tree(tmp_path / "machine")


def archive(tree: Tree, *members: tuple[str, Any]) -> bytes:
    """Return a tar. A member: its name, and its text, `("link", target)` or `("hard", target)`; `@` is the machine's root."""
    out = io.BytesIO()
    root = str(tree.root).lstrip("/")
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, what in members:
            info = tarfile.TarInfo(name.replace("@", root))
            if isinstance(what, str):
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what.encode()))
            else:
                info.type = tarfile.SYMTYPE if what[0] == "link" else tarfile.LNKTYPE
                info.linkname = what[1].replace("@", root)
                tar.addfile(info)
    return out.getvalue()


HOSTILE: dict[str, Callable[[Path], list[tuple[str, Any]]]] = {
    "another path": lambda out: [("@/home/.bashrc", "evil")],
    "an absolute path": lambda out: [(f"{out}/planted", "evil")],
    "dots": lambda out: [("@/home/.npm/../.bashrc", "evil")],
    "dots above the root": lambda out: [(f"{'../' * 30}{str(out).lstrip('/')}/planted", "evil")],
    "a name that begins alike": lambda out: [("@/home/.npmrc", "evil")],
    "through a link in the archive": lambda out: [("@/home/.npm/x", ("link", str(out))), ("@/home/.npm/x/planted", "evil")],
    "through a link in place of a folder": lambda out: [("@/home", ("link", str(out))), ("@/home/.npm", "evil")],
    "through a link in place of the path": lambda out: [("@/home/.npm", ("link", str(out))), ("@/home/.npm/planted", "evil")],
    "through a hard link": lambda out: [
        ("@/home/.npm/x", ("hard", f"{'../' * 30}{str(out).lstrip('/')}/secret")),
        ("@/home/.npm/x", "evil"),
    ],
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_poisoned_archive_writes_nothing_outside_of_its_paths(tree: Tree, how: str) -> None:
    out = tree.root.parent / "outside"
    out.mkdir()
    (out / "secret").write_text("untouched")
    (tree.root / "home").mkdir()
    tree.restore(archive(tree, *HOSTILE[how](out)), "/home/.npm")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"secret": "untouched"}
    assert [name for name in tree.listed() if not name.startswith("home/.npm/") and name != "home/.npm"] == []


def test_links_on_the_machine_are_not_followed(tree: Tree) -> None:
    out = tree.root.parent / "outside"
    out.mkdir()
    (tree.root / "home").symlink_to(out)
    assert tree.restore(archive(tree, ("@/home/.npm/a", "evil"), ("@/home/b/c", "evil")), "/home/.npm", "/home/b") == 0
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"not an archive", b"\x28\xb5\x2f\xfd" + b"\0" * 100])
def test_bytes_that_are_no_archive_are_rejected(tree: Tree, data: bytes) -> None:
    assert not tree.restore(data, "/home/.npm")
    assert tree.listed() == []


def test_an_archive_that_is_cut_off_is_rejected(tree: Tree) -> None:
    whole = archive(tree, ("@/home/.npm/a", "a" * 5000), ("@/home/.npm/b", "b" * 5000))
    assert tree.restore(whole[:8000], "/home/.npm") is None
    assert tree.listed() == []


def test_files_that_are_packed_come_back_and_nothing_else(tree: Tree) -> None:
    names = [
        "home/.npm/a b", "home/.npm/-x/\n", "home/.npm/_logs/log", "home/.npm/deep/_logs/log", "home/other", "work/a/out/1",
        "work/b/out/2", "work/out", "work/b/in",
    ]  # fmt: skip
    for name in names:
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        (tree.root / name).write_text(name)
    (tree.root / "home/.npm/link").symlink_to("/nowhere")
    (tree.root / "home/.npm/-x").chmod(0o710)
    patterns = ("/home/.npm", "!/home/.npm/_logs", "/work/**/out")
    data = tree.pack(*patterns)
    assert isinstance(data, bytes)
    before = tree.listed()
    subprocess.run(["rm", "-rf", tree.root / "home", tree.root / "work"], check=True)
    assert tree.restore(data, *patterns) == 4
    left = {"home/.npm/_logs/log", "home/other", "work/b/in"}
    assert tree.listed() == [name for name in before if name not in left]
    assert (tree.root / "home/.npm/-x").stat().st_mode & 0o777 == 0o710

    (tree.root / "work/out").write_text("newer")
    assert tree.restore(data, *patterns, only_missing=True) is None
    assert (tree.root / "work/out").read_text() == "newer"
    assert tree.restore(data, *patterns) == 4  # on top of what exists
    assert (tree.root / "work/out").read_text() == "work/out"


def test_unchanged_missing_and_large_files_are_not_packed(tree: Tree) -> None:
    data = archive(tree, ("@/home/.npm/a", "a"))
    assert tree.pack("/home/.npm") == "nothing"
    assert tree.restore(data, "/home/.npm") == 1
    assert tree.pack("/home/.npm", only_changed=True) == "unchanged"
    (tree.root / "home/.npm/b").write_bytes(b"b" * 50_000)
    assert tree.pack("/home/.npm", only_changed=True, most_bytes=50_000) == "large"
    assert isinstance(tree.pack("/home/.npm", only_changed=True, most_bytes=70_000), bytes)


class Liar:
    """A machine that answers whatever the test chose, and never ends."""

    def __init__(self, packed: bytes, chunk: Callable[[], bytes]) -> None:
        self._packed, self._chunk = packed, chunk
        self.read = 0

    async def run(self, script: str, **_: Any) -> Result:
        if "hash_files" in script:
            return Result(exit_status=0, stdout=b"zstd\n", stderr=b"")
        if script.startswith("tail"):
            chunk = self._chunk()
            self.read += len(chunk)
            return Result(exit_status=0, stdout=chunk, stderr=b"")
        return Result(exit_status=0, stdout=self._packed if "most_packed" in script else b"", stderr=b"")


MB = 1024**2


def lost() -> bytes:
    raise MachineLost("gone")


@pytest.mark.parametrize(
    ("packed", "chunk"),
    [
        (b"999999999999999\n", lambda: b"x" * MB),  # an endless archive
        (b"1\n", lambda: b"x" * MB),  # more than announced
        (b"10\n", lambda: b""),  # less than announced
        (b"99999999999999999999999\n", lambda: b"x"),
        (b"-1\n", lambda: b"x"),
        (b"", lambda: b"x"),
        (b"10\n", lost),
    ],
)
async def test_what_a_lying_machine_sends_is_bounded_and_not_stored(
    tmp_path: Path, packed: bytes, chunk: Callable[[], bytes]
) -> None:
    place = RunOf(tmp_path)
    machine = Liar(packed, chunk)
    assert await place.caches.restore(machine, place.plan, is_prepared=False) == []  # type: ignore[arg-type]
    assert await place.caches.save(machine) == []  # type: ignore[arg-type]
    assert machine.read <= 4 * MB
    assert list((tmp_path / "caches").glob("*")) == []


class RunOf:
    """A run with one cache and no machine."""

    def __init__(self, tmp_path: Path) -> None:
        from msgspec.structs import replace

        from tests.contracts.store_nouns import new_run

        new = new_run("0" * 16)
        self.plan = replace(new.plan, caches=(Cache(path=("~/.npm",), key="k"),))
        scope = Scope(repository="github 7", reads=("trusted",), writes="trusted")
        self.caches = RunCaches(Caches(tmp_path / "caches", entry_mb=3), scope, new)  # type: ignore[arg-type]


# --- runs ---

WRITE = 'mkdir -p ~/kept && {{ cat ~/kept/* 2>/dev/null || true; }}; echo "{0}" >~/kept/{0}'


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Workshop]:
    async with workshop(tmp_path / "w") as place:
        caches = Caches(place.data_dir / "caches")
        place.tools = dataclasses.replace(place.tools, caches=caches, prepared=None)
        yield place


@pytest.mark.usefixtures("local_machines")
async def test_a_cache_reaches_no_run_that_trusts_its_writer_less(place: Workshop) -> None:
    cache = (Cache(path=("~/kept",), key="k", restore_keys=("k",)),)
    hostile: dict[str, Any] = {"install": "true", "trust": Trust.UNTRUSTED, "number": 5, "caches": cache}

    async def output(**words: Any) -> list[str]:
        ended = await place.run(**{**hostile, "test": WRITE.format("x"), **words})
        assert ended.conclusion is Conclusion.SUCCESS, ended.run.note
        return [line for line in ended.output if not line.startswith("gibil: ")]

    assert await output(test=WRITE.format("planted")) == []
    assert await output() == ["planted"]  # the same code at the same commit
    for words in (
        {"number": 6},
        {"repository_id": 8},
        {"private": True},
        {"trust": Trust.TRUSTED, "test": WRITE.format("good")},
    ):
        assert await output(**words) == [], words
    place.commit({"source": "another\n"})
    assert await output() == ["good"]  # another commit of that pull request reads the trusted scope
    assert await output(trust=Trust.TRUSTED) == ["good"]
