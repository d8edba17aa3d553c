"""MCP over Streamable HTTP, with the protocol library's transport: /mcp of the bot, and `gibil mcp --http`.

Servers must check Origin against DNS rebinding, should listen on loopback alone, and should authenticate every connection:
https://modelcontextprotocol.io/specification/2025-11-25/basic/transports#security-warning. All of that precedes the transport
and the request's body. The library is imported with the first request that has a valid token: most bots have none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gibil_bot.access_tokens import AccessToken, AccessTokens
from gibil_bot.cancellation import wait_uncancelled
from gibil_bot.errors import GibilError

if TYPE_CHECKING:
    from mcp.server.lowlevel.server import Server
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
    from starlette.types import ASGIApp, Receive, Scope, Send

    from gibil_bot.config import Settings
    from gibil_bot.wiring import Bot

log = logging.getLogger("gibil.mcp")

TOKEN = "gibil.token"  # noqa: S105 (a key)
"""The key of the caller's AccessToken in the ASGI scope."""
BODY_BYTES = 1024 * 1024
MACHINE_BODY_BYTES = 16 * 1024 * 1024
"""For vm_write."""
MOST_SESSIONS = 50
"""Of one token."""
_LONGEST_HEADER = 200
_FAILURES, _FAILURES_PER_S = 20, 1 / 3
"""How many wrong tokens an address may send at once, and how fast that is refilled."""
_MOST_ADDRESSES = 1000
_CALLS, _CALLS_PER_S = 120, 4.0
"""The same for requests with one token."""
VERIFY_EVERY_S = 10.0
"""How often the token of a request in progress is verified again: a stream may be open for days."""
_LOG_EVERY_S = 60.0

BOT_INSTRUCTIONS = (
    "Runs of workflows on the pull requests of repositories that this bot serves, with the permissions of the token's owner. "
    "Start one with run_workflow, watch it with get_run, read its output with run_logs."
)


class _Buckets:
    """Token buckets by key, in memory. The least recently used key is forgotten."""

    def __init__(self, capacity: float, per_s: float) -> None:
        self._capacity, self._per_s = capacity, per_s
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def spend(self, key: str, now_s: float) -> float:
        """Spend one token; return 0, or the seconds until there is one."""
        level, at_s = self._levels.pop(key, (self._capacity, now_s))
        level = min(self._capacity, level + (now_s - at_s) * self._per_s)
        wait_s = 0.0 if level >= 1 else (1 - level) / self._per_s
        self._levels[key] = (level if wait_s else level - 1, now_s)
        if len(self._levels) > _MOST_ADDRESSES:
            self._levels.popitem(last=False)
        return wait_s


