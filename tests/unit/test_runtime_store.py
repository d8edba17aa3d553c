"""The store of runtimes: complete entries, damaged ones, hostile archives, the size limit."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import tarfile
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from gibil_bot.providers.local.runtime_fill import missing
from gibil_bot.providers.local.runtime_store import NO_TREES, RETRY_S, InvalidTree, RuntimeStore, RuntimeTrees

GOOD = {"node-22.1.0": None, "node-22.1.0/.gibil": "bin node\n", "node-22.1.0/bin": None, "node-22.1.0/bin/node": "#!/bin/sh\n"}


def archive(members: dict[str, str | tarfile.TarInfo | None]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.mode = 0o7755
            data = (content or "").encode()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    buffer.seek(0)
    return buffer


def special(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def renamed(name: str, size: int = 10) -> dict[str, str | tarfile.TarInfo | None]:
    return {path.replace("node-22.1.0", name): None if text is None else text.ljust(size) for path, text in GOOD.items()}


def populated(store: RuntimeStore, target: Path) -> list[str]:
    target.mkdir(parents=True)
    store.populate(target, store.entries())
    return sorted(str(path.relative_to(target)) for path in target.rglob("*") if not path.is_dir())


def test_an_entry_is_linked_into_the_base_tree_without_special_modes(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    link = special("node-22.1.0/bin/npm", tarfile.SYMTYPE, "../lib/npm.js")
    store.add("node-22.1.0", archive({**GOOD, "npm": link}))
    assert [entry.name for entry in store.entries()] == ["node-22.1.0"]
    assert populated(store, tmp_path / "tree") == ["node-22.1.0/.gibil", "node-22.1.0/bin/node", "node-22.1.0/bin/npm"]
    assert (tmp_path / "tree/node-22.1.0/bin/node").stat().st_mode & 0o7777 == 0o755
    assert (store.request("node", "22"), store.request("node", ""), store.request("node", "2")) == (
        "node-22.1.0",
        "node-22.1.0",
        None,
    )


@pytest.mark.parametrize("damage", ["content", "missing", "mode", "link"])
def test_a_damaged_entry_is_never_used(tmp_path: Path, damage: str) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    store.add("node-22.1.0", archive(dict(GOOD)))
    store.add("go-1.24.0", archive(renamed("go-1.24.0")))
    file = tmp_path / "runtimes/node-22.1.0/tree/bin/node"
    if damage == "content":
        file.write_text("#!/bin/no\n")
    elif damage == "mode":
        file.chmod(0o4755)
    else:
        file.unlink()
        if damage == "link":
            file.symlink_to("/bin/sh")
    assert populated(store, tmp_path / "tree") == ["go-1.24.0/.gibil", "go-1.24.0/bin/node"]
    assert not (tmp_path / "tree/node-22.1.0").exists()
    assert [entry.name for entry in store.entries()] == ["go-1.24.0"]


def test_a_partial_entry_is_none(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    whole = archive(dict(GOOD)).getvalue()
    with pytest.raises(InvalidTree):
        store.add("node-22.1.0", io.BytesIO(whole[:700]))
    draft = tmp_path / "runtimes/.node-22.1.0.killed"
    draft.mkdir()
    (draft / "manifest.json").write_text("{}")
    (tmp_path / "runtimes/go-1.24.0/tree").mkdir(parents=True)
    assert store.entries() == ()
    assert populated(store, tmp_path / "tree") == []


@pytest.mark.parametrize(
    "member",
    [
        special("/etc/passwd", tarfile.REGTYPE),
        special("node-22.1.0/../../x", tarfile.REGTYPE),
        special("other/x", tarfile.REGTYPE),
        special("node-22.1.0/up", tarfile.SYMTYPE, "../../x"),
        special("node-22.1.0/bin/up", tarfile.SYMTYPE, "../../x"),
        special("node-22.1.0/root", tarfile.SYMTYPE, "/etc"),
        special("node-22.1.0/hard", tarfile.LNKTYPE, "node-22.1.0/bin/node"),
        special("node-22.1.0/null", tarfile.CHRTYPE),
        special("node-22.1.0/pipe", tarfile.FIFOTYPE),
        special("node-22.1.0/bin/node", tarfile.REGTYPE),
        special("node-22.1.0/bin", tarfile.SYMTYPE, "lib"),
        special("node-22.1.0/bin/node/x", tarfile.REGTYPE),
        special("node-22.1.0/new/x", tarfile.REGTYPE),
    ],
    ids=lambda member: f"{member.name} {member.type!r}",
)
def test_hostile_members_are_rejected_and_nothing_is_left(tmp_path: Path, member: tarfile.TarInfo) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    with pytest.raises(InvalidTree, match=r"node-22\.1\.0"):
        store.add("node-22.1.0", archive({**GOOD, "hostile": member}))
    assert list((tmp_path / "runtimes").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "node", "node-22/..", ".node-22", "node-22\n", "x" * 99])
def test_the_name_of_an_entry_is_checked(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidTree, match="not the name"):
        RuntimeStore(tmp_path / "runtimes").add(name, archive(dict(GOOD)))


@pytest.mark.parametrize(("modified", "expected"), [(1_700_000_000, 1_700_000_000), (float("nan"), 0), (-5, 0), (2.0**70, 0)])
def test_a_file_has_the_time_that_pythons_compiled_code_names(tmp_path: Path, modified: float, expected: int) -> None:
    buffer = archive(dict(GOOD))
    member = tarfile.TarInfo("node-22.1.0/late.py")
    member.pax_headers = {"mtime": str(modified)}
    with tarfile.open(fileobj=buffer, mode="a", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member, io.BytesIO())
    buffer.seek(0)
    store = RuntimeStore(tmp_path / "runtimes")
    store.add("node-22.1.0", buffer)
    populated(store, tmp_path / "tree")
    assert (tmp_path / "tree/node-22.1.0/late.py").stat().st_mtime == expected


def test_concurrent_fills_leave_one_complete_entry(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    threads = [threading.Thread(target=store.add, args=("node-22.1.0", archive(dict(GOOD)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in (tmp_path / "runtimes").iterdir()] == ["node-22.1.0"]
    assert populated(store, tmp_path / "tree") == ["node-22.1.0/.gibil", "node-22.1.0/bin/node"]


def test_the_least_recently_requested_entry_is_deleted_above_the_limit(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes", most_bytes=900_000)
    for age, name in ((3, "node-20.1.0"), (2, "node-22.1.0")):
        store.add(name, archive(renamed(name, size=150_000)))
        os.utime(tmp_path / "runtimes" / name, (age, age))
    store.request("node", "20")
    store.add("go-1.24.0", archive(renamed("go-1.24.0", size=150_000)))
    assert [entry.name for entry in store.entries()] == ["go-1.24.0", "node-20.1.0"]


def hold(folder: Path, connection: Connection) -> None:
    """Begin to add a version of node, in a process that is killed meanwhile."""
    store = RuntimeStore(folder)
    with store.filling("node") as locked:
        (folder / ".node-22.1.0.half/tree").mkdir(parents=True)
        connection.send(locked)
        connection.recv()


def test_one_process_at_a_time_adds_a_runtime_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "runtimes", theirs))
    process.start()
    assert ours.recv() is True
    store = RuntimeStore(tmp_path / "runtimes")
    with store.filling("node") as locked, store.filling("go") as other:
        assert (locked, other) == (False, True)
    assert (tmp_path / "runtimes/.node-22.1.0.half").exists()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with store.filling("node") as locked:
        assert locked
        assert not (tmp_path / "runtimes/.node-22.1.0.half").exists()
    assert store.entries() == ()


def linked(trees: RuntimeTrees, local: Path) -> list[str]:
    found = trees.link()
    return sorted(path.name for path in (local / found.folder / "opt/gibil").iterdir()) if found.folder else []


def test_the_trees_are_read_again_only_when_the_store_has_changed(tmp_path: Path) -> None:
    store, trees = RuntimeStore(tmp_path / "runtimes"), RuntimeTrees(RuntimeStore(tmp_path / "runtimes"))
    assert trees.unchanged() is None
    assert trees.link() == NO_TREES == trees.unchanged()
    store.add("node-22.1.0", archive(dict(GOOD)))
    assert trees.unchanged() is None
    assert linked(trees, tmp_path) == ["node-22.1.0"]
    assert trees.unchanged() is None, "the folder changed a moment ago, so it may change again at the same time"
    os.utime(tmp_path / "runtimes", (1, 1))
    first = trees.link()
    assert trees.unchanged() == first
    store.request("node", "22")
    assert trees.unchanged() == first
    store.add("go-1.24.0", archive(renamed("go-1.24.0")))
    assert trees.unchanged() is None
    assert linked(trees, tmp_path) == ["go-1.24.0", "node-22.1.0"]
    assert trees.link().entries > first.entries


def test_a_damaged_entry_is_not_among_the_trees(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    store.add("node-22.1.0", archive(dict(GOOD)))
    store.add("go-1.24.0", archive(renamed("go-1.24.0")))
    (tmp_path / "runtimes/node-22.1.0/tree/bin/node").write_text("#!/bin/no\n")
    assert linked(RuntimeTrees(store), tmp_path) == ["go-1.24.0"]
    (tmp_path / "runtimes/go-1.24.0/manifest.json").write_text("{")
    assert linked(RuntimeTrees(store), tmp_path) == []
    assert not list(tmp_path.glob(".runtimes-*"))


def test_what_is_stored_can_be_listed_and_cleared(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    assert store.usages() == store.clear() == []
    for name in ("node-22.1.0", "go-1.24.0"):
        store.add(name, archive(renamed(name)))
        os.utime(tmp_path / "runtimes" / name, (1, 1))
    store.request("go", "1.24")
    assert [each.name for each in store.usages()] == ["go-1.24.0", "node-22.1.0"]
    assert [each.name for each in store.clear()] == ["go-1.24.0", "node-22.1.0"]
    assert store.entries() == ()


def test_only_what_is_missing_is_stored_and_a_failure_is_not_repeated_at_once(tmp_path: Path) -> None:
    store = RuntimeStore(tmp_path / "runtimes")
    store.add("node-22.1.0", archive(dict(GOOD)))
    names = ["node-22.1.0", "go-1.24.3", "tools", "cobol-1", "../x-1", "go-1;id", "java-21", *(f"go-1.{n}" for n in range(20))]
    found = missing(store, names)
    assert found[:2] == [("go", "1.24.3"), ("java", "21")]
    assert len(found) == 8
    store.note_failure("go", "1.24.3")
    assert missing(store, ["go-1.24.3"]) == []
    failure = tmp_path / "runtimes/.failed-go-1.24.3"
    old = failure.stat().st_mtime - RETRY_S - 1
    os.utime(failure, (old, old))
    assert missing(store, ["go-1.24.3"]) == [("go", "1.24.3")]
    store.note_failure("java", "21")
    assert not failure.exists()
