"""Reads a local repository without running programs from its configuration and without writing to it.

git reads only refs and configuration values there. Objects are read through a temporary bare repository that we create, with
the repository's objects as an alternate (gitrepository-layout(5), objects/info/alternates), so its .git/config, hooks and
attributes are never used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from gibil_bot import git
from gibil_bot.git import FOREIGN, NO_FETCH, GitError

PROMISOR = "gibil-promisor"
"""In a repository that we created, the remote that has the objects which a partial clone lacks."""

_QUERY_S = 60.0
"""Limit for reads: a ref, a configuration file or an included file may be a FIFO, which blocks, or a device without an end."""
_READ_WHOLE = ("index", "shallow", "packed-refs", "objects/info/alternates", "info/exclude")
_LIST_BYTES = 64 * 1024 * 1024
# Settings for converting files of the working tree to objects. None of them runs a program.
_FILE_SETTINGS = (
    "core.filemode", "core.symlinks", "core.ignorecase", "core.precomposeunicode", "core.autocrlf", "core.eol",
    "core.excludesfile",
)  # fmt: skip
_BASES = (
    "refs/remotes/origin/HEAD", "refs/remotes/origin/main", "refs/remotes/origin/master",
    "refs/heads/main", "refs/heads/master",
)  # fmt: skip
MOST_TAGS = 20_000
_IS_ABSOLUTE = re.compile(r"/|[^/]+:")
"""A URL, an SCP-like address or an absolute path; git treats anything else as a relative path."""


class MissingObjects(GitError):
    """A partial clone lacks objects, and its remote can't be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRepository:
    """`view` is our bare repository with all its objects; it exists while `open_repository` is active."""

    folder: Path
    """The top of the working tree; for a bare repository, the repository."""
    git_dir: Path
    common_dir: Path
    """The `git_dir` of the main repository for a linked worktree; else `git_dir`."""
    is_bare: bool
    settings: Mapping[str, str]
    """Some of the repository's git configuration: key, with its section and last word in lower case → value."""
    view: Path
    promisor: str | None
    """Where a partial clone fetches missing objects."""

    async def head(self) -> str | None:
        """Return the commit that is checked out."""
        return await self._resolve("HEAD")

    async def branch(self, name: str) -> str | None:
        """Return the commit of a branch, also of one that only `origin` had at the last fetch."""
        return await self._resolve(f"refs/heads/{name}") or await self._resolve(f"refs/remotes/origin/{name}")

    async def current_branch(self) -> str | None:
        """Return the branch that is checked out; None if HEAD is detached."""
        with contextlib.suppress(GitError):
            return branch_of(await _query(self.git_dir, "symbolic-ref", "--quiet", "HEAD"))
        return None

    def config(self, key: str) -> str:
        """Return one of the stored configuration values; empty if it isn't set."""
        return self.settings.get(key, "")

    def origin_url(self) -> str | None:
        """Return the URL of `origin`, without credentials; None if there is none."""
        return without_credentials(self.remote_url("origin")) or None

    def remote_url(self, name: str) -> str:
        url = self.config(f"remote.{name}.url")
        return os.path.normpath(self.folder / url) if url and not _IS_ABSOLUTE.match(url) else url

    async def commit_of_working_tree(self, head: str) -> str:
        """Create a commit, in `view`, of the files in the folder, including new but not ignored ones; return it.

        No filter runs: the files are sent as they are. Submodules stay as they are in the index.
        """
        index = self.view / "index"
        extra: dict[str, str | None] = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(self.folder)}
        settings = [f"{key}={value}" for key in _FILE_SETTINGS if (value := self.config(key))]
        attributes = self.view / "info" / "attributes"
        await asyncio.to_thread(attributes.parent.mkdir, exist_ok=True)
        await asyncio.to_thread(attributes.write_text, "* -filter -ident -working-tree-encoding\n")
        arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        exclude = self.common_dir / "info" / "exclude"
        if await asyncio.to_thread(exclude.is_file):
            arguments.append(f"--exclude-from={exclude}")

        async def list_paths() -> bytes:
            return await git.run(
                *arguments, git_dir=self.view, folder=self.folder, extra=extra, settings=settings, most_bytes=_LIST_BYTES,
                within_s=_QUERY_S,
            )  # fmt: skip

        await asyncio.to_thread(_check_rules, self.folder, [b""])
        try:
            # With the repository's index, git recognizes unmodified files by their stat data, and a sparse checkout stays
            # sparse.
            await asyncio.to_thread(
                shutil.copy2, self.git_dir / "index", index
            )  # the index's mtime decides which entries may be stale
            listed = await list_paths()
        except (GitError, OSError):
            await asyncio.to_thread(index.unlink, missing_ok=True)
            await git.run("read-tree", head, git_dir=self.view, extra=extra)
            listed = await list_paths()
        # A name that ends with / is a nested repository. Sorted, so that a file that became a folder is removed before the
        # folder's files are added.
        paths = sorted(path for path in set(listed.split(b"\0")) if path and not path.endswith(b"/"))
        await asyncio.to_thread(_check_rules, self.folder, _folders_of(paths))
        if paths:
            path_list = b"".join(path + b"\0" for path in paths)
            await git.run(
                "update-index", "--add", "--remove", "--replace", "--ignore-skip-worktree-entries", "-z", "--stdin",
                git_dir=self.view, folder=self.folder, extra=extra, settings=settings, stdin=path_list,
            )  # fmt: skip
        tree = await git.text("write-tree", git_dir=self.view, extra=extra)
        identity = {
            f"GIT_{role}_{part}": value
            for role in ("AUTHOR", "COMMITTER")
            for part, value in (("NAME", "gibil"), ("EMAIL", "gibil@localhost"))
        }
        return await git.text("commit-tree", tree, "-p", head, "-m", "uncommitted changes", git_dir=self.view, extra=identity)

    async def copy_refs(self, head: str) -> None:
        """Create, in `view`, the refs that a machine gets with the commit `head`: the tags, and its base branch in `origin`.

        The base is the branch that `origin/HEAD` names, else main or master, else the branch that is checked out.
        """
        tags, base = await self._refs()
        if base is None and (current := await self.current_branch()) is not None:
            base = current, head
        # Their objects may be missing, in a partial clone for example.
        names = "".join(f"{sha}\n" for sha in (*tags.values(), *([base[1]] if base else [])))
        answer = await git.text(
            "cat-file", "--batch-check=%(objectname) %(objecttype)", git_dir=self.view, stdin=names.encode(), extra=NO_FETCH
        )  # fmt: skip
        kinds = dict(line.split(" ", 1) for line in answer.split("\n") if line)
        refs = {ref: sha for ref, sha in tags.items() if kinds.get(sha) in ("commit", "tag")}
        if base is not None and kinds.get(base[1]) == "commit" and await self._has_history(base[1], head):
            refs[f"refs/remotes/origin/{base[0]}"] = base[1]
        await asyncio.to_thread(write_packed_refs, self.view, refs)

    async def _refs(self) -> tuple[dict[str, str], tuple[str, str] | None]:
        """Return the tags (ref → object), and the name and commit of the base branch if one of the usual refs names it."""
        listed = await _query(
            self.git_dir, "for-each-ref", "--format=%(objectname) %(refname) %(symref)", "refs/tags", *_BASES
        )  # fmt: skip
        lines = [line.split(" ") for line in listed.split("\n") if line]
        found = {ref: (sha, symref) for sha, ref, symref in lines}
        tags = {ref: sha for ref, (sha, _) in found.items() if ref.startswith("refs/tags/")}
        for ref in _BASES:
            if ref in found:
                sha, symref = found[ref]
                name = (symref or ref).removeprefix("refs/remotes/origin/").removeprefix("refs/heads/")
                return dict(list(tags.items())[-MOST_TAGS:]), (name, sha)
        return dict(list(tags.items())[-MOST_TAGS:]), None

    async def _has_history(self, base: str, head: str) -> bool:
        """Return whether the view has all objects of `base`. Those of another branch may be missing in a partial clone."""
        if self.promisor is None or base == head:
            return True
        try:
            await git.run("merge-base", "--is-ancestor", base, head, git_dir=self.view, extra=NO_FETCH)
        except GitError:
            return False
        return True

    async def _resolve(self, ref: str) -> str | None:
        """Return the commit of a ref; None if there is none. Raises GitError if the commit can't be read."""
        try:
            name = await _query(self.git_dir, "rev-parse", "--verify", "--quiet", "--end-of-options", ref)
        except git.TooExpensive:
            raise
        except GitError:
            return None
        try:
            return await git.text("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", git_dir=self.view)
        except GitError as error:
            raise explained(error, self.promisor) from error


