"""The submodules of a commit on this computer: their commits, from the checkout's own module stores or fetched as the user.

A checkout may have been unpacked instead of cloned, so neither its configuration nor its modules' is used. `.gitmodules` may be
anyone's: git parses it, without includes, and what it names is checked. Only objects of git are read, never files of a working
tree. gitmodules(5), gitsubmodules(7)
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from gibil_bot import git
from gibil_bot.commits.credentials import for_git, for_http
from gibil_bot.commits.local_repository import LocalRepository
from gibil_bot.git import FOREIGN, NO_FETCH, GitError
from gibil_bot.humanize import visible

MOST_SUBMODULES = 100
DEEPEST = 10
_FILE_BYTES = 256 * 1024
_TREE_BYTES = 64 * 1024 * 1024
_QUERY_S = 60.0
_FETCH_S = 900.0
_SHOWN = 200
_HEAD = "refs/heads/source"
_SCP_LIKE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*):(?!//)([^\s]+)")
_URL = re.compile(r"(https?|ssh)://[^\s]+")


_TOO_MANY = f"The commit has more than {MOST_SUBMODULES} submodules, or {DEEPEST} levels of them."
_REMEDY = (
    "; it has another owner, so your credentials aren't used for it; if you trust this repository, run "
    "`git submodule update --init --recursive`"
)


class SubmoduleError(GitError):
    """A submodule can't be checked out; the message is a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """Where the submodules of one repository may be found on this computer."""

    folders: tuple[Path, ...] = ()
    """`modules` folders in the repository: `.git/modules`."""
    limit: Path | None = None
    """The repository, which contains these folders whatever links they are."""
    remote: str = ""
    """The URL of its `origin`; relative addresses are relative to it. Empty if there is none."""


Environment = Callable[[str], Awaitable[Mapping[str, str | None]]]
"""Returns additions for the git that fetches from a URL as the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What completes a commit of a repository on this computer: its submodules and its files of Git LFS."""

    modules: Modules = field(default_factory=Modules)
    lfs_stores: tuple[Path, ...] = ()
    """Folders like .git/lfs/objects."""
    github_url: str = ""
    """The API's URL, for whose host the user may have a token; empty: none."""

    @property
    def remote(self) -> str:
        return self.modules.remote

    async def environment(self, url: str) -> Mapping[str, str | None]:
        """Return additions for the git that fetches from a URL as the user."""
        tokens = await for_git(url, self.github_url) if self.github_url else {}
        return {**await git.ssh_environment(), **tokens}

    async def authorization(self, server: str) -> str | None:
        """Return the user's credentials for a web server as the value of the Authorization header; None if there are none."""
        return await for_http(server, self.github_url)


