"""Real bare git repositories on disk, changed and read by git itself.

Commits are created with `git fast-import`: one process for a commit of any number of files, without a checkout.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gibil_bot import git
from gibil_bot.errors import GibilError


class Link(str):
    """The target of a symbolic link."""


Files = Mapping[str, str | bytes | None]
"""Path → content; None deletes the file."""

_COMMAND_TIMEOUT_S = 60.0
_NOTHING = "0" * 40
"""In place of an object's hash: none."""
_HASH = re.compile(r"[0-9a-f]{40}")
_BRANCH = re.compile(r"refs/heads/\w[\w-]*(/\w[\w-]*)*", re.ASCII)
"""Most branch names; git itself checks the others."""

# https://docs.github.com/en/pull-requests/collaborating-with-pull-requests/reviewing-changes-in-pull-requests/
# checking-out-pull-requests-locally: refs/pull/N/head exists for all readers and can't be pushed to. A commit that a force-push
# removed can still be fetched by its hash, so nothing is ever garbage-collected.
_REPOSITORY_CONFIG = {
    "uploadpack.allowTipSHA1InWant": "true",
    "uploadpack.allowReachableSHA1InWant": "true",
    "uploadpack.allowFilter": "true",
    "receive.hideRefs": "refs/pull",
    "receive.autogc": "false",
    "gc.auto": "0",
}


class GitFailed(GibilError):
    """A git command failed."""

    code = "DOUBLE_GIT"


@dataclass(frozen=True, slots=True)
class TreeEntry:
    path: str
    kind: str
    """blob, tree or commit."""
    mode: str
    sha: str
    size: int


