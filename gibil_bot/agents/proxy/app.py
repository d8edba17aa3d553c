"""The proxy as an ASGI application: checks a request of a machine, passes it on with the real key, and counts what it used.

It answers a few paths by itself, passes on exactly those of `protocols`, and nothing else. Bodies are parsed once, and
what was parsed and checked is what is sent: names that occur twice can't mean one thing here and another at the vendor.
Answers are passed on byte for byte as they arrive. Nothing of a body gets into a log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

from gibil_bot.agent_task import ModelCall, Usage
from gibil_bot.agents.budget import Reservation
from gibil_bot.agents.proxy.protocols import PROTOCOLS
from gibil_bot.agents.proxy.protocols.base import (
    Bounds,
    Counts,
    Endpoint,
    Json,
    ModelProtocol,
    Prepared,
    Rejected,
    Tap,
    names,
    shown,
)
from gibil_bot.agents.proxy.tokens import Connection, OpenAccess, Tokens
from gibil_bot.agents.proxy.upstream import Answer, Cut, Progress, Unanswered, Vendors, error_message, is_out_of_money
from gibil_bot.cancellation import uncancelled, wait_uncancelled
from gibil_bot.clock import now
from gibil_bot.errors import BudgetExceeded, GibilError, UnknownModelPrice

log = logging.getLogger("gibil.model-proxy")

BODY_BYTES = 32 * 1024 * 1024
"""Of one request. Anthropic accepts no more: https://platform.claude.com/docs/en/api/errors."""
TASK_BODY_BYTES = 48 * 1024 * 1024
"""Of all requests of one task that are handled at a time."""
PARALLEL = 4
"""Calls of one task at a time. Further ones wait."""
_MOST_WAITING = 16
_WAIT_S = 60.0
_CALL_S = 1800.0
"""The longest call."""
_FASTEST_PER_S = 200
"""How many tokens a model writes in a second. Cheaper models than those that cost a budget are faster."""
_STRUCTURE = 500_000
"""The most objects, lists and members of a body, weighted: each takes up to a hundred times its size in memory, and a
microsecond of the event loop. A million tokens of code have half as many of these characters.
"""
_NOTICED_S, _REST = 0.005, 4.0
"""After the bodies of a task blocked the event loop for longer than this, others have it for that multiple of the time."""
_MOST_SILENCES = 2
"""Streams in a row that ended because the vendor was silent. Programs would try again for an hour."""
_MOST_COUNTED = 2000
"""Calls of one task that count tokens. They are free, so no budget limits them, but they use up the key's limit per minute."""
_MOST_REFUSALS_STORED = 50
"""Of one task. An agent that continues after a rejection isn't worth a growing database."""
_PASSED_HEADERS = frozenset(
    {b"content-type", b"content-encoding", b"content-length", b"retry-after", b"request-id", b"x-request-id", b"cache-control"}
)
_OF_THE_BODY = frozenset({b"content-length", b"content-encoding"})
_PASSED_PREFIXES = (b"anthropic-ratelimit-", b"x-ratelimit-")
_ONCE = names("anthropic-beta anthropic-version authorization content-encoding content-type x-api-key x-goog-api-key")
OWNER = "gibil.owner"
"""Key of a connection's state: the access whose port it came to; None: the port of all."""
_CLOSE = (b"connection", b"close")  # the rest of the body isn't read
_NO_RETRY = (b"x-should-retry", b"false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the proxy waits, in seconds."""

    idle_s: float = 150.0
    """For the next byte of a stream. Agents' programs wait for five minutes, and then try again."""
    whole_s: float = 600.0
    """For an answer that isn't streamed."""
    retry_s: float = 60.0
    """For a vendor that is overloaded or can't be reached."""
    first_retry_s: float = 1.0
    drain_s: float = 5.0
    """For the counts at the end of an answer whose client has left."""


class _Left(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(frozen=True, slots=True)
class _Refusal(Exception):
    """The proxy's own error answer."""

    status: int
    message: str
    closes: bool = False
    """The body wasn't read."""
    code: str = ""


class ProxyApp:
    """The application. Its server adds the extension `gibil.connection` to each scope."""

    def __init__(self, tokens: Tokens, vendors: Vendors, patience: Patience) -> None:
        self._tokens, self._vendors, self._patience = tokens, vendors, patience

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["raw_path"].decode("latin-1")
        headers, occurs_twice = _headers(scope)
        if path == "/api/hello" and method in ("HEAD", "GET"):  # Claude Code looks whether the host answers
            await _send(send, 200, b"", b"text/plain")
            return
        found = _find(path)
        if found is None and path != "/v1/models":
            await _refuse(send, _protocol_of_errors(path), _Refusal(404, "not a path of the model API", closes=True))
            return
        protocol = found[0] if found is not None else PROTOCOLS["chat"]
        access = self._tokens.find(_presented(headers))
        owner: OpenAccess | None = scope["state"][OWNER]
        try:
            if occurs_twice:
                raise _Refusal(400, "a header occurs twice", closes=True)
            if "upgrade" in headers:
                raise _Refusal(426, "WebSockets aren't supported: use HTTP", closes=True)
            if owner is not None and access is not owner:
                access = owner
                refusal = await self._rejected(owner, "", Rejected("not the token of this task", status=403))
                raise replace(refusal, closes=True)
            if access is None:
                raise _Refusal(403, "not the token of a task in progress", closes=True)
            if found is None:
                await self._models(scope, access, send)
                return
            if access.protocol is not protocol:
                raise _Refusal(404, f"this task may use the protocol {access.protocol.name!r} only", closes=True)
            if method != "POST":
                raise _Refusal(405, "only POST is allowed", closes=True)
            _check_form(headers)
            await self._in_slot(_Request(scope, receive, send, headers), access, found[1])
        except _Refusal as refusal:
            if access is not None:
                access.refused += 1
            await _refuse(send, protocol, refusal)
        except _Left:
            pass

    async def _models(self, scope: Scope, access: OpenAccess, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise _Refusal(405, "only GET is allowed", closes=True)
        known = [name for name in access.models if not set(name) & set("*?")]
        listed = [{"id": name, "object": "model", "type": "model", "display_name": name, "owned_by": "gibil"} for name in known]
        await _send(send, 200, msgspec.json.encode({"object": "list", "data": listed, "models": [], "has_more": False}))

    async def _in_slot(self, request: _Request, access: OpenAccess, endpoint: Endpoint) -> None:
        """Wait for one of the task's slots. Bodies are read afterwards, so their number is limited, too."""
        if access.waiting >= _MOST_WAITING:
            raise _Refusal(429, f"more than {_MOST_WAITING} calls of this task are waiting", closes=True)
        task = asyncio.current_task()
        assert task is not None
        access.handled[task] = request.connection
        access.waiting += 1
        try:
            try:
                async with asyncio.timeout(_WAIT_S):
                    await access.slots.acquire()
            except TimeoutError:
                raise _Refusal(429, f"{PARALLEL} calls of this task are in progress already", closes=True) from None
            finally:
                access.waiting -= 1
            held = 0
            try:
                body = await _read(request, access)
                held = len(body)
                prepared = await self._prepare(request, access, endpoint, body)
                del body
                await self._call(request, access, endpoint, prepared)
            finally:
                access.body_bytes -= held
                access.slots.release()
        finally:
            del access.handled[task]

    async def _prepare(self, request: _Request, access: OpenAccess, endpoint: Endpoint, body: bytes) -> Prepared:
        """Return what is sent for a body. Raises _Refusal, whose record is stored."""
        model = endpoint.model
        try:
            prepared = await self._checked(access, endpoint, request.query, body, access.bounds)
            model = prepared.model
            if not access.allows(model):
                raise Rejected(f"the model {shown(model)} isn't allowed in this task; allowed: {', '.join(access.models)}")
            if access.silences >= _MOST_SILENCES:
                raise Rejected(f"the model's vendor was silent {_MOST_SILENCES} times", status=access.protocol.refused_status)
        except Rejected as rejected:
            raise await self._rejected(access, model, rejected) from None
        return prepared

    async def _checked(self, access: OpenAccess, endpoint: Endpoint, query: str, body: bytes, bounds: Bounds) -> Prepared:
        """Parse and check a body, one of the task at a time. Raises Rejected."""
        async with access.parsing:
            started_s = time.perf_counter()
            try:
                return access.protocol.prepare(endpoint, query, _parse(body), bounds)
            finally:
                blocked_s = time.perf_counter() - started_s
                if blocked_s > _NOTICED_S:
                    await asyncio.sleep(_REST * blocked_s)

    async def _call(self, request: _Request, access: OpenAccess, endpoint: Endpoint, prepared: Prepared) -> None:
        call = _Call(access, prepared, request, self._vendors)
        gone = asyncio.ensure_future(_wait_until_gone(request.receive))
        try:
            if prepared.is_paid:
                reserved = await self._reserve(access, call, gone)
                if reserved.max_output_tokens < prepared.max_output_tokens:
                    # What would have been sent is read again: its objects would take memory during the wait for other calls.
                    bounds = replace(access.bounds, max_output_tokens=reserved.max_output_tokens)
                    try:
                        call.prepared = await self._checked(access, endpoint, request.query, prepared.body, bounds)
                    except BaseException:
                        await uncancelled(call.release())
                        raise
            else:
                access.counted += 1
                if access.counted > _MOST_COUNTED:
                    raise Rejected(
                        f"this task has counted tokens {_MOST_COUNTED:,} times", status=access.protocol.refused_status
                    )
            await self._run(call, gone)
        except Rejected as rejected:
            raise await self._rejected(access, prepared.model, rejected) from None
        finally:
            gone.cancel()
            await wait_uncancelled(gone)

    async def _run(self, call: _Call, gone: asyncio.Future[None]) -> None:
        """Run a call to its end. If the client leaves, its end is awaited for some seconds, since it has the counts."""
        task = asyncio.create_task(call.run())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                call.has_left = True
                await asyncio.wait({task}, timeout=self._patience.drain_s)
        finally:
            call.has_left = True
            task.cancel()
            await wait_uncancelled(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error

    async def _reserve(self, access: OpenAccess, call: _Call, gone: asyncio.Future[None]) -> Reservation:
        """Reserve the price of a call, which may wait for other calls. Raises _Refusal, whose record is stored; _Left."""
        prepared = call.prepared
        reserving = asyncio.ensure_future(
            access.budget.reserve(
                prepared.model,
                input_tokens=prepared.input_tokens,
                max_output_tokens=prepared.max_output_tokens,
                least_output_tokens=access.protocol.least_output_tokens,
            )
        )
        either: set[asyncio.Future[Any]] = {reserving, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            reserving.cancel()
            await wait_uncancelled(reserving)
            if not reserving.cancelled() and reserving.exception() is None:
                call.reservation = reserving.result()
                if gone.done():
                    await uncancelled(call.release())
        if gone.done():
            raise _Left
        error = reserving.exception()
        if isinstance(error, BudgetExceeded):
            status = access.protocol.refused_status
            access.limit = access.limit or error.message
            await self._record_refusal(access, prepared.model, status, error.message)
            raise _Refusal(status, error.message, code="budget_exceeded")
        if isinstance(error, UnknownModelPrice):
            raise await self._rejected(access, prepared.model, Rejected(error.message))
        if isinstance(error, GibilError):
            raise self._unchecked(access, error)
        return reserving.result()

    async def _rejected(self, access: OpenAccess, model: str, rejected: Rejected) -> _Refusal:
        """Store the record of a rejected call; return its answer."""
        if access.silences < _MOST_SILENCES:  # otherwise the silence is the reason
            access.ended(rejection=rejected.message)
        await self._record_refusal(access, model, rejected.status, rejected.message)
        return _Refusal(rejected.status, rejected.message)

    def _unchecked(self, access: OpenAccess, error: GibilError) -> _Refusal:
        log.error("run %s: the budget can't be checked: %s", access.run_id, error.message)
        reason = "the budget can't be checked; the operator's log has the reason"
        access.ended(rejection=reason)
        return _Refusal(access.protocol.refused_status, reason)

    async def _record_refusal(self, access: OpenAccess, model: str, status: int, message: str) -> None:
        if access.refused >= _MOST_REFUSALS_STORED:
            return
        record = ModelCall(
            run_id=access.run_id,
            task=access.task,
            attempt=access.attempt,
            started_at=now(),
            protocol=access.protocol.name,
            model=model[:200],
            status=status,
            refused=message,
        )
        try:
            await uncancelled(access.budget.refused(record))
        except GibilError as error:
            log.error("run %s: a rejected call can't be recorded: %s", access.run_id, error.message)


@dataclass(frozen=True, slots=True)
class _Request:
    """A request of a machine and the ways to answer it."""

    scope: Scope
    receive: Receive
    send: Send
    headers: Mapping[str, str]

    @property
    def query(self) -> str:
        return str(self.scope["query_string"], "latin-1")

    @property
    def connection(self) -> Connection:
        connection: Connection = self.scope["extensions"]["gibil.connection"]
        return connection


class _Call:
    """One call: sent to the vendor, passed back, and recorded."""

    def __init__(self, access: OpenAccess, prepared: Prepared, request: _Request, vendors: Vendors) -> None:
        self.prepared = prepared
        self.reservation: Reservation | None = None
        self.has_left = False
        """The client closed its connection: nothing more is sent to it."""
        self._access, self._request, self._vendors = access, request, vendors
        self._progress = Progress()
        self._status = 0
        self._request_id = ""
        self._first_byte_s: float | None = None
        self._tap: Tap | None = None
        self._is_complete = False

    async def run(self) -> None:
        started_at, started_s = now(), time.monotonic()
        try:
            if not self._access.closed.is_set():
                async with asyncio.timeout(_CALL_S):
                    await self._pass(started_s)
        except TimeoutError:
            self._fail(f"a call of the model took longer than {_CALL_S:g} s")
            self._cut()
        finally:
            await uncancelled(self._record(started_at, time.monotonic() - started_s))

    async def release(self) -> None:
        """End the reservation of a call that wasn't sent."""
        await self._record(now(), 0.0)

    async def _pass(self, started_s: float) -> None:
        access, prepared = self._access, self.prepared
        headers = access.protocol.headers(self._request.headers)
        try:
            answer = await self._vendors.send(access.upstream, access.protocol, prepared, headers, self._progress)
        except Unanswered as error:
            self._fail(error.message)
            await self._answer_error(error.status, error.message)
            return
        try:
            self._request_id = answer.headers.get("request-id") or answer.headers.get("x-request-id") or ""
            if answer.status == 200:
                self._first_byte_s = time.monotonic() - started_s
                await self._pass_answer(answer)
            else:
                await self._pass_error(answer)
        finally:
            await answer.close()

    async def _pass_answer(self, answer: Answer) -> None:
        streams = answer.headers.get("content-type", "").startswith("text/event-stream")
        self._tap = tap = Tap(self._access.protocol, streams=streams)
        await self._start(200, _passed(answer))
        try:
            async with contextlib.aclosing(answer.chunks()) as chunks:
                async for chunk in chunks:
                    tap.feed(chunk)
                    await self._write(chunk)
        except Cut as cut:
            self._fail(cut.message)
            if cut.is_silence and streams:
                separator = b"" if tap.is_between_events else b"\n\n"
                await self._write(separator + self._access.protocol.error_event(f"gibil: {cut.message}"))
            if cut.is_silence:
                self._access.silences += 1
            if cut.is_silence and streams and self._access.protocol.ends_with_error:
                await self._write(b"", more=False)
            self._cut()
            return
        tap.end()
        self._is_complete = True
        self._access.silences = 0
        self._access.ended()
        await self._write(b"", more=False)

    async def _pass_error(self, answer: Answer) -> None:
        access, status = self._access, answer.status
        vendor = access.upstream.name
        if status in (401, 403) or is_out_of_money(answer):
            # Programs would repeat these for minutes, and the vendor's text may contain a part of the key.
            what = "has no credit" if is_out_of_money(answer) else "was rejected"
            log.error("run %s: the operator's key for %s %s (%d)", access.run_id, vendor, what, status)
            self._fail(f"the operator's key for {vendor} {what} ({status})", status)
            await self._answer_error(access.protocol.refused_status, f"the operator's key for {vendor} {what}")
            return
        message = error_message(answer)
        self._fail(f"{vendor} answered {status}{f': {shown(message)}' if message else ''}", status)
        headers = [(name, value) for name, value in _passed(answer) if name not in _OF_THE_BODY]
        await self._start(status, [*headers, (b"content-length", b"%d" % len(answer.first))])
        await self._write(answer.first, more=False)

    def _fail(self, problem: str, vendor_status: int | None = None) -> None:
        self._access.failed += 1
        self._access.ended(problem=problem, vendor_status=vendor_status)

    # --- to the client

    async def _answer_error(self, status: int, message: str) -> None:
        body = msgspec.json.encode(self._access.protocol.error(status, f"gibil: {message}"))
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), _NO_RETRY]
        await self._start(status, headers)
        await self._write(body, more=False)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        if not self.has_left:
            self._status = status
            await self._request.send({"type": "http.response.start", "status": status, "headers": headers})

    async def _write(self, body: bytes, *, more: bool = True) -> None:
        if not self.has_left and (body or not more):
            await self._request.send({"type": "http.response.body", "body": body, "more_body": more})

    def _cut(self) -> None:
        """Close the connection after what was sent, without the end of the body: a clean end would mean a complete answer."""
        if not self.has_left:
            self.has_left = True
            self._request.connection.cut()

    # --- to the budget

    async def _record(self, started_at: datetime, duration_s: float) -> None:
        access, costs = self._access, self._progress.may_cost
        if self.reservation is None:
            return
        usage = self._usage(duration_s) if costs else Usage()
        access.answered += self._is_complete or (self._tap is not None and self._tap.counts.is_final)
        record = ModelCall(
            run_id=access.run_id,
            task=access.task,
            attempt=access.attempt,
            started_at=started_at,
            protocol=access.protocol.name,
            model=self.prepared.model,
            status=self._status,
            usage=usage,
            first_byte_s=self._first_byte_s,
            duration_s=duration_s,
            retries=self._progress.retries,
            request_id=self._request_id[:200],
        )
        access.usage += usage
        try:
            if costs:
                await access.budget.book(self.reservation, record)
            else:
                await access.budget.release(self.reservation, record)
        except GibilError as error:
            log.error("run %s: a call can't be recorded: %s", access.run_id, error.message)

    def _usage(self, duration_s: float) -> Usage:
        """Return what the call used. Without the vendor's last counts, an answer that wasn't read to its end counts as what it
        may have become: a client that leaves early would otherwise use a model for nothing.
        """
        prepared = self.prepared
        counts = self._tap.counts if self._tap is not None else Counts()
        if self._is_complete:
            return counts.usage(input_tokens=prepared.input_tokens * 3 // 4)  # the estimate before a call is one of the most
        # Thoughts aren't sent, or only their summary. A vendor ends a stream with its connection, and completes other answers.
        unseen = math.ceil(duration_s * _FASTEST_PER_S) if prepared.streams else prepared.max_output_tokens
        return counts.usage(input_tokens=prepared.input_tokens, least_output_tokens=min(unseen, prepared.max_output_tokens))


# --- requests


def _find(path: str) -> tuple[ModelProtocol, Endpoint] | None:
    for protocol in PROTOCOLS.values():
        if (endpoint := protocol.endpoint(path)) is not None:
            return protocol, endpoint
    return None


def _protocol_of_errors(path: str) -> ModelProtocol:
    """Return the protocol whose form an error for an unknown path has."""
    likely = "anthropic" if path.startswith("/v1/messages") else "gemini" if path.startswith("/v1beta/") else "chat"
    return PROTOCOLS[likely]


def _headers(scope: Scope) -> tuple[dict[str, str], bool]:
    """Return the header fields, and whether one that matters occurs twice."""
    found: dict[str, str] = {}
    twice = False
    for raw_name, value in scope["headers"]:
        name = raw_name.decode("latin-1")
        twice = twice or (name in found and name in _ONCE)
        found[name] = value.decode("latin-1")
    return found, twice


def _presented(headers: Mapping[str, str]) -> list[str]:
    """Return the tokens that a request shows."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" else ""
    return [token for token in (headers.get("x-api-key"), headers.get("x-goog-api-key"), bearer) if token]


def _check_form(headers: Mapping[str, str]) -> None:
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise _Refusal(415, "compressed bodies aren't supported", closes=True)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise _Refusal(415, "the content type must be application/json", closes=True)
    length = headers.get("content-length", "0").lstrip("0") or "0"
    if len(length) > 12 or (length.isascii() and length.isdigit() and int(length) > BODY_BYTES):
        raise _too_large()


def _too_large() -> _Refusal:
    return _Refusal(413, f"a request has at most {BODY_BYTES // 1024**2} MiB", closes=True)


async def _read(request: _Request, access: OpenAccess) -> bytes:
    """Return the body, which counts as the task's memory until the caller releases it. Raises _Left, _Refusal."""
    chunks: list[bytes] = []
    size = 0
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise _Left
            chunk = message.get("body", b"")
            size += len(chunk)
            access.body_bytes += len(chunk)
            chunks.append(chunk)
            if size > BODY_BYTES:
                raise _too_large()
            if access.body_bytes > TASK_BODY_BYTES:
                raise _Refusal(
                    413, f"the requests of a task have at most {TASK_BODY_BYTES // 1024**2} MiB at a time", closes=True
                )
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except BaseException:
        access.body_bytes -= size
        raise


def _parse(body: bytes) -> Json:
    if body.count(b"{") * 3 + body.count(b"[") + body.count(b",") > _STRUCTURE:
        raise Rejected("the body has too many members", status=413)
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise Rejected("the body isn't valid JSON") from None
    if not isinstance(parsed, dict):
        raise Rejected("the body must be a JSON object")
    return parsed


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- answers


def _passed(answer: Answer) -> list[tuple[bytes, bytes]]:
    """Return the vendor's headers that the machine gets."""
    return [
        (name.lower(), value)
        for name, value in answer.headers.raw
        if name.lower() in _PASSED_HEADERS or name.lower().startswith(_PASSED_PREFIXES)
    ]


async def _refuse(send: Send, protocol: ModelProtocol, refusal: _Refusal) -> None:
    body = msgspec.json.encode(protocol.error(refusal.status, f"gibil: {refusal.message}", refusal.code))
    await _send(send, refusal.status, body, b"application/json", _NO_RETRY, *((_CLOSE,) if refusal.closes else ()))


async def _send(
    send: Send, status: int, body: bytes, content_type: bytes = b"application/json", *more: tuple[bytes, bytes]
) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
