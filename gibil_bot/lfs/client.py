"""Downloads objects from a Git LFS server: the batch API with the basic transfer.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
https://github.com/git-lfs/git-lfs/blob/main/docs/api/basic-transfers.md
https://github.com/git-lfs/git-lfs/blob/main/docs/api/authentication.md
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import urljoin, urlsplit

import httpx
import msgspec

from gibil_bot.errors import GibilError
from gibil_bot.lfs.pointers import Pointer

BATCH = 100
"""Objects of one request: the number that git-lfs itself asks for."""
AT_ONCE = 4
_ANSWER_BYTES = 4 * 1024 * 1024
_TRIES = 3
PAUSE_S = 1.0
"""Before the second try; longer before the third."""
_MOST_REDIRECTS = 5
_TIMEOUT = httpx.Timeout(60.0, connect=20.0)
_MEDIA = "application/vnd.git-lfs+json"
_NEEDS_CREDENTIALS = frozenset((401, 403, 404, 429))
"""Servers hide private repositories, and limit anonymous callers."""
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_OWN_HEADERS = frozenset(("host", "content-length", "transfer-encoding", "connection", "te", "upgrade"))

Authorize = Callable[[], Awaitable[str | None]]
"""Returns the Authorization header's value for the server; None if there are no credentials."""


class LfsError(GibilError):
    """An object of Git LFS couldn't be downloaded."""

    code = "LFS"


class _Action(msgspec.Struct):
    href: str
    header: dict[str, str] | None = None


class _Actions(msgspec.Struct):
    download: _Action | None = None