class Guard:
    """Checks Host, Origin and the bearer token of a request before anything else reads it.

    A valid token is never rejected because of other clients' wrong ones: behind a reverse proxy all clients share one address.
    Guessing is hopeless anyway; the limit bounds what wrong tokens cost. Nothing logs a token, or any other header.
    """

    def __init__(
        self,
        app: ASGIApp,
        tokens: AccessTokens,
        hosts: Iterable[str],
        origins: Iterable[str],
        scopes: frozenset[str],
        *,
        verify_every_s: float = VERIFY_EVERY_S,
    ) -> None:
        """`scopes`: a token needs one of them."""
        self._app = app
        self._tokens = tokens
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower() for origin in origins)
        self._scopes = scopes
        self._failures = _Buckets(_FAILURES, _FAILURES_PER_S)
        self._calls = _Buckets(_CALLS, _CALLS_PER_S)
        self._verify_every_s = verify_every_s
        self._unlogged, self._logged_at_s = 0, float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        hosts, origins, credentials = (
            [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"origin", b"authorization")
        )
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            await _reject(send, 421, "the Host header names another server: set GIBIL_PUBLIC_URL to the address of the bot")
            return
        if origins and (len(origins) != 1 or origins[0].lower() not in self._origins):
            await _reject(send, 403, "requests from this Origin are not allowed")
            return
        now_s = asyncio.get_running_loop().time()
        try:
            token = await asyncio.to_thread(self._authenticated, credentials) if credentials else None
        except GibilError as error:
            log.error("%s", error.message)
            await _reject(send, 503, "the tokens can't be read; the bot's log has the reason")
            return
        if token is None:
            await self._unauthorized(scope, send, now_s, is_missing=not credentials)
            return
        if not self._scopes.intersection(token.scopes):
            needed = " or ".join(sorted(self._scopes))
            await _reject(send, 403, f"the token needs the scope {needed}", b'Bearer error="insufficient_scope"')
            return
        wait_s = self._calls.spend(token.id, now_s)
        if wait_s:
            await _reject(send, 429, "too many requests with this token", retry_after_s=wait_s)
            return
        handling = asyncio.ensure_future(self._app({**scope, TOKEN: token}, receive, send))
        try:
            while not handling.done():
                await asyncio.wait({handling}, timeout=self._verify_every_s)
                if not handling.done() and not await self._is_still_valid(credentials):
                    return
        finally:
            handling.cancel()
            await wait_uncancelled(handling)
        handling.result()

    async def _is_still_valid(self, credentials: list[str]) -> bool:
        with contextlib.suppress(GibilError):  # a file that can't be read for a moment
            return await asyncio.to_thread(self._authenticated, credentials) is not None
        return True

    def _authenticated(self, credentials: list[str]) -> AccessToken | None:
        if len(credentials) != 1 or len(credentials[0]) > _LONGEST_HEADER:
            return None
        scheme, _, token = credentials[0].partition(" ")
        return self._tokens.verify(token.strip()) if scheme.lower() == "bearer" else None

    async def _unauthorized(self, scope: Scope, send: Send, now_s: float, *, is_missing: bool) -> None:
        client = scope.get("client")
        wait_s = self._failures.spend(str(client[0]) if client else "", now_s)
        self._unlogged += 1
        if now_s - self._logged_at_s >= _LOG_EVERY_S:
            log.warning("rejected %d requests to %s without a valid token", self._unlogged, scope["path"])
            self._unlogged, self._logged_at_s = 0, now_s
        if wait_s:
            await _reject(send, 429, "too many requests without a valid token", retry_after_s=wait_s)
        elif is_missing:
            await _reject(send, 401, "send a token in the header Authorization: Bearer …", b"Bearer")
        else:
            await _reject(send, 401, "the token is not valid: it may be expired or revoked", b'Bearer error="invalid_token"')


class Transport:
    """The protocol library's HTTP transport, started by the first request and stopped by `close`."""

    def __init__(self, build: Callable[[], Server[Any]], *, stateless: bool, body_bytes: int) -> None:
        self._build = build
        self._stateless = stateless
        self._body_bytes = body_bytes
        self._serving: asyncio.Task[None] | None = None
        self._manager: asyncio.Future[StreamableHTTPSessionManager] | None = None
        self._closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._manager is None:
            self._manager = asyncio.get_running_loop().create_future()
            self._serving = asyncio.create_task(self._serve(self._manager))
        manager = await asyncio.shield(self._manager)
        from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
        from mcp.server.auth.provider import AccessToken as Principal

        token: AccessToken = scope[TOKEN]
        # A session can only be continued with the token that began it.
        principal = Principal(token="", client_id=token.id, scopes=list(token.scopes), subject=token.login)
        await manager.asgi_app({**scope, "user": AuthenticatedUser(principal)}, receive, send)

    async def _serve(self, started: asyncio.Future[StreamableHTTPSessionManager]) -> None:
        """Hold the manager open: its task group must be entered and left in one task."""
        try:
            manager = await asyncio.to_thread(self._created)
            async with manager.run():
                started.set_result(manager)
                await self._closing.wait()
        except BaseException as error:
            if not started.done():
                self._manager = None  # the next request tries again
                started.set_exception(error if isinstance(error, Exception) else RuntimeError("the server is stopping"))
                started.exception()
                return
            raise

    def _created(self) -> StreamableHTTPSessionManager:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        logging.getLogger("mcp.server").setLevel(logging.ERROR)  # it logs each invalid request
        return StreamableHTTPSessionManager(
            app=self._build(),
            json_response=self._stateless,
            stateless=self._stateless,
            max_request_body_size=self._body_bytes,
            max_sessions=MOST_SESSIONS,
        )

    async def close(self) -> None:
        self._closing.set()
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)


