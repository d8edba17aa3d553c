"""A prepared machine's project folder that an earlier run tampered with: the next checkout has exactly the files of its commit.

The programs of the machine are honest here. What an earlier run may replace there is bounded by the scopes of trust alone.
"""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path

import pytest

from gibil_bot.commits.pack import packed
from gibil_bot.scripts.clone import CLONE_GONE, pack_script
from tests.doubles.patience import patient
from tests.doubles.repositories import commit, git, repository

FILES = {
    "README": "kept\n" * 40,
    ".gitignore": "node_modules/\n",
    "src/a.py": "print('a')\n",
    "src/deep/b.py": "print('b')\n",
    "tests/test_a.py": "assert 1\n",
}


class Machine:
    """The folder of a project, checked out once and marked as that of a prepared machine."""

    def __init__(self, folder: Path, source: Path) -> None:
        self.source, self.project = source, folder / "root/project"
        self.marker = folder / "root/.gibil/prepared"
        self.home = folder / "home"
        self.home.mkdir(parents=True)

    async def check_out(self, *, known: tuple[str, ...] = ()) -> int:
        sha = git(self.source, "rev-parse", "HEAD")
        async with packed(self.source / ".git", sha, {}, known) as chunks:
            data = b"".join([chunk async for chunk in chunks])
        script = pack_script(sha=sha, workspace=str(self.project), keeps_history=bool(known))
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home)}
        done = subprocess.run(["sh", "-c", script], input=data, env=environment, capture_output=True, timeout=patient(60))
        assert done.returncode in (0, CLONE_GONE), done.stderr
        return done.returncode

    def leave(self) -> str:
        """End the run; return the commit that the machine has."""
        (self.project / ".git/gibil-commit").unlink()
        self.marker.parent.mkdir(exist_ok=True)
        self.marker.write_text(git(self.source, "rev-parse", "HEAD"))
        return self.marker.read_text()

    def differences(self) -> list[str]:
        """Compare with the commit; what git ignores isn't compared."""
        named = git(self.source, "ls-tree", "-r", "--name-only", "HEAD").split("\n")
        expected = {name: (self.source / name).read_bytes() for name in named}
        found = {
            str(path.relative_to(self.project)): path.read_bytes()
            for path in self.project.rglob("*")
            if path.is_file() and path.relative_to(self.project).parts[0] not in (".git", "node_modules")
        }
        return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))

    def write(self, name: str, text: str) -> None:
        (self.project / name).parent.mkdir(parents=True, exist_ok=True)
        (self.project / name).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "machine", repository(tmp_path / "source", FILES))


def object_of(kind: str, content: bytes) -> bytes:
    return zlib.compress(f"{kind} {len(content)}\0".encode() + content)


def plant_object(machine: Machine, name: str, data: bytes) -> None:
    path = machine.project / ".git/objects" / name[:2] / name[2:]
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def stale_index(machine: Machine) -> None:
    """The index says of a changed file that it is unmodified."""
    machine.write("src/a.py", "print('evil')\n")
    os.utime(machine.project / "src/a.py", (1e9, 1e9))  # git compares the content of files that are as new as the index
    git(machine.project, "add", "src/a.py")
    index = machine.project / ".git/index"
    evil, good = (bytes.fromhex(git(where, "hash-object", "src/a.py")) for where in (machine.project, machine.source))
    body = index.read_bytes()[:-20].replace(evil, good)
    index.write_bytes(body + sha1(body).digest())
    assert git(machine.project, "status", "--porcelain") == ""


def untracked_cache(machine: Machine) -> None:
    git(machine.project, "update-index", "--force-untracked-cache")
    git(machine.project, "config", "core.fsmonitor", "true")
    git(machine.project, "status")
    machine.write("src/evil.py", "")


def loose_blob(machine: Machine) -> None:
    name = git(machine.source, "rev-parse", "HEAD:src/a.py")
    (machine.project / "src/a.py").unlink()
    _unpack(machine)
    plant_object(machine, name, object_of("blob", b"print('evil')\n"))


def loose_tree(machine: Machine) -> None:
    evil = git(machine.project, "hash-object", "-w", "src/deep/b.py")
    content = b"100644 a.py\0" + bytes.fromhex(evil)
    name = git(machine.source, "rev-parse", "HEAD:src")
    _unpack(machine)
    plant_object(machine, name, object_of("tree", content))


def wrong_pack(machine: Machine, name: str = "HEAD:src/a.py") -> None:
    """The index of a pack names other content by the name of an object."""
    git(machine.project, "repack", "-adq")
    if "src/a.py" in name:
        (machine.project / "src/a.py").unlink()
    (path,) = (machine.project / ".git/objects/pack").glob("*.idx")
    other = "HEAD:src/deep/b.py" if name.endswith(".py") else "HEAD:tests"
    victim, evil = (git(machine.source, "rev-parse", each) for each in (name, other))
    data = bytearray(path.read_bytes()[:-20])
    names = [data[1032 + 20 * at : 1052 + 20 * at].hex() for at in range(int.from_bytes(data[1028:1032]))]
    offsets = 1032 + 24 * len(names)
    sums = 1032 + 20 * len(names)
    for table in (sums, offsets):
        source, target = (table + 4 * names.index(each) for each in (evil, victim))
        data[target : target + 4] = data[source : source + 4]
    path.chmod(0o644)
    path.write_bytes(data + sha1(data).digest())
    path.with_suffix(".rev").unlink(missing_ok=True)
    assert git(machine.project, "rev-parse", name) == victim


