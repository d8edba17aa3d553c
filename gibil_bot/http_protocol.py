"""The HTTP/1.1 protocol of the bot's servers: uvicorn's, with limits on everything that an unauthenticated client can cost.

uvicorn limits neither the size of a request's head nor the time for a head or a body, and closes no silent connection. A client
without a signature could exhaust the memory, the CPU or the file descriptors.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """What one server accepts. Sizes in bytes, times in seconds."""

    head_bytes: int = 64 * 1024
    """Request line and header fields of one request; above that 431."""
    header_fields: int = 128
    """Header fields of one request; above that 431. Each costs about two hundred bytes of memory, however short it is."""
    head_s: float = 10.0
    """From the opening of a connection, or the first byte of a later request, to the end of the head; then 408."""
    body_s: float = 30.0
    """From the end of the head to the end of the body; then 408."""
    free_body_bytes: int = 64 * 1024
    """This part of each body doesn't count as memory of large bodies, so that large bodies can't displace ordinary deliveries.
    """
    bodies_bytes: int = 256 * 1024 * 1024
    """Memory of all bodies being received or handled, excluding `free_body_bytes` of each; above that 503."""
    framing_bytes: int = 1024 * 1024
    """Chunk sizes, chunk extensions and trailers of one body; above that 400."""
    connections: int = 1024
    """Open connections. At the limit a new one replaces the one that the server has waited for longest, or gets 503."""
    replaceable_s: float = 0.1
    """How long the server must have waited for a connection before a new one may replace it. The lower it is, the more new
    connections a second an attacker needs to shut out all other clients: `connections` / `replaceable_s`.
    """
    pipelined: int = 16
    """Requests on one connection that may wait for the response to an earlier one."""
    unread_s: float = 30.0
    """How long a client may leave its responses unread."""
    linger_s: float = 2.0
    """How long the rest of a rejected request is read and discarded, so that the client can read its response."""


@dataclass(kw_only=True)
class ServerState:
    """What the connections of one server share."""

    limits: ServerLimits = field(default_factory=ServerLimits)
    rejected: Counter[int] = field(default_factory=Counter)
    """Requests that didn't reach the application, by status."""
    body_bytes: int = 0
    """Current memory of large bodies; see ServerLimits.bodies_bytes."""
    open: int = 0
    waiting: dict[LimitedProtocol, float] = field(default_factory=dict)
    """Connections that the server is waiting for → since when, the longest wait first."""

    def protocol(self, base: type[LimitedProtocol] | None = None) -> type[LimitedProtocol]:
        """Return the class of one connection, for `uvicorn.Config(http=…)`."""
        return type("BoundProtocol", (base or LimitedProtocol,), {"shared": self})

    def make_room(self, now_s: float) -> bool:
        """Close the connection that the server has waited for longest. Returns False if it isn't long enough for any."""
        for protocol, since_s in self.waiting.items():
            if now_s - since_s < self.limits.replaceable_s:
                return False
            protocol.drop()
            return True
        return False


class _Rejected(Exception):
    """Raised inside the parser's callbacks, to stop it."""