@contextlib.asynccontextmanager
async def open_repository(path: Path) -> AsyncIterator[LocalRepository]:
    """Open the repository that `path` is in, or is. Raises GitError if there is none."""
    path = await asyncio.to_thread(path.resolve)
    # Discovery applies git's ownership check (safe.directory). Bare repositories are opened whatever safe.bareRepository is,
    # because their configuration isn't used.
    try:
        answer = await git.text(
            "rev-parse", "--is-bare-repository", "--is-shallow-repository", "--show-object-format", "--absolute-git-dir",
            "--path-format=absolute", "--git-common-dir", "--show-cdup", folder=path, extra=NO_FETCH, limits=FOREIGN,
            within_s=_QUERY_S,
        )  # fmt: skip
    except GitError as error:
        if "dubious ownership" not in error.stderr:
            raise
        advice = f"if you trust its contents: git config --global --add safe.directory {shlex.quote(str(path))}"
        raise GitError(f"{path} belongs to another user, so git doesn't read it; {advice}") from error
    words = answer.split("\n")
    is_bare = words[0] == "true"
    if len(words) != (5 if is_bare else 6):
        raise GitError(f"{path} is not in the working tree of its repository, or has a line feed in its path")
    if words[2] != "sha1":
        raise GitError(f"{path} is a repository with {words[2]} object names, which can't be sent to a machine yet")
    git_dir, common = Path(words[3]), Path(words[4])
    folder = git_dir if is_bare else await asyncio.to_thread((path / words[5]).resolve)
    if not is_bare and not await asyncio.to_thread(_is_worktree_of, folder, git_dir):
        raise GitError(f"the repository of {path} names {folder} as its working tree (core.worktree), which isn't its own")
    await asyncio.to_thread(_check_files, git_dir, common)
    with tempfile.TemporaryDirectory(prefix="gibil-view-") as scratch:
        view = Path(scratch) / "view.git"
        await git.create_repository(view)
        await asyncio.to_thread(_link, view, common, words[1] == "true")
        found = LocalRepository(
            folder=folder, git_dir=git_dir, common_dir=common, is_bare=is_bare, settings=await _settings(git_dir), view=view,
            promisor=None,
        )  # fmt: skip
        promisor = _promisor(found)
        if promisor is not None:
            await set_promisor(view, promisor)
        yield replace(found, promisor=promisor)