class PerToken:
    """A transport for each token, so that the sessions of one take no room from those of another."""

    def __init__(self, create: Callable[[], Transport]) -> None:
        self._create = create
        self._transports: dict[str, Transport] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        token: AccessToken = scope[TOKEN]
        transport = self._transports.get(token.id)
        if transport is None:
            transport = self._transports[token.id] = self._create()
        await transport(scope, receive, send)

    async def close(self) -> None:
        await asyncio.gather(*(transport.close() for transport in self._transports.values()))


@contextlib.asynccontextmanager
async def bot_endpoint(bot: Bot, address: str, port: int) -> AsyncIterator[ASGIApp]:
    """Yield the app for /mcp of a running bot, which listens on that address. Requests are independent: there is no session."""
    from gibil_bot.mcp_server.tool_calls import ToolCalls

    calls = ToolCalls()

    def build() -> Server[Any]:
        from gibil_bot.mcp_server.run_tools import BotRunTools
        from gibil_bot.mcp_server.server import create_server

        assert bot.person_runs is not None
        return create_server([BotRunTools(bot.person_runs)], calls, BOT_INSTRUCTIONS)

    transport = Transport(build, stateless=True, body_bytes=BODY_BYTES)

    async def only_post(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            # A GET would be a stream on which nothing is ever sent, and which takes a connection from the webhook.
            await _reject(send, 405, "requests are sent with POST: there are no streams", allow=b"POST")
        else:
            await transport(scope, receive, send)

    hosts, origins = _addresses(address, port, bot.settings.public_url)
    scopes = frozenset({"runs:read", "runs:write"})
    try:
        yield Guard(only_post, AccessTokens(bot.settings.data_dir), hosts, origins, scopes)
    finally:
        await transport.close()
        await calls.finish(5.0)


@contextlib.asynccontextmanager
async def machine_endpoint(settings: Settings, address: str, port: int) -> AsyncIterator[ASGIApp]:
    """Yield the app of `gibil mcp --http`, with the tools of `gibil mcp`. Leaving the block ends its streams."""
    from gibil_bot.mcp_server.server import machine_server

    async with machine_server(settings) as server:
        transport = PerToken(lambda: Transport(lambda: server, stateless=False, body_bytes=MACHINE_BODY_BYTES))
        hosts, origins = _addresses(address, port, "")
        guard = Guard(transport, AccessTokens(settings.data_dir), hosts, origins, frozenset({"machines"}))

        async def only_mcp(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["path"] != "/mcp":
                await _reject(send, 404, "MCP is served at /mcp")
            else:
                await guard(scope, receive, send)

        try:
            yield only_mcp
        finally:
            await transport.close()


def _addresses(address: str, port: int, public_url: str) -> tuple[list[str], list[str]]:
    """Return the values of Host and Origin that name this server."""
    hosts = [f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", f"[{address}]" if ":" in address else address)]
    origins = [f"http://{host}" for host in hosts]
    if public_url:
        parts = urlsplit(public_url)
        hosts.append(parts.netloc.rpartition("@")[2])
        origins.append(f"{parts.scheme}://{hosts[-1]}")
    return hosts, origins


async def _reject(
    send: Send,
    status: int,
    text: str,
    challenge: bytes | None = None,
    *,
    retry_after_s: float | None = None,
    allow: bytes | None = None,
) -> None:
    """Answer without reading the request's body, and close the connection."""
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    if challenge is not None:
        headers.append((b"www-authenticate", challenge))
    if allow is not None:
        headers.append((b"allow", allow))
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, round(retry_after_s + 0.5))))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
