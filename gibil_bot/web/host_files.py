"""`GET /internal/runs/{id}/files`: parts of a run's files, for the bots of other hosts."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gibil_bot.errors import GibilError
from gibil_bot.host_api.signing import MOST_PART_BYTES, SEAL, FileRequest, Signer, TokenRejected, in_thread_if_large
from gibil_bot.runs.run_files import may_be_asked_for, read_part

log = logging.getLogger("gibil.web")

_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)


class HostFilesRoute:
    """Serves the files in `logs`. The bot that asks has checked that its user may read them."""

    def __init__(self, signer: Signer, logs: Path) -> None:
        self._signer, self._logs = signer, logs

    async def answer(self, request: Request) -> Response:
        """Answer with a FilePart or null as MessagePack, signed."""
        credentials = request.headers.getlist("authorization")
        scheme, _, token = credentials[0].partition(" ") if len(credentials) == 1 else ("", "", "")
        wanted = _wanted(request)
        if scheme.lower() != "bearer" or wanted is None:
            return _rejected("the request needs a token of another bot of this database")
        try:
            self._signer.accept(token, wanted)
        except TokenRejected as error:
            if error.is_ours:
                log.warning("a request of another host for a file was rejected: %s", error.message)
            return _rejected(error.message)
        if not may_be_asked_for(wanted.run_id, wanted.name):
            return _error(404, "there is no such file", "NOT_FOUND")
        try:
            part = await asyncio.to_thread(
                read_part, self._logs / wanted.run_id, wanted.name, offset=wanted.offset, most_bytes=wanted.most_bytes
            )
        except GibilError as error:
            log.error("another host asked for a file: %s", error.message)
            return _error(503, error.message, error.code)

        def sealed() -> tuple[bytes, str]:
            body = msgspec.msgpack.encode(part)
            return body, self._signer.seal(token, body)

        body, seal = await in_thread_if_large(0 if part is None else len(part.data), sealed)
        headers = {SEAL: seal, "cache-control": "no-store"}
        return Response(body, media_type="application/octet-stream", headers=headers)


def _wanted(request: Request) -> FileRequest | None:
    """Return what is asked for, unchecked but for its form; None if it isn't well-formed."""
    query = request.query_params
    name, most, offset = query.get("name"), query.get("most", ""), query.get("offset")
    if name is None or len(query.multi_items()) != len(query) or _NUMBER.fullmatch(most) is None:
        return None
    if (offset is not None and _NUMBER.fullmatch(offset) is None) or not 0 < int(most) <= MOST_PART_BYTES:
        return None
    run_id: str = request.path_params["run_id"]
    return FileRequest(run_id=run_id, name=name, offset=None if offset is None else int(offset), most_bytes=int(most))


def _rejected(message: str) -> Response:
    response = _error(401, message, "UNAUTHORIZED")
    response.headers["www-authenticate"] = "Bearer"
    return response


def _error(status: int, message: str, code: str) -> Response:
    return Response(msgspec.json.encode({"error": message, "code": code}), status, media_type="application/json")
