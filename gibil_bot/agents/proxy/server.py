"""The proxy's server, on a free port of loopback, in the bot's event loop.

The port is open to every process of the host, and through a connection's forward to every process of a machine. A client
without the token of a task in progress gets nothing, and costs little.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import uvicorn
from uvicorn.server import ServerState as UvicornState

from gibil_bot.agents.budget import TaskBudget
from gibil_bot.agents.proxy.app import OWNER, PARALLEL, Patience, ProxyApp
from gibil_bot.agents.proxy.protocols import PROTOCOLS
from gibil_bot.agents.proxy.protocols.base import Bounds
from gibil_bot.agents.proxy.tokens import Access, AccessSummary, OpenAccess, Tokens, new_token
from gibil_bot.agents.proxy.upstream import Upstream, Vendors
from gibil_bot.errors import UsageError
from gibil_bot.http_protocol import LimitedProtocol, ServerLimits, ServerState
from gibil_bot.operator_secrets import Secret
from gibil_bot.retry import RetryPolicy

log = logging.getLogger("gibil.model-proxy")

MAX_OUTPUT_TOKENS = 32_000
"""Of one call: what Claude Code asks for."""
_RECORDS_S = 10.0
"""How long the end of a task may wait for its last records."""
_KEEP_ALIVE_S = 120.0
"""Agents' programs reuse connections after minutes; one that is closed meanwhile costs them an attempt."""
_LIMITS = ServerLimits(
    connections=512,
    body_s=180.0,  # megabytes over SSH
    unread_s=60.0,
    bodies_bytes=256 * 1024 * 1024,
)


class _ProxyConnection(LimitedProtocol):
    """A connection that the application can close, which ASGI doesn't support."""

    _cut_timer: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"gibil.connection": self}  # type: ignore[dict-item]

    def cut(self) -> None:
        """Close it after what was sent. The client sees that the answer has no end."""
        self._end_request()
        assert self._raw is not None
        self._raw.close()
        self._cut_timer = self.loop.call_later(self._limits.unread_s, self._raw.abort)

    def drop(self) -> None:
        """Close it at once."""
        self._end_request()
        super().drop()

    def _end_request(self) -> None:
        self._discarding = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # uvicorn doesn't report the end of a connection to a request before the last one.
            self.reject_head(503, "send the next request after the answer")
        super().on_headers_complete()


class ModelProxy:
    """Holds the keys of models, and lends them to tasks: `async with ModelProxy(upstreams) as proxy`."""

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        *,
        patience: Patience | None = None,
        limits: ServerLimits = _LIMITS,
    ) -> None:
        self._upstreams = {each.name: each for each in upstreams if each.key}
        self._patience = patience or Patience()
        self._tokens = Tokens()
        retries = RetryPolicy(
            attempts=None,
            first_wait_s=self._patience.first_retry_s,
            longest_wait_s=20.0,
            jitter=(0.8, 1.2),
            within_s=self._patience.retry_s,
        )
        self._vendors = Vendors(idle_s=self._patience.idle_s, whole_s=self._patience.whole_s, retries=retries)
        self._http = ServerState(limits=limits)
        self._state = UvicornState()
        self._server: asyncio.Server | None = None
        self.port = 0
        """On 127.0.0.1."""

    # --- the server

    async def __aenter__(self) -> Self:
        await self._vendors.open()
        config = uvicorn.Config(
            ProxyApp(self._tokens, self._vendors, self._patience),
            http=self._http.protocol(_ProxyConnection),
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(_KEEP_ALIVE_S),
        )
        config.load()
        self._config = config
        try:
            self._server = await self._listen(None)
        except BaseException:
            await self._vendors.close()
            raise
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def _listen(self, access: OpenAccess | None) -> asyncio.Server:
        """Listen on a free port, for one task or for all."""
        protocol: Any = self._config.http_protocol_class
        # asyncio disables Nagle's algorithm only for sockets whose protocol is TCP.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.bind(("127.0.0.1", 0))
            return await asyncio.get_running_loop().create_server(
                lambda: protocol(config=self._config, server_state=self._state, app_state={OWNER: access}),
                sock=listener,
                backlog=512,
            )
        except BaseException:
            listener.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        await asyncio.gather(*(self.close(access.token) for access in self._tokens.all()))
        for connection in list(self._state.connections):
            connection.drop()  # type: ignore[union-attr]
        if self._state.tasks:
            _, late = await asyncio.wait(self._state.tasks, timeout=1.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self._vendors.close()

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return self._http.open

    # --- tasks

    def has_key(self, provider: str) -> bool:
        """Return whether the operator has set a key of this provider."""
        return provider in self._upstreams

    def require_key(self, provider: str) -> None:
        """Raises UsageError if there is no key. To be called before a machine is created."""
        if not self.has_key(provider):
            name = f"GIBIL_MODEL_KEY_{provider.upper()}"
            raise UsageError(f"this bot has no key for {provider!r}: the operator can set {name}")

    def open(
        self,
        *,
        run_id: str,
        task: int,
        protocol: str,
        provider: str,
        models: Sequence[str],
        budget: TaskBudget,
        attempt: int = 0,
        max_output_tokens: int = MAX_OUTPUT_TOKENS,
        token: Secret | None = None,
    ) -> Access:
        """Let a task use the models that match one of the patterns, until `close`. Raises UsageError.

        `token`: of `token_from`, if another process may continue the task; None is a random one.
        """
        self.require_key(provider)
        if protocol not in PROTOCOLS:
            raise UsageError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
        upstream = self._upstreams[provider]
        access = OpenAccess(
            run_id=run_id,
            task=task,
            attempt=attempt,
            protocol=PROTOCOLS[protocol],
            upstream=upstream,
            models=tuple(models),
            budget=budget,
            bounds=Bounds(max_output_tokens=max_output_tokens, is_vendor=upstream.is_vendor),
            token=token or new_token(),
            slots=asyncio.Semaphore(PARALLEL),
        )
        self._tokens.add(access)
        return Access(token=access.token)

    async def listen(self, token: Secret) -> int:
        """Return a port of 127.0.0.1 that takes no other token, until `close`: no machine can use the token of another task."""
        access = self._tokens.find([token.reveal()])
        if access is None:
            raise UsageError("the task's access to its model was closed already")
        if access.listener is None:
            access.listener = await self._listen(access)
        return int(access.listener.sockets[0].getsockname()[1])

    def summary(self, token: Secret) -> AccessSummary:
        """Return what a task's use was until now."""
        access = self._tokens.find([token.reveal()])
        return AccessSummary() if access is None else access.summary()

    async def close(self, token: Secret) -> AccessSummary:
        """End a task's use: its token is dead, open calls are cut and recorded. Returns what it was used for."""
        access = self._tokens.remove(token)
        if access is None:
            return AccessSummary()
        access.closed.set()
        if access.listener is not None:
            access.listener.close()
        for connection in list(access.handled.values()):
            connection.drop()
        if access.handled:
            _, late = await asyncio.wait(set(access.handled), timeout=self._patience.drain_s + _RECORDS_S)
            for each in late:
                each.cancel()
        return access.summary()
