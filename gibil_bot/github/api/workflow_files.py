"""Reads the workflow files of a repository at a branch, with one request if they are unchanged.

The branch's root tree is always read, so that access is checked and new commits are seen at once. It lists files by the hash of
their content; the contents are cached. https://docs.github.com/en/rest/git/trees#get-a-tree

Links, submodules, and trees too large for one answer are read by path, because the contents API follows links:
https://docs.github.com/en/rest/repos/contents#get-repository-content
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import OrderedDict
from collections.abc import Awaitable
from typing import TypeVar

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.api.http import Answer, Request
from gibil_bot.github.api.session import Session
from gibil_bot.limits import MOST_WORKFLOW_FILES, REPOSITORY_FILE, WORKFLOW_FILE_BYTES, WORKFLOW_FOLDER
from gibil_bot.model import UnusableFile

CACHED_OBJECTS, CACHED_BYTES = 1024, 16 * 1024 * 1024
LARGEST_TREE = 2 * 1024 * 1024
"""Bytes of an answer: about 8,000 entries."""

_FILE_MODES = ("100644", "100755")
_FOLDER_MODE = "040000"
_SUFFIXES = (".yml", ".yaml")
_NOT_FILES = ("symlink", "submodule")
T = TypeVar("T")


class _TreeEntry(msgspec.Struct):
    path: str
    mode: str
    sha: str

    @property
    def is_file(self) -> bool:
        return self.mode in _FILE_MODES


class _Tree(msgspec.Struct):
    tree: list[_TreeEntry]
    truncated: bool = False


class _Content(msgspec.Struct):
    type: str = ""
    name: str = ""
    path: str = ""
    encoding: str | None = None
    content: str | None = None


class _NotByTree(Exception):
    """The workflow files can't be read by their hashes."""


class ObjectCache:
    """Git objects by (installation, repository, hash), limited in number and bytes; evicts the least recently used one.

    Two installations never share an entry, not even for the same repository.
    """

    def __init__(self, most_objects: int = CACHED_OBJECTS, most_bytes: int = CACHED_BYTES) -> None:
        self._objects: OrderedDict[tuple[int, str, str], bytes] = OrderedDict()
        self._most_objects, self._most_bytes = most_objects, most_bytes
        self.size = 0
        """Bytes of all objects."""

    def get(self, installation_id: int, repository: str, sha: str) -> bytes | None:
        key = (installation_id, repository, sha)
        if key not in self._objects:
            return None
        self._objects.move_to_end(key)
        return self._objects[key]

    def put(self, installation_id: int, repository: str, sha: str, content: bytes) -> None:
        key = (installation_id, repository, sha)
        self.size += len(content) - len(self._objects.pop(key, b""))
        self._objects[key] = content
        while len(self._objects) > self._most_objects or self.size > self._most_bytes:
            _, dropped = self._objects.popitem(last=False)
            self.size -= len(dropped)

    def __len__(self) -> int:
        return len(self._objects)


