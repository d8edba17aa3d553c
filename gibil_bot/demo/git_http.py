"""The repositories over git's smart HTTP: https://git-scm.com/docs/http-protocol

Uses `git upload-pack --stateless-rpc`, which every git has; `git http-backend` isn't packaged everywhere.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gibil_bot import git
from gibil_bot.demo import actions, lfs_http, rest
from gibil_bot.demo.access import Refusal, find_repository, may_write
from gibil_bot.demo.records import Repository

LARGEST_REQUEST = 64 * 1024 * 1024
_NEEDS = {"git-upload-pack": ("contents", "read"), "git-receive-pack": ("contents", "write")}
_PROTOCOL = re.compile(r"version=[012](:[a-z0-9=:]*)?")
_NO_CACHE = {"Cache-Control": "no-cache, max-age=0, must-revalidate"}


def is_git(path: str) -> bool:
    return ".git/" in path or path.startswith(lfs_http.STORAGE)


def unauthorized() -> Response:
    """Return the response after which git asks its credential helper."""
    return PlainTextResponse("Authentication required\n", 401, {"WWW-Authenticate": 'Basic realm="GitHub"'})


async def advertise(request: Request) -> Response:
    service = request.query_params.get("service", "")
    if service not in _NEEDS:
        return PlainTextResponse("Please upgrade your git client.\n", 403)
    repository = _repository(request, service)
    if isinstance(repository, Response):
        return repository
    process = await _start(request, repository, service, "--http-backend-info-refs")
    try:
        listing, _ = await asyncio.wait_for(process.communicate(), 30)
    finally:
        await git.end(process)
    announced = f"# service={service}\n"
    # Version 2 begins directly with the capabilities: https://git-scm.com/docs/protocol-v2#_http_transport
    prelude = b"" if _version(request).startswith("version=2") else f"{len(announced) + 4:04x}{announced}0000".encode()
    return Response(prelude + listing, media_type=f"application/x-{service}-advertisement", headers=_NO_CACHE)


async def serve(request: Request) -> Response:
    """Handle the second request, in which the client states what it fetches or pushes."""
    service = request.path_params["service"]
    if service not in _NEEDS:
        return PlainTextResponse("Not Found\n", 404)
    repository = _repository(request, service)
    if isinstance(repository, Response):
        return repository
    data = await _body(request)
    process = await _start(request, repository, service)
    headers = {**_NO_CACHE, "Content-Type": f"application/x-{service}-result"}
    if service == "git-receive-pack":
        try:
            answer, _ = await asyncio.wait_for(process.communicate(data), 60)
        finally:
            await git.end(process)
        await actions.after_push(rest.hub(request), repository, rest.actor(request), actions.pushed_branches(data))
        return Response(answer, headers=headers)
    return StreamingResponse(_stream(process, data), headers=headers)


def _repository(request: Request, service: str) -> Repository | Response:
    full_name = f"{request.path_params['owner']}/{request.path_params['name']}"
    try:
        repository = find_repository(rest.hub(request).state, rest.caller(request), full_name, _NEEDS[service])
        personal = rest.caller(request).personal
        if personal is not None and service == "git-receive-pack" and not may_write(personal, repository):
            raise Refusal(403, "Forbidden")
        return repository
    except Refusal as refusal:
        if rest.caller(request).kind == "anonymous":
            return unauthorized()
        words = {404: "Repository not found.\n", 403: "Write access to repository not granted.\n"}
        return PlainTextResponse(words.get(refusal.status, refusal.message), refusal.status)


def _version(request: Request) -> str:
    data = request.headers.get("git-protocol", "")
    return data if _PROTOCOL.fullmatch(data) else ""


async def _start(request: Request, repository: Repository, service: str, *options: str) -> asyncio.subprocess.Process:
    store = rest.hub(request).git
    environment = git.sealed_environment(store.root)
    if _version(request):
        environment["GIT_PROTOCOL"] = _version(request)
    return await git.start(
        service.removeprefix("git-"),
        "--stateless-rpc",
        *options,
        str(store.path(repository.full_name)),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )


async def _stream(process: asyncio.subprocess.Process, data: bytes) -> AsyncIterator[bytes]:
    assert process.stdin is not None
    assert process.stdout is not None

    async def write_request(stdin: asyncio.StreamWriter) -> None:
        try:
            stdin.write(data)
            await stdin.drain()
            stdin.close()
            await stdin.wait_closed()
        except ConnectionError:
            pass  # git closed its stdin early: its output has the reason

    writing = asyncio.create_task(write_request(process.stdin))
    try:
        while chunk := await process.stdout.read(65536):
            yield chunk
        await process.wait()
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await git.end(process)


async def _body(request: Request) -> bytes:
    raw = await request.body()
    if request.headers.get("content-encoding") in ("gzip", "x-gzip"):
        unpacker = zlib.decompressobj(wbits=31)
        raw = unpacker.decompress(raw, LARGEST_REQUEST)
        if unpacker.unconsumed_tail:
            raise Refusal(413, "Too large")
    return raw


ROUTES = [
    Route("/{owner}/{name}.git/info/refs", advertise),
    *lfs_http.ROUTES,
    Route("/{owner}/{name}.git/{service}", serve, methods=["POST"]),
]