async def _query(git_dir: Path, *arguments: str) -> str:
    """Run a git query in a repository that we didn't create, with limited time and memory."""
    return await git.text(*arguments, git_dir=git_dir, extra=NO_FETCH, limits=FOREIGN, within_s=_QUERY_S)


async def _settings(git_dir: Path) -> dict[str, str]:
    keys = "|".join(re.escape(key) for key in ("extensions.partialclone", "user.name", *_FILE_SETTINGS))
    pattern = rf"^(remote\..*\.(url|promisor)|{keys})$"
    try:
        listed = await _query(git_dir, "config", "--null", "--get-regexp", pattern)
    except GitError:  # none of them is set
        return {}
    entries = [entry.partition("\n") for entry in listed.split("\0") if entry]
    return {key: value if separator else "true" for key, separator, value in entries}


async def set_promisor(repository: Path, url: str) -> None:
    """Make a repository that we created fetch missing objects from `url` when they are needed."""
    for key, value in (
        ("core.repositoryFormatVersion", "1"), ("extensions.partialClone", PROMISOR),
        (f"remote.{PROMISOR}.url", url), (f"remote.{PROMISOR}.promisor", "true"),
        (f"remote.{PROMISOR}.partialCloneFilter", "blob:none"),
    ):  # fmt: skip
        await git.run("config", key, value, git_dir=repository)


