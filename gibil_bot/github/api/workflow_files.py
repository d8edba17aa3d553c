"""The workflow files that a repository holds at one commit, in as few requests as GitHub's contents API allows.

https://docs.github.com/en/rest/repos/contents#get-repository-content
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections import OrderedDict
from collections.abc import Awaitable

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.api.request import Request
from gibil_bot.github.api.response import Answer
from gibil_bot.github.api.session import Session
from gibil_bot.model import UnusableFile

LARGEST_FILE = 64 * 1024
MOST_FILES = 30
CACHED_COMMITS = 16
CACHE_LIFE_S = 300.0
"""A commit never changes; what an App may see of it does, and an empty answer may only mean that."""

_NO_FILES = ("symlink", "submodule")
_SHA = re.compile(r"[0-9a-f]{40}")


class _File(msgspec.Struct):
    type: str = ""
    name: str = ""
    path: str = ""
    encoding: str | None = None
    content: str | None = None


class WorkflowFiles:
    """Reads them, and remembers those of commits named by their full hash."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._files: OrderedDict[tuple[int, str, str], tuple[float, dict[str, bytes]]] = OrderedDict()

    async def at(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        """Two requests, and one for each file of the folder, the first 30 by name.

        https://docs.github.com/en/rest/repos/contents#get-repository-content
        """
        key = (installation_id, repository, ref)
        known = self._files.get(key)
        if known is not None and known[0] > self._session.monotonic():
            return dict(known[1])
        single, folder = await _together(
            self._content(installation_id, repository, ".gibil.yml", ref),
            self._content(installation_id, repository, ".gibil/workflows", ref),
        )
        paths = [
            f".gibil/workflows/{entry.name}"
            for entry in sorted(_entries(folder), key=lambda entry: entry.name)
            if entry.type in ("file", "symlink", "submodule") and entry.name.endswith((".yml", ".yaml"))
        ][:MOST_FILES]
        answers = await _together(*(self._content(installation_id, repository, path, ref) for path in paths))
        files: dict[str, bytes] = {}
        if (kind := _kind(folder)) in _NO_FILES:
            files[".gibil/workflows"] = UnusableFile.of(kind, is_folder=True)
        for path, answer in zip([".gibil.yml", *paths], [single, *answers], strict=True):
            content = await self._file(installation_id, repository, path, ref, answer)
            if content is not None:
                files[path] = content if isinstance(content, UnusableFile) else content[: LARGEST_FILE + 1]
        if _SHA.fullmatch(ref):
            self._files[key] = (self._session.monotonic() + CACHE_LIFE_S, files)
            while len(self._files) > CACHED_COMMITS:
                self._files.popitem(last=False)
        return dict(files)

    async def _content(self, installation_id: int, repository: str, path: str, ref: str) -> Answer:
        return await self._session.ask(_content_request(installation_id, repository, path, ref))

    async def _file(self, installation_id: int, repository: str, path: str, ref: str, answer: Answer) -> bytes | None:
        """What is in the file that the answer describes; None for a folder, or where nothing is.

        GitHub follows a symbolic link that leads to a file of the repository, and describes any other link as itself.
        """
        if answer.status == 404 or answer.content.lstrip()[:1] == b"[":
            return None
        found = answer.read(_File)
        if found.type != "file":
            return UnusableFile.of(found.type) if found.type in _NO_FILES else None
        if found.encoding == "base64" and found.content is not None:
            try:
                return base64.b64decode(found.content)
            except binascii.Error:
                raise GitHubError(f"{repository}: GitHub's content of {path} is not base64", retry_after_s=60) from None
        # Above 1 MB GitHub leaves the content out.
        request = _content_request(installation_id, repository, path, ref, raw=True)
        return (await self._session.ask(request)).content


def _content_request(installation_id: int, repository: str, path: str, ref: str, *, raw: bool = False) -> Request:
    return Request(
        method="GET",
        route="/repos/{repository}/contents/{path}",
        place={"repository": repository, "path": path},
        installation_id=installation_id,
        query={"ref": ref},
        answers=frozenset({404}),
        accept="application/vnd.github.raw+json" if raw else "application/vnd.github+json",
        at_most=LARGEST_FILE + 1 if raw else None,
    )


def _kind(answer: Answer) -> str:
    """What is at the path of a folder: empty for a folder, and where nothing is."""
    if answer.status == 404 or answer.content.lstrip()[:1] == b"[":
        return ""
    return answer.read(_File).type


def _entries(answer: Answer) -> list[_File]:
    """Of a folder; none when it is a file or nothing."""
    if answer.status == 404 or answer.content.lstrip()[:1] != b"[":
        return []
    return answer.read(list[_File])


async def _together(*requests: Awaitable[Answer]) -> list[Answer]:
    """All at once; the first failure stops the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_wait(request)) for request in requests]
    except BaseExceptionGroup as failures:
        refused, others = failures.split(GitHubError)
        if refused is None or others is not None:
            raise
        error = refused.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise error


async def _wait(request: Awaitable[Answer]) -> Answer:
    return await request
