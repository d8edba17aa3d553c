"""The connection to the models' vendors: requests with the operator's keys, repeated until the first byte of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx
import msgspec

from gibil_bot.agents.proxy.protocols.base import ModelProtocol, Prepared
from gibil_bot.authorities import authorities
from gibil_bot.model_settings import VENDORS
from gibil_bot.operator_secrets import Secret
from gibil_bot.retry import RetryPolicy

_CONNECT_S = 10.0
_WRITE_S = 120.0
_RETRIED_STATUSES = frozenset({429, 500, 502, 503, 504, 529})
_ERROR_BYTES = 64 * 1024
"""How much of an error answer is read and passed on."""
_NO_MONEY = b"insufficient_quota"
"""https://platform.openai.com/docs/guides/error-codes: a 429 that doesn't go away by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A vendor, or a server that speaks its protocol, and the operator's key."""

    name: str
    """A key of model_settings.VENDORS, as in an engine's `provider`."""
    key: Secret
    url: str
    """Without the version that begins the API's paths."""

    @property
    def is_vendor(self) -> bool:
        return self.url == VENDORS[self.name]


class Unanswered(Exception):
    """The vendor didn't answer. The message is for people, and contains nothing of the request."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class Cut(Exception):
    """The answer ended before its end."""

    def __init__(self, message: str, *, is_silence: bool = False) -> None:
        super().__init__(message)
        self.message, self.is_silence = message, is_silence


@dataclass(slots=True, kw_only=True)
class Answer:
    """A vendor's answer whose first bytes have arrived."""

    status: int
    headers: httpx.Headers
    first: bytes
    response: httpx.Response | None = None
    """None: `first` is all of it, because it is an error."""
    rest: AsyncGenerator[bytes, None] | None = None
    idle_s: float = 0.0

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it arrives. Raises Cut."""
        yield self.first
        if self.rest is None:
            return
        try:
            async for chunk in self.rest:
                yield chunk
        except httpx.ReadTimeout:
            message = f"the model's vendor sent nothing for {self.idle_s:g} s in the middle of an answer"
            raise Cut(message, is_silence=True) from None
        except httpx.HTTPError:
            raise Cut("the model's vendor closed the connection in the middle of an answer") from None

    async def close(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            if self.rest is not None:
                await self.rest.aclose()
            if self.response is not None:
                await _stream(self.response).aclose()


@dataclass(slots=True)
class Progress:
    """How far a request came."""

    retries: int = 0
    """Attempts that were repeated."""
    may_cost: bool = False
    """Whether the vendor works on it, or has answered it, and bills it."""


class _TryAgain(Exception):
    """An attempt failed before the first byte."""

    def __init__(self, outcome: Answer | Unanswered, retry_after_s: float | None) -> None:
        super().__init__()
        self.outcome, self.retry_after_s = outcome, retry_after_s


class Vendors:
    """Sends requests. Nothing of a request or of a key gets into an exception or a log."""

    def __init__(self, *, idle_s: float, whole_s: float, retries: RetryPolicy) -> None:
        self._idle_s, self._whole_s, self._retries = idle_s, whole_s, retries
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def open(self) -> None:
        verify = await asyncio.to_thread(authorities)
        # No environment: a proxy of the environment would get the requests. A transport instead of a client: redirects would
        # carry the key, cookies would connect tasks, and a client takes a quarter of the time of a call.
        self._transport = httpx.AsyncHTTPTransport(
            trust_env=False,
            verify=verify,
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=32, keepalive_expiry=30.0),
        )

    async def close(self) -> None:
        if self._transport is not None:
            await self._transport.aclose()

    async def send(
        self, upstream: Upstream, protocol: ModelProtocol, call: Prepared, headers: dict[str, str], progress: Progress
    ) -> Answer:
        """Return the answer as soon as its first bytes have arrived. Raises Unanswered."""
        idle_s = self._idle_s if call.streams else self._whole_s

        def repeated(error: Exception, failures: int) -> None:
            progress.retries = failures

        async def attempt() -> Answer:
            return await self._attempt(upstream, protocol, call, headers, idle_s, progress)

        try:
            return await self._retries.call(attempt, retry_after_s=_retry_after_s, before_retry=repeated)
        except _TryAgain as last:
            if isinstance(last.outcome, Unanswered):
                raise last.outcome from None
            return last.outcome

    async def _attempt(
        self,
        upstream: Upstream,
        protocol: ModelProtocol,
        call: Prepared,
        headers: dict[str, str],
        idle_s: float,
        progress: Progress,
    ) -> Answer:
        assert self._transport is not None
        host = urlsplit(upstream.url).hostname
        request = httpx.Request(
            "POST",
            _parsed(upstream.url + call.path),
            content=call.body,
            headers={
                **headers,
                **protocol.key_headers(upstream.key.reveal()),
                "content-type": "application/json",
                "accept": "text/event-stream" if call.streams else "application/json",
                "accept-encoding": "identity",  # compressed answers would hide the counts
                "user-agent": "gibil-bot",
            },
            extensions={"timeout": {"connect": _CONNECT_S, "read": idle_s, "write": _WRITE_S, "pool": _CONNECT_S}},
        )
        progress.may_cost = True
        try:
            response = await self._transport.handle_async_request(request)
        except httpx.ReadTimeout:
            raise Unanswered(f"{host} didn't answer within {idle_s:g} s", status=504) from None
        except (httpx.TransportError, httpx.InvalidURL) as error:
            progress.may_cost = False
            why = Unanswered(f"{host} can't be reached ({type(error).__name__})", status=502)
            raise _TryAgain(why, 0.0) from None
        try:
            if response.status_code == 200:
                return await self._begin(response, host, idle_s)
            progress.may_cost = False
            if 300 <= response.status_code < 400:
                raise Unanswered(f"{host} answered with a redirect; set the address of its API", status=502)
            return await self._error(response, upstream.key)
        except BaseException:
            await _stream(response).aclose()
            raise

    async def _begin(self, response: httpx.Response, host: str | None, idle_s: float) -> Answer:
        """Wait for the first bytes: until then, an attempt can be repeated unnoticed."""
        rest = aiter(_stream(response))
        assert isinstance(rest, AsyncGenerator)
        try:
            first = await anext(rest, b"")
        except httpx.ReadTimeout:
            raise Unanswered(f"{host} sent nothing for {idle_s:g} s", status=504) from None
        except httpx.HTTPError as error:
            why = Unanswered(f"{host} closed the connection ({type(error).__name__})", status=502)
            raise _TryAgain(why, 0.0) from None
        return Answer(status=200, headers=response.headers, first=first, response=response, rest=rest, idle_s=idle_s)

    async def _error(self, response: httpx.Response, key: Secret) -> Answer:
        body = b""
        with contextlib.suppress(httpx.HTTPError):
            async for chunk in _stream(response):
                body += chunk
                if len(body) >= _ERROR_BYTES:
                    break
        await _stream(response).aclose()
        body = body[:_ERROR_BYTES].replace(key.reveal().encode(), b"***")
        answer = Answer(status=response.status_code, headers=response.headers, first=body)
        is_temporary = response.status_code in _RETRIED_STATUSES and not is_out_of_money(answer)
        if is_temporary and response.headers.get("x-should-retry") != "false":
            raise _TryAgain(answer, retry_after(response.headers))
        return answer


def _stream(response: httpx.Response) -> httpx.AsyncByteStream:
    """Return the bytes of a response as they arrive, neither decoded nor collected."""
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


_parsed = functools.lru_cache(maxsize=64)(httpx.URL)
"""Addresses of endpoints. Those of one API have the model's name, which machines choose."""


def is_out_of_money(answer: Answer) -> bool:
    """Return whether the operator's account at the vendor has no credit."""
    return answer.status == 402 or (answer.status == 429 and _NO_MONEY in answer.first)


def _retry_after_s(error: Exception) -> float | None:
    return error.retry_after_s or 0.0 if isinstance(error, _TryAgain) else None


def retry_after(headers: httpx.Headers) -> float | None:
    """Return the seconds that the vendor asks to wait. https://www.rfc-editor.org/rfc/rfc9110#field.retry-after"""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        with contextlib.suppress(ValueError):
            return max(0.0, float(value) / unit)
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def error_message(answer: Answer) -> str:
    """Return the vendor's own message of an error, for the operator's log; empty if there is none."""
    try:
        found = msgspec.json.decode(answer.first)
        message = found["error"]["message"]
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
        return ""
    return message[:300] if isinstance(message, str) else ""