def write_packed_refs(repository: Path, refs: Mapping[str, str]) -> None:
    """Replace the refs of a repository that we created. Blocking."""
    (repository / "packed-refs").write_bytes(packed_refs(refs))


def packed_refs(refs: Mapping[str, str]) -> bytes:
    """Return the content of `packed-refs` (gitrepository-layout(5)) for refs (ref → object)."""
    lines = sorted(os.fsencode(f"{ref}\n") for ref in refs)
    known = {os.fsencode(f"{ref}\n"): sha.encode() for ref, sha in refs.items()}
    text = b"".join(known[line] + b" " + line for line in lines)
    return b"# pack-refs with: sorted \n" + text


def _promisor(repository: LocalRepository) -> str | None:
    """Return the URL of the remote that a partial clone was made from."""
    name = repository.config("extensions.partialclone")
    for key, value in repository.settings.items():
        if not name and key.endswith(".promisor") and value.lower() in ("true", "1", "yes", "on"):
            name = key.removeprefix("remote.").removesuffix(".promisor")
    return repository.remote_url(name) or None if name else None


def explained(error: GitError, promisor: str | None) -> GitError:
    """Return the same error, or MissingObjects if objects of a partial clone couldn't be fetched."""
    signs = (
        "promisor",
        "could not fetch",
        "unable to access",
        "missing",
        "unable to read",
        "bad object",
        "Could not read from",
    )
    if promisor is None or not any(sign in error.stderr for sign in signs):
        return error
    where = without_credentials(promisor)
    return MissingObjects(
        f"objects of this partial clone are only at its remote {where}, which can't be reached: {git.reason_in(error.stderr)}",
        stderr=error.stderr,
    )


def branch_of(ref: str) -> str | None:
    """Return the branch name of a full ref; None for other refs."""
    return ref.removeprefix("refs/heads/") if ref.startswith("refs/heads/") else None


def without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url) if "://" in url else None
    except ValueError:
        return url
    if parts is not None and parts.scheme in ("http", "https") and "@" in parts.netloc:
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return url


def _link(view: Path, common: Path, is_shallow: bool) -> None:
    objects = str(common / "objects")
    quoted = objects.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    (view / "objects" / "info").mkdir(exist_ok=True)
    (view / "objects" / "info" / "alternates").write_bytes(f'"{quoted}"\n'.encode("utf-8", "surrogateescape"))
    if is_shallow:
        shutil.copyfile(common / "shallow", view / "shallow")


def _check_files(git_dir: Path, common: Path) -> None:
    """Raise GitError if a file that is read or copied whole is a device or a FIFO: the read might never end."""
    paths = (folder / name for folder in {git_dir, common} for name in _READ_WHOLE)
    _check_ordinary(paths, "remove it, or clone the repository again")


def _check_rules(top: Path, folders: Iterable[bytes]) -> None:
    """Raise GitError if the ignore or attributes file of one of these folders is a device or a FIFO."""
    names = (".gitignore", ".gitattributes")
    _check_ordinary((top / os.fsdecode(folder) / name for folder in folders for name in names), "remove it")


def _check_ordinary(paths: Iterable[Path], advice: str) -> None:
    for path in paths:
        if path.exists() and not path.is_file():
            raise GitError(f"'{path}' is not an ordinary file; {advice}")


def _folders_of(paths: Iterable[bytes]) -> set[bytes]:
    """Return all folders that contain these paths, including their parents, without the top."""
    found: set[bytes] = set()
    for path in paths:
        while (path := path.rpartition(b"/")[0]) and path not in found:
            found.add(path)
    return found


def _is_worktree_of(folder: Path, git_dir: Path) -> bool:
    """Return whether `folder` belongs to that repository: its .git, or the target of its .git file."""
    dot = folder / ".git"
    if dot.is_dir():
        return dot.samefile(git_dir)
    try:
        with dot.open("rb") as file:
            text = file.read(65536)
    except OSError:
        return False
    target = text.removeprefix(b"gitdir:").strip(b" \r\n").decode("utf-8", "surrogateescape")
    try:
        return (folder / target).samefile(git_dir)
    except OSError:
        return False
