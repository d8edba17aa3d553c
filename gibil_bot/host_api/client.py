"""ports.HostFiles over HTTP. What a host answers is read up to a limit, and believed only with its signature."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import quote

import httpx
import msgspec

from gibil_bot.authorities import authorities
from gibil_bot.errors import HostUnavailable
from gibil_bot.host_api.signing import MOST_PART_BYTES, SEAL, FileRequest, Signer, in_thread_if_large
from gibil_bot.model import FilePart, Host

log = logging.getLogger("gibil.hosts")

_CONNECT_S = 3.0
_FRAME_BYTES = 1024
"""What an answer has in addition to the bytes of the file."""


class HostClient:
    """ports.HostFiles. Used as a context manager."""

    def __init__(self, signer: Signer, *, within_s: float = 10.0) -> None:
        self._signer, self._within_s = signer, within_s
        self._http: httpx.AsyncClient | None = None
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> HostClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._http is not None:
            await self._http.aclose()

    async def read(self, host: Host, run_id: str, name: str, *, offset: int | None, most_bytes: int) -> FilePart | None:
        """See ports.HostFiles."""
        request = FileRequest(run_id=run_id, name=name, offset=offset, most_bytes=min(most_bytes, MOST_PART_BYTES))
        token = self._signer.token(host.id, request)
        http = await self._client()
        try:
            async with asyncio.timeout(self._within_s):
                status, seal, body = await self._get(http, host, request, token)
        except TimeoutError:
            raise HostUnavailable(f"{host.name} didn't answer within {self._within_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            why = str(error) or type(error).__name__
            log.warning("%s can't be reached at %s: %s", host.name, host.url, why)
            raise HostUnavailable(f"{host.name} can't be reached at its GIBIL_BOT_URL: {why}") from None
        if status == 401:
            raise HostUnavailable(
                f"{host.name} rejected the request: GIBIL_BOT_URL there has to lead to the bot on that host, and the clocks of "
                "both hosts have to agree"
            )
        is_sealed = status == 200 and await in_thread_if_large(len(body), lambda: self._signer.is_sealed(token, body, seal))
        if not is_sealed:
            raise HostUnavailable(
                f"{host.name} answered with status {status} and no signature: GIBIL_BOT_URL there has to lead to its bot"
            )
        try:
            part = await in_thread_if_large(len(body), lambda: msgspec.msgpack.decode(body, type=FilePart | None))
        except msgspec.MsgspecError:
            part = FilePart(data=b"", offset=-1, size=0)
        if part is not None and not 0 <= part.offset <= part.offset + len(part.data) <= part.size:
            raise HostUnavailable(
                f"{host.name} answered with an invalid part of a file: run the same version of the bot everywhere"
            )
        return part

    async def _get(self, http: httpx.AsyncClient, host: Host, request: FileRequest, token: str) -> tuple[int, str, bytes]:
        base = httpx.URL(host.url)
        if base.scheme not in ("http", "https") or not base.host:
            raise ValueError("it isn't an http or https address")
        url = f"{host.url.rstrip('/')}/internal/runs/{quote(request.run_id, safe='')}/files"
        query: dict[str, str | int] = {"name": request.name, "most": request.most_bytes}
        if request.offset is not None:
            query["offset"] = request.offset
        headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity"}
        async with http.stream("GET", url, params=query, headers=headers) as answer:
            body = bytearray()
            if answer.status_code == 200:
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > request.most_bytes + _FRAME_BYTES:
                        raise ValueError(f"it sent more than {request.most_bytes} bytes")
            return answer.status_code, answer.headers.get(SEAL, ""), bytes(body)

    async def _client(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._http is None:
                verify = await asyncio.to_thread(authorities)
                self._http = httpx.AsyncClient(
                    verify=verify,
                    follow_redirects=False,
                    trust_env=False,  # hosts reach one another without the proxy for the internet
                    timeout=httpx.Timeout(self._within_s, connect=min(_CONNECT_S, self._within_s)),
                    limits=httpx.Limits(max_connections=32, max_keepalive_connections=8, keepalive_expiry=30.0),
                    headers={"User-Agent": "gibil-bot"},
                )
            return self._http