class GitStore:
    """The repositories in one folder, as `<owner>/<name>.git`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._commits: set[tuple[str, str]] = set()
        """(repository, hash) of existing commits; they remain, because nothing is ever garbage-collected."""
        self._listings: dict[tuple[str, str, str | None, bool], list[TreeEntry]] = {}

    def path(self, full_name: str) -> Path:
        return self.root / f"{full_name}.git"

    async def git(
        self, *arguments: str, repository: str | None = None, stdin: bytes = b"", extra: Mapping[str, str] | None = None
    ) -> bytes:
        """Run git and return its output. `extra`: more environment. Raises GitFailed with git's last lines."""
        process = await git.start(
            *arguments,
            git_dir=self.path(repository) if repository else None,
            folder=self.root,
            env={**git.sealed_environment(self.root), **(extra or {})},
            stdin=asyncio.subprocess.PIPE,
        )
        try:
            output, stderr = await asyncio.wait_for(process.communicate(stdin), _COMMAND_TIMEOUT_S)
        finally:
            await git.end(process)
        if process.returncode != 0:
            raise GitFailed(f"git {arguments[0]} in {repository}: {stderr.decode(errors='replace').strip()[-500:]}")
        return output

    async def create(self, full_name: str, branch: str) -> None:
        path = str(self.path(full_name))
        await self.git("init", "--quiet", "--bare", "--template=", f"--initial-branch={branch}", path)
        await self._configure(full_name)

    async def fork(self, source: str, target: str) -> None:
        await self.git("clone", "--quiet", "--bare", str(self.path(source)), str(self.path(target)))
        await self._configure(target)

    async def _configure(self, full_name: str) -> None:
        lines = "".join(
            f"[{section}]\n\t{key} = {value}\n"
            for section, key, value in ((*name.split("."), value) for name, value in _REPOSITORY_CONFIG.items())
        )
        config = self.path(full_name) / "config"
        await asyncio.to_thread(_append, config, lines)

    async def commit(self, full_name: str, branch: str, files: Files, *, message: str, author: str, parent: str | None) -> str:
        """Create a commit on top of `parent` (None: the first one) and point the branch at it."""
        identity = f"{author} <{author}@users.noreply.github.com> now"
        stream = [f"commit refs/heads/{branch}\nauthor {identity}\ncommitter {identity}\n".encode(), _data(message.encode())]
        stream.append(f"from {parent}\n".encode() if parent else b"")
        for path, content in files.items():
            if content is None:
                stream.append(f"D {path}\n".encode())
                continue
            raw = content.encode() if isinstance(content, str) else content
            mode = "120000" if isinstance(content, Link) else "100755" if raw.startswith(b"#!") else "100644"
            stream += [f"M {mode} inline {path}\n".encode(), _data(raw)]
        await self.git("fast-import", "--quiet", "--force", "--date-format=now", repository=full_name, stdin=b"".join(stream))
        tip = await self.resolve(full_name, f"refs/heads/{branch}")
        if tip is None:
            raise GitFailed(f"{full_name}: the branch {branch} doesn't exist after a commit on it")
        return tip

    async def resolve(self, full_name: str, ref: str) -> str | None:
        """Return the commit of a branch, tag, full ref or hash, or None."""
        if ref.startswith("-") or not ref:
            return None
        if (full_name, ref) in self._commits:
            return ref
        # This is called often, and a process costs a hundred times as much as reading the file.
        if _BRANCH.fullmatch(ref) and (tip := await asyncio.to_thread(_loose_ref, self.path(full_name) / ref)):
            return tip
        try:
            answer = await self.git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", repository=full_name)
        except GitFailed:
            return None
        sha = answer.decode().strip()
        self._commits.add((full_name, sha))
        return sha

    async def set_ref(self, full_name: str, ref: str, sha: str | None) -> None:
        """Point the ref at the commit; None deletes it."""
        await self.git("update-ref", *((ref, sha) if sha else ("-d", ref)), repository=full_name)

    async def fetch(self, full_name: str, source: str, sha: str, ref: str) -> None:
        """Fetch a commit of another repository to a ref of this one."""
        await self.git("fetch", "--quiet", "--no-tags", str(self.path(source)), f"+{sha}:{ref}", repository=full_name)

    async def is_ancestor(self, full_name: str, ancestor: str, descendant: str) -> bool:
        try:
            await self.git("merge-base", "--is-ancestor", ancestor, descendant, repository=full_name)
        except GitFailed:
            return False
        return True

    async def entry(self, full_name: str, sha: str, path: str) -> TreeEntry | None:
        """Return the object at that path; the root folder is a tree with the path ""."""
        if not path:
            tree = await self.git("rev-parse", f"{sha}^{{tree}}", repository=full_name)
            return TreeEntry("", "tree", "040000", tree.decode().strip(), 0)
        found = await self._ls_tree(full_name, sha, path)
        return next((entry for entry in found if entry.path == path), None)

    async def folder(self, full_name: str, sha: str, path: str) -> list[TreeEntry]:
        return await self._ls_tree(full_name, sha, f"{path}/" if path else None)

    async def tree(self, full_name: str, sha: str, *, recursive: bool) -> list[TreeEntry] | None:
        """Return what `git ls-tree` lists for a commit or tree of that hash; None if the repository has no such object."""
        try:
            return await self._ls_tree(full_name, sha, None, recursive=recursive)
        except GitFailed:
            return None

    async def blob(self, full_name: str, sha: str) -> bytes:
        return await self.git("cat-file", "blob", sha, repository=full_name)

    async def linked_file(self, full_name: str, sha: str, path: str) -> TreeEntry | None:
        """Return the file of the same commit that a symbolic link points to; None if it points to anything else."""
        if "\n" in path:
            return None
        answer = await self.git(
            "cat-file", "--batch-check", "--follow-symlinks", repository=full_name, stdin=f"{sha}:{path}\n".encode()
        )
        words = answer.decode(errors="surrogateescape").strip().split(" ")
        if len(words) != 3 or words[1] != "blob":
            return None
        return TreeEntry(path, "blob", "100644", words[0], int(words[2]))

    # --- single objects, as the Git database API creates them

    async def kinds(self, full_name: str, shas: Sequence[str]) -> list[str | None]:
        """Return the kind of each object: blob, tree, commit or tag; None for a missing one."""
        if not shas:
            return []
        asked = "".join(f"{sha}\n" for sha in shas).encode()
        answer = await self.git("cat-file", "--batch-check=%(objecttype)", repository=full_name, stdin=asked)
        return [None if line.endswith("missing") else line for line in answer.decode().splitlines()]

    async def write_blob(self, full_name: str, content: bytes) -> str:
        return (await self.git("hash-object", "-w", "--stdin", repository=full_name, stdin=content)).decode().strip()

    async def write_tree(self, full_name: str, base: str | None, entries: Sequence[tuple[str, str, str | None]]) -> str:
        """Create a tree from a base tree and (path, mode, hash); a hash of None deletes the path. Raises GitFailed."""
        with tempfile.TemporaryDirectory(prefix="index-", dir=self.root) as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            await self.git("read-tree", *([base] if base else ["--empty"]), repository=full_name, extra=index)
            folders = [entry for entry in entries if entry[1] == "040000"]
            # A folder replaces the one of that name.
            names = [path for path, _, _ in folders]
            removed = await self.git("ls-files", "-z", "--", *names, repository=full_name, extra=index) if names else b""
            lines = [f"0 {_NOTHING}\t{path}\0" for path in removed.decode(errors="surrogateescape").split("\0") if path]
            lines += [f"{mode if sha else '0'} {sha or _NOTHING}\t{path}\0" for path, mode, sha in entries if mode != "040000"]
            info = "".join(lines).encode(errors="surrogateescape")
            await self.git("update-index", "-z", "--index-info", repository=full_name, stdin=info, extra=index)
            for path, _, sha in folders:
                if sha is not None:
                    await self.git("read-tree", "-i", f"--prefix={path}/", sha, repository=full_name, extra=index)
            return (await self.git("write-tree", repository=full_name, extra=index)).decode().strip()

    async def write_commit(
        self, full_name: str, *, tree: str, parents: Sequence[str], message: str, author: str, committer: str
    ) -> str:
        """Create a commit. `author` and `committer` are names with an address, perhaps with a date."""
        headers = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {author}", f"committer {committer}"]
        content = "\n".join(headers) + f"\n\n{message}"
        written = await self.git("hash-object", "-t", "commit", "-w", "--stdin", repository=full_name, stdin=content.encode())
        return written.decode().strip()

    async def commit_text(self, full_name: str, sha: str) -> str:
        """Return a commit object: headers, an empty line, the message."""
        return (await self.git("cat-file", "commit", sha, repository=full_name)).decode(errors="replace")

    async def changed_paths(self, full_name: str, before: str, after: str) -> list[str]:
        listing = await self.git("diff-tree", "-r", "-z", "--no-renames", "--name-only", before, after, repository=full_name)
        return [path for path in listing.decode(errors="surrogateescape").split("\0") if path]

    async def diff(self, full_name: str, base: str, head: str) -> bytes:
        """Return the changes since the merge base."""
        return await self.git("diff", "--no-ext-diff", "--no-textconv", f"{base}...{head}", repository=full_name)

    async def count(self, full_name: str, include: str, exclude: str) -> int:
        """Return how many commits the first has and the second hasn't."""
        return int(await self.git("rev-list", "--count", include, f"^{exclude}", repository=full_name))

    async def move_ref(self, full_name: str, ref: str, sha: str, before: str | None) -> bool:
        """Point the ref at the commit if it is still at `before` (None: it doesn't exist); return whether it was."""
        try:
            await self.git("update-ref", ref, sha, before or _NOTHING, repository=full_name)
        except GitFailed:
            return False
        return True

    async def _ls_tree(self, full_name: str, sha: str, path: str | None, *, recursive: bool = False) -> list[TreeEntry]:
        """List a tree. `sha` is a hash, so the result never changes and is cached."""
        key = (full_name, sha, path, recursive)
        if (cached := self._listings.get(key)) is not None:
            return cached
        deeper = ("-r", "-t") if recursive else ()
        listing = await self.git(
            "ls-tree", "-z", "--long", "--full-tree", *deeper, sha, "--", *([path] if path else []), repository=full_name
        )
        entries = []
        for line in listing.decode(errors="surrogateescape").split("\0"):
            if not line:
                continue
            attributes, _, name = line.partition("\t")
            mode, kind, object_sha, size = attributes.split()
            entries.append(TreeEntry(name, kind, mode, object_sha, 0 if size == "-" else int(size)))
        self._listings[key] = entries
        return entries


def _loose_ref(file: Path) -> str | None:
    """Return the hash in a ref's file. A ref is a file with a hash, or a line of packed-refs:
    https://git-scm.com/docs/gitrepository-layout
    """
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return text if _HASH.fullmatch(text) else None


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
