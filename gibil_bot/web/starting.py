"""What a bot that starts answers: 503, so that GitHub and load balancers don't wait for it.

It listens from its first moment, because most starts take less than a second: a delivery that arrives in between is answered as
soon as the bot can. Only if the start takes longer, because the bot waits for its database, requests are answered 503. GitHub
records such a delivery as failed, and the reaper asks for it again. Not to listen would be no better for GitHub, and a load
balancer would usually pass the delivery on to another bot that misses the same database.
"""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send

HELD_S = 1.0
"""How long a request waits for the start. Health checks have limits of a few seconds, and GitHub one of 10."""
_WAITS = "the bot is starting, and waits for its database or for another bot; its log has the reason"


class Starting:
    """An ASGI application that passes requests on once `ready` was called."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None
        self._is_ready = asyncio.Event()
        self.lost_deliveries = 0
        """How many requests to /webhook were answered 503."""

    def ready(self, app: ASGIApp) -> None:
        self._app = app
        self._is_ready.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._app is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HELD_S):
                    await self._is_ready.wait()
        if self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._unavailable(scope, send)

    async def _unavailable(self, scope: Scope, send: Send) -> None:
        if scope["path"] == "/webhook":
            self.lost_deliveries += 1
            kind, body = b"text/plain; charset=utf-8", f"{_WAITS}; it will ask GitHub for this delivery\n".encode()
        else:
            kind, body = b"application/json", msgspec.json.encode({"status": "starting", "error": _WAITS})
        headers = [
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            (b"retry-after", b"5"),
            (b"connection", b"close"),  # the body of a delivery isn't read
        ]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})