def wrong_pack_tree(machine: Machine) -> None:
    wrong_pack(machine, "HEAD:src")


def replace_and_grafts(machine: Machine) -> None:
    machine.write("src/a.py", "print('evil')\n")
    git(machine.project, "commit", "-qam", "evil")
    evil, head = git(machine.project, "rev-parse", "HEAD"), machine.marker.read_text()
    git(machine.project, "checkout", "-q", head)
    git(machine.project, "replace", head, evil)
    git(machine.project, "replace", f"{head}^{{tree}}", f"{evil}^{{tree}}")
    (machine.project / ".git/info").mkdir(exist_ok=True)
    (machine.project / ".git/info/grafts").write_text(f"{head} {evil}\n")


def alternates(machine: Machine) -> None:
    loose_blob(machine)
    other = machine.home / "objects"
    (machine.project / ".git/objects").rename(other)
    (machine.project / ".git/objects/info").mkdir(parents=True)
    (machine.project / ".git/objects/info/alternates").write_text(f"{other}\n")


def linked_objects(machine: Machine) -> None:
    loose_blob(machine)
    objects = machine.project / ".git/objects"
    objects.rename(machine.home / "objects")
    objects.symlink_to(machine.home / "objects")


def ignores_of_its_own(machine: Machine) -> None:
    machine.write("src/.gitignore", "*\n")
    machine.write("src/evil.py", "")
    machine.write("tests/conftest.py", "")
    (machine.home / ".config/git").mkdir(parents=True)
    (machine.home / ".config/git/ignore").write_text("conftest.py\n")


def attributes_of_its_own(machine: Machine) -> None:
    machine.write("src/.gitattributes", "*.py text eol=crlf ident\n")
    (machine.home / ".config/git").mkdir(parents=True)
    (machine.home / ".config/git/attributes").write_text("* text eol=crlf\n")
    machine.write("README", FILES["README"].replace("\n", "\r\n"))


def linked_folders(machine: Machine) -> None:
    (machine.project / "src").rename(machine.home / "src")
    (machine.home / "src/a.py").write_text("print('evil')\n")
    (machine.project / "src").symlink_to(machine.home / "src")


def linked_checkout(machine: Machine) -> None:
    stale_index(machine)
    machine.project.rename(machine.home / "project")
    machine.project.symlink_to(machine.home / "project")


def repository_elsewhere(machine: Machine) -> None:
    stale_index(machine)
    (machine.project / ".git").rename(machine.home / "git")
    (machine.project / ".git").write_text(f"gitdir: {machine.home / 'git'}\n")


def nested_repository(machine: Machine) -> None:
    machine.write("src/deep/more/evil.py", "")
    git(machine.project / "src/deep/more", "init", "-q")
    git(machine.project / "src/deep/more", "add", ".")


def _unpack(machine: Machine) -> None:
    """Turn all packs into loose objects."""
    objects = machine.project / ".git/objects"
    for pack in (objects / "pack").glob("*.pack"):
        away = machine.home / pack.name
        pack.rename(away)
        for rest in (objects / "pack").glob("*"):
            rest.unlink()
        with away.open("rb") as data:
            subprocess.run(["git", "-C", machine.project, "unpack-objects", "-q"], stdin=data, check=True)


TAMPERS: list[Callable[[Machine], None]] = [
    stale_index, untracked_cache, loose_blob, loose_tree, wrong_pack, wrong_pack_tree, replace_and_grafts, alternates,
    linked_objects, ignores_of_its_own, attributes_of_its_own, linked_folders, linked_checkout, repository_elsewhere,
    nested_repository,
]  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERS)
async def test_a_tampered_repository_changes_no_file_of_a_commit(machine: Machine, tamper: Callable[[Machine], None]) -> None:
    assert await machine.check_out() == 0
    assert machine.differences() == []
    known = machine.leave()
    commit(machine.source, {"README": "second\n"})
    tamper(machine)
    if await machine.check_out(known=(known,)) == CLONE_GONE:
        assert await machine.check_out() == 0, "the sender sends everything again"
    assert machine.differences() == []
    assert git(machine.project, "status", "--porcelain") == ""
    assert git(machine.project, "fsck", "--no-dangling") == ""


async def test_unmodified_files_and_what_was_installed_stay(machine: Machine) -> None:
    await machine.check_out()
    machine.write("node_modules/x", "installed")
    machine.write(".venv/.gitignore", "*\n")
    machine.write(".venv/x", "installed")
    known = machine.leave()
    before = {name: (machine.project / name).stat().st_mtime_ns for name in FILES}
    commit(machine.source, {"README": "second\n"})
    assert await machine.check_out(known=(known,)) == 0
    after = {name: (machine.project / name).stat().st_mtime_ns for name in FILES}
    assert {name for name in FILES if before[name] != after[name]} <= {"README", ".gitignore"}
    assert [(machine.project / name / "x").read_text() for name in ("node_modules", ".venv")] == ["installed"] * 2


async def test_files_that_git_converts_are_converted_again(machine: Machine) -> None:
    commit(machine.source, {".gitattributes": "*.py ident\n", "src/a.py": "# $Id$\n"})
    await machine.check_out()
    assert "$Id: " in (machine.project / "src/a.py").read_text()
    expected = (machine.project / "src/a.py").read_text()
    known = machine.leave()
    machine.write("src/a.py", "# $Id: evil $\n")
    commit(machine.source, {"README": "second\n"})
    assert await machine.check_out(known=(known,)) == 0
    assert (machine.project / "src/a.py").read_text() == expected
