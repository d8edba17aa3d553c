"""Middleware of all endpoints: faults, identity, rate limits, GitHub's headers, the log."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gibil_bot.demo import git_http, rest
from gibil_bot.demo.access import ANONYMOUS, Caller, Refusal, identify
from gibil_bot.demo.faults import AFTER_EFFECT, Fault, FaultKind, Faults
from gibil_bot.demo.records import RequestRecord
from gibil_bot.demo.state import State

ANONYMOUS_LIMIT = 60
"""Requests an hour: https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api"""

SECONDARY_LIMIT = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."


@dataclass(slots=True)
class _Exchange:
    """One request in progress."""

    scope: Scope
    receive: Receive
    send: Send
    fault: Fault | None
    caller: Caller | None = None
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    async def answer(self, response: Response) -> None:
        await response(self.scope, self.receive, self.pass_on)

    async def pass_on(self, message: Message) -> None:
        """Send a message with the headers that GitHub adds to every response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await self.send(message)

    async def discard(self, message: Message) -> None:
        """Discard a response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]


class Front:
    """The outermost layer. Requests to the control API (`/_double`) pass unchanged."""

    def __init__(self, inner: ASGIApp, state: State, faults: Faults, public_key: rsa.RSAPublicKey) -> None:
        self._inner = inner
        self._state = state
        self._faults = faults
        self._public_key = public_key
        self.stopping = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if path.startswith("/_double/"):
            scope["gibil.caller"] = ANONYMOUS
            await self._inner(scope, receive, send)
            return
        started, at = time.perf_counter(), self._state.now()
        exchange = _Exchange(scope, receive, send, self._faults.take(scope["method"], path))
        exchange.headers["X-GitHub-Request-Id"] = ":".join(secrets.token_hex(2).upper() for _ in range(4))
        try:
            await self._handle(exchange)
        finally:
            record = RequestRecord(
                method=scope["method"],
                path=path,
                query=scope["query_string"].decode(errors="replace"),
                status=exchange.status,
                at=at,
                duration_s=time.perf_counter() - started,
                caller=exchange.caller.kind if exchange.caller else "refused",
                fault=exchange.fault.kind.value if exchange.fault else None,
            )
            self._state.requests.append(record)
            self._state.touch()

    async def _handle(self, exchange: _Exchange) -> None:
        fault = exchange.fault
        if fault is not None:
            self._state.touch()
        if fault is not None and fault.kind not in AFTER_EFFECT and fault.kind is not FaultKind.SLOW_BODY:
            await self._fail(exchange, fault)
            return
        refusal = self._refusal(exchange)
        if refusal is not None:
            git = git_http.is_git(exchange.scope["path"])
            await exchange.answer(git_http.unauthorized() if git else rest.refusal_response(refusal))
        elif fault is None:
            await self._inner(exchange.scope, exchange.receive, exchange.pass_on)
        elif fault.kind is FaultKind.SLOW_BODY:
            await self._inner(exchange.scope, exchange.receive, _send_slowly(exchange, fault.seconds))
        else:
            await self._inner(exchange.scope, exchange.receive, exchange.discard)
            self._state.touch()
            await self._fail(exchange, fault)

    def _refusal(self, exchange: _Exchange) -> Refusal | None:
        """Identify the caller, check the rate limit, and set the rate headers."""
        headers = dict(exchange.scope["headers"])
        if b"user-agent" not in headers:
            # https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#user-agent-required
            return Refusal(
                403, "Request forbidden by administrative rules. Please make sure your request has a User-Agent header"
            )
        try:
            authorization = headers.get(b"authorization", b"").decode("latin-1")
            exchange.caller = identify(self._state, self._public_key, authorization)
        except Refusal as refusal:
            return refusal
        exchange.scope["gibil.caller"] = exchange.caller
        path = exchange.scope["path"]
        if git_http.is_git(path):
            return None
        rate = self._count(exchange.caller, free=path == "/rate_limit")
        exchange.scope["gibil.rate"] = rate
        exchange.headers |= {f"X-RateLimit-{name.title()}": str(value) for name, value in rate.items()}
        if rate["used"] > rate["limit"]:
            return Refusal(403, f"API rate limit exceeded for {exchange.caller.rate_key}.")
        return None

    def _count(self, caller: Caller, *, free: bool) -> dict[str, Any]:
        state, key = self._state, caller.rate_key
        if key not in state.rate_reset or state.rate_reset[key] <= state.now():
            state.rate_used[key] = 0
            state.rate_reset[key] = state.now() + timedelta(hours=1)
        state.rate_used[key] += 0 if free else 1
        limit = min(ANONYMOUS_LIMIT, state.rate_limit) if caller.kind == "anonymous" else state.rate_limit
        used = state.rate_used[key]
        reset = int(state.rate_reset[key].timestamp())
        return {"limit": limit, "remaining": max(0, limit - used), "used": used, "reset": reset, "resource": "core"}

    async def _fail(self, exchange: _Exchange, fault: Fault) -> None:
        kind = fault.kind
        if kind in (FaultKind.HANG, FaultKind.HANG_AFTER):
            await self._wait_or_hang_up(exchange.receive, fault.seconds)
        if kind in (FaultKind.HANG, FaultKind.HANG_AFTER, FaultKind.DROP_BEFORE, FaultKind.DROP_AFTER):
            exchange.status = 0
            cut_connection(exchange.scope)
            return
        await exchange.answer(rest.refusal_response(self._failure(fault)))

    def _failure(self, fault: Fault) -> Refusal:
        match fault.kind:
            case FaultKind.UNAUTHORIZED:
                return Refusal(401, "Bad credentials")
            case FaultKind.PRIMARY_LIMIT:
                reset = int((self._state.now() + timedelta(seconds=fault.seconds)).timestamp())
                headers = {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}
                return Refusal(403, "API rate limit exceeded.", headers=headers)
            case FaultKind.SECONDARY_LIMIT:
                return Refusal(403, SECONDARY_LIMIT, headers={"Retry-After": str(round(fault.seconds))})
            case FaultKind.SECONDARY_LIMIT_BARE:
                return Refusal(403, SECONDARY_LIMIT)
            case _:
                return Refusal(fault.status, "Server Error")

    async def _wait_or_hang_up(self, receive: Receive, seconds: float) -> None:
        """Wait for the timeout, or until the client disconnects, the faults are cleared or the double stops."""

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        waits = [asyncio.create_task(each) for each in (gone(), self._faults.cleared.wait(), self.stopping.wait())]
        try:
            await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


def cut_connection(scope: Scope) -> None:
    """Cut the connection. `server.Protocol` puts the transport into the scope."""
    scope["extensions"]["gibil"]["transport"].abort()


def _send_slowly(exchange: _Exchange, seconds: float) -> Send:
    """Send the body in ten pieces."""

    async def send(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or not body:
            await exchange.pass_on(message)
            return
        size = max(1, -(-len(body) // 10))
        for start in range(0, len(body), size):
            await asyncio.sleep(seconds / 10)
            more = start + size < len(body) or message.get("more_body", False)
            await exchange.pass_on({**message, "body": body[start : start + size], "more_body": more})

    return send