class _Problem(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Object(msgspec.Struct):
    oid: str
    size: int = 0
    authenticated: bool | None = None
    actions: _Actions | None = None
    error: _Problem | None = None


class _Batch(msgspec.Struct):
    objects: list[_Object]
    transfer: str = "basic"
    hash_algo: str = "sha256"


class _Unanswered(Exception):
    """The request may succeed if it is repeated."""


class LfsServer:
    """An LFS server by its URL. Use it as a context manager.

    The server gets what `authorize` returns once it asks for credentials, or at once if `is_private`. Nothing is sent to
    another host, except the headers that the server's answer names for a download there.
    """

    def __init__(self, url: str, authorize: Authorize | None = None, *, is_private: bool = False) -> None:
        self._url = url
        self._host = urlsplit(url).netloc
        self._authorize = authorize
        self._asks_at_once = is_private
        self._authorization: str | None = None

    async def __aenter__(self) -> LfsServer:
        verify = await asyncio.to_thread(httpx.create_ssl_context)
        self._http = httpx.AsyncClient(timeout=_TIMEOUT, verify=verify, headers={"User-Agent": "gibil-bot"})
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self._http.aclose()

    async def download(self, wanted: Sequence[Pointer], folder: Path) -> AsyncGenerator[tuple[Pointer, Path], None]:
        """Yield each object with a file in `folder` that has its content, checked; the caller deletes the file.

        Raises LfsError.
        """
        for first in range(0, len(wanted), BATCH):
            part = wanted[first : first + BATCH]
            known = {each.oid: each for each in (await self._batch(part)).objects}
            waiting = [(pointer, known.get(pointer.oid)) for pointer in part]
            running: list[asyncio.Task[tuple[Pointer, Path]]] = []
            try:
                while waiting or running:
                    while waiting and len(running) < AT_ONCE:
                        pointer, found = waiting.pop(0)
                        running.append(asyncio.create_task(self._fetch(pointer, found, folder)))
                    yield await running[0]
                    running.pop(0)
            finally:
                for task in running:
                    task.cancel()
                await asyncio.gather(*running, return_exceptions=True)

    async def _batch(self, wanted: Sequence[Pointer]) -> _Batch:
        body = {
            "operation": "download",
            "transfers": ["basic"],
            "objects": [{"oid": pointer.oid, "size": pointer.size} for pointer in wanted],
            "hash_algo": "sha256",
        }
        if self._asks_at_once:
            await self._ask_for_credentials()
        status, content = await self._post(body)
        if status in _NEEDS_CREDENTIALS and self._authorization is None and await self._ask_for_credentials():
            status, content = await self._post(body)
        if status in (401, 403, 404):
            raise LfsError(f"the LFS server at {self._host} doesn't show us this repository (status {status})")
        if status != 200:
            raise LfsError(f"the LFS server at {self._host} answers with status {status}")
        try:
            answer = msgspec.json.decode(content, type=_Batch)
        except msgspec.DecodeError:
            raise LfsError(f"the LFS server at {self._host} gives an invalid answer") from None
        if answer.transfer != "basic" or answer.hash_algo != "sha256":
            raise LfsError(f"the LFS server at {self._host} wants another transfer than basic, with SHA-256")
        return answer

    async def _ask_for_credentials(self) -> bool:
        if self._authorization is None and self._authorize is not None:
            self._authorization = await self._authorize()
            self._authorize = None
        return self._authorization is not None

    async def _post(self, body: Mapping[str, object]) -> tuple[int, bytes]:
        url = f"{self._url}/objects/batch"
        for attempt in range(1, _TRIES + 1):
            headers = {"Accept": _MEDIA, "Content-Type": _MEDIA}
            if self._authorization is not None:
                headers["Authorization"] = self._authorization
            try:
                async with self._http.stream("POST", url, content=msgspec.json.encode(body), headers=headers) as answer:
                    if answer.status_code in (500, 502, 503, 504) and attempt < _TRIES:
                        raise _Unanswered
                    # a repository that was renamed
                    if answer.status_code in _REDIRECTS and attempt < _TRIES:
                        url = self._same_host(urljoin(url, answer.headers.get("location", "")))
                        continue
                    content = bytearray()
                    async for data in answer.aiter_bytes():
                        content += data
                        if len(content) > _ANSWER_BYTES:
                            raise LfsError(f"the LFS server at {self._host} gives an answer that is too large")
                    return answer.status_code, bytes(content)
            except (_Unanswered, httpx.HTTPError) as error:
                if attempt == _TRIES:
                    raise LfsError(f"the LFS server at {self._host} can't be reached: {_words(error)}") from None
                await asyncio.sleep(attempt * PAUSE_S)
            except (httpx.InvalidURL, ValueError):
                raise LfsError(f"the LFS server at {self._host} redirects to an invalid address") from None
        raise LfsError(f"the LFS server at {self._host} redirects too often")

    def _same_host(self, url: str) -> str:
        here, there = urlsplit(self._url), urlsplit(url)
        if (here.scheme, here.netloc) != (there.scheme, there.netloc):
            raise LfsError(f"the LFS server at {self._host} redirects to another host")
        return url

    async def _fetch(self, pointer: Pointer, found: _Object | None, folder: Path) -> tuple[Pointer, Path]:
        if found is not None and found.error is not None and found.error.code not in (404, 410):
            raise LfsError(f"the LFS server at {self._host} doesn't serve {_short(pointer)}: error {found.error.code}")
        if found is None or found.actions is None or found.actions.download is None:
            raise LfsError(f"the LFS server at {self._host} doesn't have {_short(pointer)}")
        try:
            return await self._download(pointer, found.actions.download, found.authenticated or False, folder / pointer.oid)
        except (httpx.InvalidURL, ValueError):  # an address or a header
            raise LfsError(f"the LFS server at {self._host} names an invalid download for {_short(pointer)}") from None

    async def _download(self, pointer: Pointer, action: _Action, authenticated: bool, path: Path) -> tuple[Pointer, Path]:
        headers = {name: value for name, value in (action.header or {}).items() if name.lower() not in _OWN_HEADERS}
        given = {name.lower() for name in headers}
        own = urlsplit(action.href).netloc == self._host and urlsplit(action.href).scheme == urlsplit(self._url).scheme
        if own and not authenticated and "authorization" not in given and self._authorization is not None:
            headers["Authorization"] = self._authorization
        for attempt in range(1, _TRIES + 1):
            try:
                await self._get(action.href, headers, pointer, path)
                return pointer, path
            except (_Unanswered, httpx.HTTPError) as error:
                if attempt == _TRIES:
                    raise LfsError(f"{_short(pointer)} can't be downloaded from {self._host}: {_words(error)}") from None
                await asyncio.sleep(attempt * PAUSE_S)
        raise AssertionError("the last try returns or raises")

    async def _get(self, url: str, headers: Mapping[str, str], pointer: Pointer, path: Path) -> None:
        for _ in range(_MOST_REDIRECTS + 1):
            there = urlsplit(url)
            # Reading the port raises ValueError if it is none.
            if there.scheme not in ("https", urlsplit(self._url).scheme) or not there.hostname or there.port == 0:
                raise LfsError(f"the LFS server at {self._host} names a download that isn't https")
            async with self._http.stream("GET", url, headers={**headers, "Accept-Encoding": "identity"}) as answer:
                if answer.status_code in _REDIRECTS:
                    url = urljoin(url, answer.headers.get("location", ""))
                    if urlsplit(url).netloc != there.netloc:
                        headers = {}
                    continue
                if answer.status_code != 200:
                    if answer.status_code in (404, 410):
                        raise LfsError(f"the LFS server at {self._host} doesn't have {_short(pointer)}")
                    raise _Unanswered(f"status {answer.status_code}")
                await self._store(answer, pointer, path)
                return
        raise _Unanswered("too many redirects")

    async def _store(self, answer: httpx.Response, pointer: Pointer, path: Path) -> None:
        digest, size = hashlib.sha256(), 0
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(path.open("wb"))
            async for data in answer.aiter_bytes(256 * 1024):
                size += len(data)
                if size > pointer.size:
                    break
                digest.update(data)
                await asyncio.to_thread(file.write, data)
        if size != pointer.size or digest.hexdigest() != pointer.oid:
            raise _Unanswered("what it sends isn't that object")


def _short(pointer: Pointer) -> str:
    return f"the object {pointer.oid[:12]} of {pointer.size} bytes"


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
