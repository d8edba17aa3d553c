"""Git LFS: the batch API, and downloads by signed links.

https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gibil_bot.demo import rest
from gibil_bot.demo.access import Refusal, find_repository
from gibil_bot.demo.records import Repository
from gibil_bot.demo.state import State

STORAGE = "/_lfs/"
MEDIA = "application/vnd.git-lfs+json"
MOST_OBJECTS = 100
"""The number that git-lfs asks for; servers may answer 413 to more (batch.md, "Response Errors")."""


def add_object(state: State, repository: Repository, content: bytes) -> str:
    """Store an object and return its pointer (spec.md, "The Pointer"). The repositories of a network share their objects:

    https://docs.github.com/en/repositories/working-with-files/managing-large-files/collaboration-with-git-large-file-storage
    """
    oid = hashlib.sha256(content).hexdigest()
    state.lfs_objects[repository.source.id, oid] = content
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"


async def batch(request: Request) -> Response:
    """batch.md, "Requests": the media type is required in both headers."""
    if request.headers.get("accept", "").partition(";")[0] != MEDIA:
        return _problem(406, "Not Acceptable")
    if request.headers.get("content-type", "").partition(";")[0] != MEDIA:
        return _problem(415, "Unsupported Media Type")
    state = rest.hub(request).state
    try:
        name = f"{request.path_params['owner']}/{request.path_params['name']}"
        repository = find_repository(state, rest.caller(request), name, ("contents", "read"))
    except Refusal as refusal:
        # "401 - The authentication credentials are needed, but were not sent."
        anonymous = rest.caller(request).kind == "anonymous"
        return _problem(401, "Credentials needed") if anonymous else _problem(refusal.status, refusal.message)
    wanted = await rest.body(request)
    objects, transfers = wanted.get("objects"), wanted.get("transfers", ["basic"])
    basic = isinstance(transfers, list) and "basic" in transfers
    if wanted.get("operation") != "download" or not isinstance(objects, list) or not basic:
        return _problem(422, "Validation error")
    if wanted.get("hash_algo", "sha256") != "sha256":
        return _problem(409, "The hash algorithm is not acceptable")
    if len(objects) > MOST_OBJECTS:
        return _problem(413, "Too many objects")
    found = [_found(state, repository, each["oid"], each["size"]) for each in objects]
    return _answer({"transfer": "basic", "objects": found, "hash_algo": "sha256"})


def _found(state: State, repository: Repository, oid: str, size: int) -> dict[str, Any]:
    content = state.lfs_objects.get((repository.source.id, oid))
    if content is None or len(content) != size:
        # "If there are problems accessing individual objects, servers should continue to return a 200 status code"
        return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
    signature = secrets.token_urlsafe(24)
    state.lfs_links[signature] = content
    action = {"href": f"{state.url}{STORAGE}{signature}", "header": {"X-Signed-For": oid}, "expires_in": 3600}
    return {"oid": oid, "size": size, "authenticated": True, "actions": {"download": action}}


async def download(request: Request) -> Response:
    """basic-transfers.md, "Downloads": the raw bytes. A signed link needs its header and rejects an Authorization header, as S3
    does: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-auth-using-authorization-header.html
    """
    content = rest.hub(request).state.lfs_links.get(request.path_params["signature"])
    if content is None or hashlib.sha256(content).hexdigest() != request.headers.get("x-signed-for"):
        return Response("Forbidden", 403)
    if "authorization" in request.headers:
        return Response("Only one auth mechanism allowed", 400)
    return Response(content, media_type="application/octet-stream")


def _problem(status: int, message: str) -> Response:
    return _answer({"message": message}, status)


def _answer(content: dict[str, Any], status: int = 200) -> Response:
    return JSONResponse(content, status, media_type=MEDIA)


ROUTES = [
    Route("/{owner}/{name}.git/info/lfs/objects/batch", batch, methods=["POST"]),
    Route(STORAGE + "{signature}", download),
]
