"""Commits of a few kilobytes that expand to gigabytes: rejected with bounded memory and time, in one sentence."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from gibil_bot import git as our_git
from gibil_bot.commits.from_machine import MOST_FILES, unpack
from gibil_bot.errors import GibilError
from tests.doubles.patience import patient
from tests.doubles.repositories import git, repository

WHO = "A <a@example.com> 1 +0000"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Create a checkout `work` with one commit, and a repository `ours` that has it."""
    return repository(tmp_path / "work", {"file": "1"})


async def rejected(base: Path, head: str, bundle: Path) -> str:
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/*:refs/heads/*")
    began = time.monotonic()
    with pytest.raises(GibilError) as caught:
        await unpack(ours, bundle, base=git(base, "rev-parse", "refs/heads/main"), head=head, name="m")
    assert time.monotonic() - began < patient(60)
    assert "\n" not in caught.value.message
    return caught.value.message


def bundle_of(base: Path, head: str) -> Path:
    git(base, "update-ref", "refs/gibil/outgoing", head)
    git(base, "bundle", "create", "-q", "../bundle", "refs/gibil/outgoing", "^refs/heads/main")
    return base.parent / "bundle"


def child_of_main(base: Path, tree: str) -> str:
    return git(base, "commit-tree", "-m", "new", "-p", "refs/heads/main", tree)


async def test_a_tree_that_contains_itself_many_times_is_rejected(base: Path) -> None:
    blob = git(base, "rev-parse", "HEAD:file")
    tree = git(base, "mktree", given="".join(f"100644 blob {blob}\tf{n}\n" for n in range(10)).encode())
    for _ in range(12):  # 10^13 paths
        tree = git(base, "mktree", given="".join(f"040000 tree {tree}\td{n}\n" for n in range(10)).encode())
    head = child_of_main(base, tree)
    output = await rejected(base, head, bundle_of(base, head))
    assert f"change more than {MOST_FILES:,} files" in output


async def test_endless_names_are_rejected(base: Path) -> None:
    blob = git(base, "rev-parse", "HEAD:file")
    tree = git(base, "mktree", given="".join(f"100644 blob {blob}\t{n:04}{'x' * 4000}\n" for n in range(3000)).encode())
    head = child_of_main(base, tree)
    assert "longer than 8 MiB" in await rejected(base, head, bundle_of(base, head))


async def test_endless_messages_are_rejected(base: Path) -> None:
    tree = git(base, "rev-parse", "HEAD^{tree}")
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\n".encode() + b"x" * 20_000_000
    head = git(base, "hash-object", "-t", "commit", "-w", "--stdin", given=text)
    assert "longer than 8 MiB" in await rejected(base, head, bundle_of(base, head))


async def test_a_compressed_object_of_half_a_gigabyte_is_rejected(base: Path) -> None:
    tree = git(base, "rev-parse", "HEAD^{tree}")
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\n".encode() + b"x" * 500_000_000
    head = hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest()
    bundle = base.parent / "bundle"
    bundle.write_bytes(header(base, head) + pack([(1, text, b"")]))
    assert bundle.stat().st_size < 1_000_000
    assert "needs more than 192 MiB of memory" in await rejected(base, head, bundle)


async def test_a_delta_that_expands_to_gigabytes_is_rejected(base: Path) -> None:
    start = os.urandom(64) * 1024  # 64 KiB, which each level multiplies by 256
    levels = []
    size = len(start)
    name = hashlib.sha1(b"blob %d\0" % size + start).digest()
    copy = bytes([0x80 | 0x10 | 0x20 | 0x40]) + struct.pack("<I", size)[:3]
    levels.append((7, varint(size) + varint(size * 40_000) + copy * 40_000, name))  # 2.6 GB
    tree = git(base, "rev-parse", "HEAD^{tree}")
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\nnew\n".encode()
    head = hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest()
    bundle = base.parent / "bundle"
    bundle.write_bytes(header(base, head) + pack([(1, text, b""), (3, start, b""), *levels]))
    assert bundle.stat().st_size < 1_000_000
    assert "needs more than 192 MiB of memory" in await rejected(base, head, bundle)


async def test_a_large_file_is_accepted(base: Path) -> None:
    (base / "large").write_bytes(os.urandom(1_000_000) * 60)
    git(base, "checkout", "-q", "-b", "topic")
    git(base, "add", "-A")
    git(base, "commit", "-q", "-m", "A large file\n\nand why")
    head = git(base, "rev-parse", "HEAD")
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    main = git(base, "rev-parse", "refs/heads/main")
    assert await unpack(ours, bundle_of(base, head), base=main, head=head, name="m") == (("A large file",), ("large",))


async def test_names_and_messages_with_any_characters_are_read_completely(base: Path) -> None:
    git(base, "checkout", "-q", "-b", "topic")
    names = ["prüfung", "a\nb", "line\u2028end", "-x", 'quote"d']
    for name in names:
        (base / name).write_text(name)
    git(base, "add", "-A")
    git(base, "mv", "file", "moved")
    git(base, "commit", "-q", "-m", "Grüße\u2028and more")
    git(base, "commit", "-q", "--allow-empty", "--allow-empty-message", "-m", "")
    head = git(base, "rev-parse", "HEAD")
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    main = git(base, "rev-parse", "refs/heads/main")
    subjects, files = await unpack(ours, bundle_of(base, head), base=main, head=head, name="m")
    assert subjects == ("", "Grüße\u2028and more")
    assert sorted(files) == sorted([*names, "file", "moved"])


async def test_a_broken_bundle_is_rejected(base: Path) -> None:
    bundle = base.parent / "bundle"
    bundle.write_bytes(header(base, "1" * 40) + os.urandom(1000))
    assert await rejected(base, "1" * 40, bundle)


# --- handmade packs: https://git-scm.com/docs/gitformat-pack ---


def header(base: Path, head: str) -> bytes:
    return f"# v2 git bundle\n-{git(base, 'rev-parse', 'refs/heads/main')}\n{head} refs/gibil/outgoing\n\n".encode()


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def pack(objects: list[tuple[int, bytes, bytes]]) -> bytes:
    """Entries are (type, content, name of the base): 1 commit, 3 blob, 7 delta against a base."""
    out = bytearray(b"PACK" + struct.pack(">II", 2, len(objects)))
    for kind, content, name in objects:
        size = len(content)
        out.append(kind << 4 | size & 0xF | (0x80 if size > 0xF else 0))
        size >>= 4
        if size:
            out += varint(size)
        out += name + zlib.compress(content, 9)
    return bytes(out) + hashlib.sha1(bytes(out)).digest()


def test_handmade_packs_are_valid(base: Path) -> None:
    (base / "x.pack").write_bytes(pack([(3, b"hello", b"")]))
    done = subprocess.run(["git", "index-pack", "x.pack"], cwd=base, capture_output=True)
    assert done.returncode == 0, done.stderr