class WorkflowFiles:
    """Reads workflow files, and caches objects by hash."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._cache = ObjectCache()

    async def at(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        """Return path → content, cut one byte above the limit: `.gibil.yml` and the folder's first 30 files, by name.

        Raises GitHubError.
        """
        reader = _Reader(self._session, self._cache, installation_id, repository)
        try:
            return await reader.by_tree(ref)
        except _NotByTree:
            return await reader.by_path(ref)


class _Reader:
    def __init__(self, session: Session, cache: ObjectCache, installation_id: int, repository: str) -> None:
        self._session = session
        self._cache = cache
        self._installation_id = installation_id
        self._repository = repository

    # --- by the hashes of trees and files

    async def by_tree(self, ref: str) -> dict[str, bytes]:
        root = {entry.path: entry for entry in _entries_of_tree(await self._tree(ref))}
        files: dict[str, str] = {}
        if (single := root.get(REPOSITORY_FILE)) is not None and single.mode != _FOLDER_MODE:
            files[REPOSITORY_FILE] = _sha_of_file(single)
        first, _, second = WORKFLOW_FOLDER.partition("/")
        if (outer := root.get(first)) is not None and not outer.is_file:
            files |= await self._files_of_folder(outer, second)
        contents = await _together(*(self._blob(sha) for sha in files.values()))
        return dict(zip(files, contents, strict=True))

    async def _files_of_folder(self, outer: _TreeEntry, name: str) -> dict[str, str]:
        """Return path → hash."""
        for entry in await self._subtree(outer):
            if entry.path == name and not entry.is_file:
                found = sorted(await self._subtree(entry), key=lambda each: each.path)
                chosen = [each for each in found if each.mode != _FOLDER_MODE and each.path.endswith(_SUFFIXES)]
                return {f"{WORKFLOW_FOLDER}/{each.path}": _sha_of_file(each) for each in chosen[:MOST_WORKFLOW_FILES]}
        return {}

    async def _subtree(self, entry: _TreeEntry) -> list[_TreeEntry]:
        if entry.mode != _FOLDER_MODE:
            raise _NotByTree
        content = self._cached(entry.sha)
        if content is None:
            content = await self._tree(entry.sha)
            self._remember(entry.sha, content)
        return _entries_of_tree(content)

    async def _tree(self, name: str) -> bytes:
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/git/trees/{tree}",
                path_parameters={"repository": self._repository, "tree": name},
                installation_id=self._installation_id,
                # 409: an empty repository.
                answers=frozenset({404, 409, 422}),
                at_most=LARGEST_TREE + 1,
            )
        )
        if answer.status >= 400 or len(answer.content) > LARGEST_TREE:
            raise _NotByTree
        return answer.content

    async def _blob(self, sha: str) -> bytes:
        """https://docs.github.com/en/rest/git/blobs#get-a-blob"""
        content = self._cached(sha)
        if content is None:
            answer = await self._session.ask(
                Request(
                    method="GET",
                    route="/repos/{repository}/git/blobs/{sha}",
                    path_parameters={"repository": self._repository, "sha": sha},
                    installation_id=self._installation_id,
                    accept="application/vnd.github.raw+json",
                    at_most=WORKFLOW_FILE_BYTES + 1,
                )
            )
            content = answer.content
            self._remember(sha, content)
        return content

    def _cached(self, sha: str) -> bytes | None:
        return self._cache.get(self._installation_id, self._repository, sha)

    def _remember(self, sha: str, content: bytes) -> None:
        self._cache.put(self._installation_id, self._repository, sha, content)

    # --- by path

    async def by_path(self, ref: str) -> dict[str, bytes]:
        """Read with two requests, and one per file of the folder; nothing is cached."""
        single, folder = await _together(self._content(REPOSITORY_FILE, ref), self._content(WORKFLOW_FOLDER, ref))
        paths = [
            f"{WORKFLOW_FOLDER}/{entry.name}"
            for entry in sorted(_entries_of_folder(folder), key=lambda entry: entry.name)
            if entry.type in ("file", *_NOT_FILES) and entry.name.endswith(_SUFFIXES)
        ][:MOST_WORKFLOW_FILES]
        answers = await _together(*(self._content(path, ref) for path in paths))
        files: dict[str, bytes] = {}
        if (kind := _kind(folder)) in _NOT_FILES:
            files[WORKFLOW_FOLDER] = UnusableFile.of(kind, is_folder=True)
        for path, answer in zip([REPOSITORY_FILE, *paths], [single, *answers], strict=True):
            content = await self._file(path, ref, answer)
            if content is not None:
                files[path] = content if isinstance(content, UnusableFile) else content[: WORKFLOW_FILE_BYTES + 1]
        return files

    async def _content(self, path: str, ref: str, *, raw: bool = False) -> Answer:
        return await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/contents/{path}",
                path_parameters={"repository": self._repository, "path": path},
                installation_id=self._installation_id,
                query={"ref": ref},
                answers=frozenset({404}),
                accept="application/vnd.github.raw+json" if raw else "application/vnd.github+json",
                at_most=WORKFLOW_FILE_BYTES + 1 if raw else None,
            )
        )

    async def _file(self, path: str, ref: str, answer: Answer) -> bytes | None:
        """Return the content of the file that the answer describes; None for a folder, or if nothing exists.

        GitHub follows a symbolic link to a file of the repository, and describes any other link as itself.
        """
        if answer.status == 404 or answer.content.lstrip()[:1] == b"[":
            return None
        found = answer.read(_Content)
        if found.type != "file":
            return UnusableFile.of(found.type) if found.type in _NOT_FILES else None
        if found.encoding == "base64" and found.content is not None:
            try:
                return base64.b64decode(found.content)
            except binascii.Error:
                raise GitHubError(f"{self._repository}: GitHub's content of {path} isn't base64", retry_after_s=60) from None
        # Above 1 MB GitHub omits the content.
        return (await self._content(path, ref, raw=True)).content


def _entries_of_tree(content: bytes) -> list[_TreeEntry]:
    try:
        found = msgspec.json.decode(content, type=_Tree)
    except msgspec.MsgspecError:
        raise _NotByTree from None
    if found.truncated:
        raise _NotByTree
    return found.tree


def _sha_of_file(entry: _TreeEntry) -> str:
    if not entry.is_file:
        raise _NotByTree
    return entry.sha


def _kind(answer: Answer) -> str:
    """Return what is at a folder's path; empty for a folder, or if nothing exists."""
    if answer.status == 404 or answer.content.lstrip()[:1] == b"[":
        return ""
    return answer.read(_Content).type


def _entries_of_folder(answer: Answer) -> list[_Content]:
    """Return the folder's entries; empty if the path is a file or doesn't exist."""
    if answer.status == 404 or answer.content.lstrip()[:1] != b"[":
        return []
    return answer.read(list[_Content])


async def _together(*requests: Awaitable[T]) -> list[T]:
    """Await all requests concurrently; the first failure cancels the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_wait(request)) for request in requests]
    except BaseExceptionGroup as failures:
        rejected, others = failures.split(GitHubError)
        if rejected is None or others is not None:
            raise
        error = rejected.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise error


async def _wait(request: Awaitable[T]) -> T:
    return await request