def surroundings_of(found: LocalRepository, github_url: str) -> Surroundings:
    folders = dict.fromkeys((found.git_dir, found.common_dir))
    return Surroundings(
        modules=Modules(
            folders=tuple(folder / "modules" for folder in folders), limit=found.common_dir, remote=found.origin_url() or ""
        ),
        lfs_stores=(found.common_dir / "lfs" / "objects",),
        github_url=github_url,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Submodule:
    """One submodule; parents come before their own submodules."""

    parent: str
    """The path of the repository that contains it, relative to the superproject; `.` is the superproject."""
    path: str
    """Relative to its parent."""
    name: str
    url: str
    """Resolved. Empty if it is relative and its parent has no remote."""
    repository: Path
    """A bare repository that we created, whose HEAD is the commit."""
    store: Path | None
    """Its repository in a module store."""

    @property
    def folder(self) -> str:
        return self.path if self.parent == "." else f"{self.parent}/{self.path}"


async def collect(
    view: Path,
    sha: str,
    modules: Modules,
    scratch: Path,
    *,
    recursive: bool,
    depth: int = 1,
    environment: Environment,
) -> list[Submodule]:
    """Return the submodules of a commit in a repository that we created.

    Each is in a repository in `scratch` with `depth` commits; 0 is all of them. A submodule that the checkout doesn't have is
    fetched as the user only if it is of the same owner, on the same server, as the repository; others are fetched as anyone.
    Otherwise a repository that the user tries could read all that the user can. Raises SubmoduleError, GitError.
    """
    found: list[Submodule] = []
    waiting: list[tuple[str, Path, str, Modules, int]] = [(".", view, sha, modules, 1)]
    while waiting:
        parent, repository, commit, places, level = waiting.pop(0)
        async for name, path, written, module_sha in _listed(repository, commit, parent):
            if len(found) >= MOST_SUBMODULES or level > DEEPEST:
                raise SubmoduleError(_TOO_MANY)
            url = _resolved(written, places.remote, path)
            copy = scratch / f"{len(found)}.git"
            store = await asyncio.to_thread(_store, places, name)
            address, is_own = _origin(url, modules.remote)
            lent = environment if is_own else _as_anyone(scratch)
            await _copy(copy, module_sha, store, address, path, depth, lent)
            found.append(Submodule(parent=parent, path=path, name=name, url=url, repository=copy, store=store))
            if recursive:
                inner = Modules(folders=(store / "modules",) if store else (), limit=places.limit, remote=url)
                waiting.append((found[-1].folder, copy, module_sha, inner, level + 1))
    return found


async def _listed(repository: Path, sha: str, parent: str) -> AsyncIterator[tuple[str, str, str, str]]:
    """Yield (name, path, address, commit) of each submodule that the commit's tree contains. Raises SubmoduleError."""
    links = await _links(repository, sha)
    if not links:
        return
    if len(links) > MOST_SUBMODULES:
        raise SubmoduleError(_TOO_MANY)
    entries: dict[str, dict[str, str]] = {}
    if await _has_gitmodules(repository, sha):
        listed = await _config(repository, sha)
        for entry in listed.split("\0"):
            key, _, value = entry.partition("\n")
            title, _, word = key.removeprefix("submodule.").rpartition(".")
            if title:
                entries.setdefault(title, {})[word] = value
    by_path = {values["path"].removesuffix("/"): name for name, values in entries.items() if "path" in values}
    for path, commit in links.items():
        where = f"'{_shown(path if parent == '.' else f'{parent}/{path}')}'"
        name = by_path.get(path)
        if name is None or not entries[name].get("url"):
            raise SubmoduleError(f"The submodule {where} has no address in .gitmodules.")
        if not _is_safe_name(name) or not _is_safe_path(path):
            raise SubmoduleError(f"The submodule {where} has a name or path that isn't allowed: '{_shown(name)}'.")
        yield name, path, entries[name]["url"], commit


async def _links(repository: Path, sha: str) -> dict[str, str]:
    """Return path → commit of the tree's entries that are submodules."""
    found: dict[str, str] = {}
    listing = await git.run("ls-tree", "-rz", "--full-tree", sha, git_dir=repository, extra=NO_FETCH, most_bytes=_TREE_BYTES)
    for line in listing.split(b"\0"):
        if line.startswith(b"160000 commit "):
            facts, _, path = line.partition(b"\t")
            found[path.decode("utf-8", "surrogateescape")] = facts.split(b" ")[2].decode()
    return found


async def _has_gitmodules(repository: Path, sha: str) -> bool:
    entry = await git.text("ls-tree", "-l", sha, "--", ".gitmodules", git_dir=repository)
    if not entry:
        return False
    mode, _, _, size = entry.partition("\t")[0].split()
    if mode not in ("100644", "100755"):
        raise SubmoduleError("The commit's .gitmodules isn't an ordinary file.")
    if not size.isdigit() or int(size) > _FILE_BYTES:
        raise SubmoduleError(f"The commit's .gitmodules can't be read, or has more than {_FILE_BYTES // 1024} KiB.")
    return True


async def _config(repository: Path, sha: str) -> str:
    try:
        return await git.text(
            "config", "--no-includes", f"--blob={sha}:.gitmodules", "--null", "--get-regexp", r"^submodule\..*\.(path|url)$",
            git_dir=repository, limits=FOREIGN, within_s=_QUERY_S,
        )  # fmt: skip
    except GitError as error:
        if not error.stderr:  # it has none of these keys
            return ""
        raise SubmoduleError(f"The commit's .gitmodules can't be read: {git.reason_in(error.stderr)}") from error


def _is_safe_name(name: str) -> bool:
    """Return whether git accepts the name as a path below .git/modules, and it can't be confused with an option."""
    parts = re.split(r"[/\\]", name)
    return name.isprintable() and not name.startswith(("-", "/")) and not {"", ".", ".."} & set(parts) and len(name) <= 1000


def _is_safe_path(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and not path.startswith("-") and not {"", ".", ".."} & set(parts) and ".git" not in (
        part.lower() for part in parts
    )  # fmt: skip


def _resolved(written: str, remote: str, path: str) -> str:
    """Return the address that is written in .gitmodules, made absolute. Raises SubmoduleError if it isn't allowed."""
    problem = SubmoduleError(
        f"The submodule '{_shown(path)}' has the address '{_shown(written)}', which isn't allowed: it must begin with "
        "https://, http:// or ssh://, have the form git@host:path, or be relative."
    )
    if not written.isprintable() or "::" in written.partition("/")[0] or written.startswith("-"):
        raise problem
    if written.startswith(("./", "../")):
        if not remote:
            return ""
        written = _joined(remote, written, problem)
    scp = _SCP_LIKE.fullmatch(written)
    if scp is not None and not scp[2].startswith("-"):
        return written
    try:
        url = urlsplit(written)
        valid = (
            _URL.fullmatch(written) is not None
            and bool(url.hostname)
            and url.port != 0
            and not (url.hostname or "").startswith("-")
        )
        valid = valid and url.password is None and (url.username is None or url.scheme == "ssh")
    except ValueError:
        valid = False
    if not valid or (urlsplit(written).username or "").startswith("-"):
        raise problem
    return written


def _joined(remote: str, relative: str, problem: SubmoduleError) -> str:
    """Return an address relative to that of the parent, as `git submodule` does: `../x` replaces the last component."""
    base = remote.rstrip("/")
    while relative.startswith(("./", "../")):
        if relative.startswith("./"):
            relative = relative[2:]
            continue
        relative = relative[3:]
        separator = max(base.rfind("/"), base.rfind(":") if "://" not in base else -1)
        if separator < 0 or base[:separator].endswith((":/", ":")):
            raise problem
        colon = base[separator] == ":"
        base = base[: separator + 1] if colon else base[:separator]
        if colon:
            return base + relative
    return f"{base}/{relative}"


def _origin(url: str, remote: str) -> tuple[str, bool]:
    """Return the address to fetch from, and whether it is of the same owner as the remote.

    As with actions/checkout, SSH addresses of a web server's host mean that server. A key for SSH is used only if the remote
    has such an address, too.
    """
    scp = _SCP_LIKE.fullmatch(url)
    ssh = (scp[1].rpartition("@")[2].lower(), scp[2].lstrip("/")) if scp is not None else None
    if url.startswith("ssh://") and urlsplit(url).port is None:
        ssh = (urlsplit(url).hostname or "", urlsplit(url).path.lstrip("/"))
    there = urlsplit(remote) if remote.startswith(("http://", "https://")) else None
    if ssh is not None and there is not None and there.hostname == ssh[0]:
        url, ssh = f"{there.scheme}://{there.netloc}/{ssh[1]}", None
    is_own = _owner(url) is not None and _owner(url) == _owner(remote)
    return (url if is_own or ssh is None else f"https://{ssh[0]}/{ssh[1]}"), is_own


def _owner(address: str) -> tuple[str, str] | None:
    """Return the host, with its port, and the path up to the last component; None without an owner.

    git@host and https://host are the same server. A password for https isn't sent to http.
    """
    scp = _SCP_LIKE.fullmatch(address)
    if scp is not None:
        host, path = scp[1].rpartition("@")[2], scp[2]
    else:
        try:
            url = urlsplit(address)
            port = url.port
        except ValueError:
            return None
        if url.scheme not in ("http", "https", "ssh"):
            return None
        host, path = f"{url.hostname or ''}{f':{port}' if port is not None else ''}", url.path
    parts = [part for part in path.split("/") if part]
    return (host.lower(), "/".join(parts[:-1]).lower()) if len(parts) > 1 and not {".", ".."} & set(parts) else None


def _as_anyone(scratch: Path) -> Environment:
    """Return an environment without the user's configuration, credentials and keys. Not even .netrc is read."""

    async def environment(_: str) -> Mapping[str, str | None]:
        return {**git.anonymous_environment(), "HOME": str(scratch), "GIT_SSH_COMMAND": "false"}

    return environment


def _store(modules: Modules, name: str) -> Path | None:
    """Return the submodule's repository in a module store; None if it isn't initialised."""
    for folder in modules.folders:
        store = folder / name
        objects = store / "objects"
        alternates = objects / "info" / "alternates"
        if alternates.exists() and not alternates.is_file():  # git might never finish reading it
            continue
        if objects.is_dir() and modules.limit is not None and objects.resolve().is_relative_to(modules.limit.resolve()):
            return store
    return None


async def _copy(copy: Path, sha: str, store: Path | None, url: str, path: str, depth: int, environment: Environment) -> None:
    """Create a repository with the commit. Raises SubmoduleError."""
    await git.create_repository(copy)
    await asyncio.to_thread((copy / "HEAD").write_text, f"ref: {_HEAD}\n")
    if store is not None and await _copy_from_store(copy, sha, store, depth):
        return
    where = f"The submodule '{_shown(path)}' at {sha[:7]}"
    if not url:
        raise SubmoduleError(f"{where} isn't in this checkout, and its address is relative; run `git submodule update --init`.")
    given = await environment(url)
    allowed = {"GIT_ALLOW_PROTOCOL": "http:https:ssh", **given}
    options = ("-q", "--no-tags", "--no-write-fetch-head", *_limit(depth))
    try:
        await git.run(
            "fetch", *options, "--", url, f"+{sha}:{_HEAD}", git_dir=copy, extra=allowed, within_s=_FETCH_S
        )  # fmt: skip
    except GitError as error:
        if not re.search(r"not our ref|couldn't find remote ref|unadvertised object|no such remote ref", error.stderr):
            reason = git.reason_in(error.stderr) if error.stderr else error.message
            remedy = "" if given.get("GIT_CONFIG_GLOBAL") != os.devnull else _REMEDY
            raise SubmoduleError(f"{where} can't be fetched from {url}: {reason}{remedy}") from error
        await _fetch_branches(copy, sha, url, where, allowed)


async def _fetch_branches(copy: Path, sha: str, url: str, where: str, environment: Mapping[str, str | None]) -> None:
    """Fetch all branches, from a server that doesn't serve commits by their id."""
    try:
        await git.run(
            "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--", url, "+refs/heads/*:refs/fetched/*",
            git_dir=copy, extra=environment, within_s=_FETCH_S,
        )  # fmt: skip
        await git.run("update-ref", _HEAD, sha, git_dir=copy)
    except GitError as error:
        raise SubmoduleError(f"{where} doesn't exist at {url}; was it pushed?") from error


async def _copy_from_store(copy: Path, sha: str, store: Path, depth: int) -> bool:
    """Copy the commit from a module store, of which only objects are read; False if it lacks some of them."""
    view = copy.with_suffix(".view")
    await git.create_repository(view)
    try:
        await asyncio.to_thread(_link, view, store)
        await git.run("cat-file", "-e", f"{sha}^{{commit}}", git_dir=view, extra=NO_FETCH, within_s=_QUERY_S)
        await git.run("update-ref", _HEAD, sha, git_dir=view)
        await git.run(
            "fetch", "-q", "--no-tags", "--no-write-fetch-head", *(_limit(depth) or ["--update-shallow"]), view.as_uri(),
            f"+{_HEAD}:{_HEAD}", git_dir=copy, extra=NO_FETCH, within_s=_FETCH_S,
        )  # fmt: skip
    except (GitError, OSError):
        return False
    finally:
        await asyncio.to_thread(shutil.rmtree, view, ignore_errors=True)
    return True


def _limit(depth: int) -> list[str]:
    return [f"--depth={depth}"] if depth else []


def _link(view: Path, store: Path) -> None:
    objects = os.fsencode(store / "objects")
    quoted = objects.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n")
    (view / "objects" / "info" / "alternates").write_bytes(b'"' + quoted + b'"\n')
    shallow = store / "shallow"
    if shallow.is_file():
        shutil.copyfile(shallow, view / "shallow")


def _shown(text: str) -> str:
    return visible(text[:_SHOWN])