class _Transport:
    """A connection whose `close` lets the client read its response even before it has sent the whole request.

    Closing a socket with unread bytes resets it, and what was written to it is lost: RFC 9112, 9.6.
    """

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]) -> None:
        self._transport = transport
        self.write = transport.write
        self.close = close
        self.is_closing = is_closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    shared: ServerState

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = self.shared.limits
        self._raw: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._in_body = False
        self._is_waiting = False
        self._is_uncounted = False
        self._fields = 0
        self._head_bytes = 0
        self._framing_bytes = 0
        self._one_body_bytes = 0
        self._held_bytes = 0
        self._rejection = (400, "not an HTTP/1.1 request")
        self._discarding = False
        self._closed = False
        self._is_open = False

    # --- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._raw = transport
        super().connection_made(_Transport(transport, self._close, self._is_closing))  # type: ignore[arg-type]
        shared = self.shared
        shared.open += 1
        self._is_open = True
        if shared.open > self._limits.connections and not shared.make_room(self.loop.time()):
            self._write(503, "too many connections: try again in a few seconds")
            self._discarding = True
            transport.close()  # at once: lingering would exceed the limit
            return
        self._wait(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._forget_body()
        self.resume_writing()
        if self._is_open:
            self._is_open = False
            self.shared.open -= 1
        super().connection_lost(exc)

    def drop(self) -> None:
        """Close at once, without a response."""
        self._discarding = True
        self._stop_waiting()
        assert self._raw is not None
        self._raw.abort()

    def eof_received(self) -> None:
        if self._discarding:
            assert self._raw is not None
            self._raw.close()

    def _is_closing(self) -> bool:
        return self._closed or self._raw is None or self._raw.is_closing()

    def _close(self) -> None:
        """Close, replacing the transport's own `close`: the client may still be sending."""
        if self._is_closing():
            return
        assert self._raw is not None
        self._closed = True
        if not self._in_body and not (self._in_head and self._head_bytes):
            self._raw.close()
            return
        self._discarding = True
        self._stop_waiting()
        self._forget_body()
        try:
            self._raw.write_eof()
        except (OSError, RuntimeError):  # the client is gone
            self._raw.abort()
            return
        self._raw.resume_reading()
        self._wait(self._limits.linger_s)

    # --- what the client sends

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self._unset_keepalive_if_required()
        while self._in_head and self._head_bytes + len(data) > self._limits.head_bytes:
            allowed = self._limits.head_bytes - self._head_bytes
            self._feed(data[:allowed])
            if self._discarding:
                return
            if self._in_head and self._head_bytes >= self._limits.head_bytes:  # and it isn't the head of a later request
                self._reject(431, f"a request's head has at most {self._limits.head_bytes // 1024} KiB")
                return
            data = data[allowed:]
        self._feed(data)
        if self._discarding:
            return
        if self._in_body:
            if self._framing_bytes > self._limits.framing_bytes:
                self._reject(400, "the body has too much chunk framing")
            elif len(self.headers) > self._fields + self._limits.header_fields:
                self._reject(400, f"a body has at most {self._limits.header_fields} trailers")
            else:
                self._wait(self._limits.body_s)
        elif self._head_bytes and not self.flow.read_paused:
            if self.headers is not None and len(self.headers) > self._limits.header_fields:
                self._reject(431, f"a request has at most {self._limits.header_fields} header fields")
            else:
                self._wait(self._limits.head_s)
        elif self._is_waiting:
            self._stop_waiting()

    def _feed(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        elif self._in_body:
            self._framing_bytes += len(data)  # `on_body` subtracts its part
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no other protocol is supported; RFC 9110, 7.8 allows a server to ignore the offer
        except httptools.HttpParserError:
            self._reject(*self._rejection)

    def on_headers_complete(self) -> None:
        if self.pipeline and len(self.pipeline) >= self._limits.pipelined:
            self.reject_head(503, "too many requests wait on this connection")
        self._fields = len(self.headers)
        if self._fields > self._limits.header_fields:
            self.reject_head(431, f"a request has at most {self._limits.header_fields} header fields")
        if self._is_uncounted:
            self._is_uncounted = False
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self._limits.head_bytes:
                self.reject_head(431, f"a request's head has at most {self._limits.head_bytes // 1024} KiB")
        super().on_headers_complete()
        self._in_head, self._in_body = False, True
        self._head_bytes = self._framing_bytes = self._one_body_bytes = 0
        if self._is_waiting:
            self._stop_waiting()

    def reject_head(self, status: int, text: str) -> NoReturn:
        """Reject the request whose head is complete. Only for callbacks of the parser."""
        self._rejection = (status, text)
        raise _Rejected

    def on_body(self, body: bytes) -> None:
        size = len(body)
        self._framing_bytes -= size
        if not self.cycle.response_complete:
            before, free = self._one_body_bytes, self._limits.free_body_bytes
            self._one_body_bytes = before + size
            if before + size > free:
                counted = min(size, before + size - free)
                if self.shared.body_bytes + counted > self._limits.bodies_bytes:
                    self._rejection = (503, "too many large bodies at once: try again in a few seconds")
                    raise _Rejected
                self.shared.body_bytes += counted
                self._held_bytes += counted
        super().on_body(body)

    def on_message_begin(self) -> None:
        if not self._head_bytes:  # follows another request in the same data, so its bytes weren't counted
            self._head_bytes, self._is_uncounted = 1, True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._in_head, self._in_body = True, False
        self._head_bytes = 0
        if self._is_waiting:
            self._stop_waiting()
        if len(self.headers) > self._fields:
            del self.headers[self._fields :]  # trailers aren't header fields
        super().on_message_complete()

    # --- what the client gets

    def pause_writing(self) -> None:
        """Limit how long memory and a connection are held for a client that doesn't read its responses."""
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self._limits.unread_s, self.drop)

    def resume_writing(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        if self._is_open and not self.pipeline:
            if self._held_bytes:
                self._forget_body()
            if not self._is_waiting:  # for its next request; uvicorn limits the time
                self._is_waiting = True
                self.shared.waiting[self] = self.loop.time()
        super().on_response_complete()

    def _reject(self, status: int, text: str) -> None:
        """Respond to the request being received, unless an earlier one waits for its response; read nothing more."""
        pending = self.cycle if self.cycle is not None and not self.cycle.response_complete else None
        if pending is not None and self._in_body and not self.pipeline and not pending.response_started:
            # The application is waiting for this body, and is notified that the client disconnected.
            pending.disconnected = True
            pending.message_event.set()
        elif pending is not None:
            # Responses are sent in order, and then the connection is closed.
            self.shared.rejected[status] += 1
            self._discarding = True
            self._stop_waiting()
            if self._in_body:
                self.drop()
            else:
                pending.keep_alive = False
            return
        elif self._in_body:  # answered before its body was read
            self._close()
            return
        self._answer(status, text)

    def _answer(self, status: int, text: str) -> None:
        self._write(status, text)
        self._head_bytes = max(1, self._head_bytes)  # read and discard what the client is still sending
        self._close()

    def _write(self, status: int, text: str) -> None:
        self.shared.rejected[status] += 1
        body = f"{text}\n".encode()
        assert self._raw is not None
        self._raw.write(
            b"%scontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s"
            % (STATUS_LINE[status], len(body), body)
        )

    # --- time

    def _wait(self, seconds: float) -> None:
        """Limit the wait for the rest of a request, counted from the first call."""
        if self._timer is None:
            self._timer = self.loop.call_later(seconds, self._too_late)
            self.shared.waiting.pop(self, None)  # moves it to the end
            self.shared.waiting[self] = self.loop.time()
            self._is_waiting = True

    def _stop_waiting(self) -> None:
        self._is_waiting = False
        self.shared.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._stop_waiting()
        if self._closed:
            self.drop()
        elif self._in_head and not self._head_bytes:
            assert self._raw is not None
            self._raw.close()  # no request was started
        elif self._in_head:
            self._reject(408, f"a request's head must arrive within {self._limits.head_s:g} s")
        else:
            self._reject(408, f"a request's body must arrive within {self._limits.body_s:g} s")

    def _forget_body(self) -> None:
        self.shared.body_bytes -= self._held_bytes
        self._held_bytes = 0

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: any client can request an upgrade, and log lines fill the disk."""
