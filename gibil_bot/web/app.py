"""The bot's door on the web: `POST /webhook`, `GET /healthz`, `GET /metrics`, `GET /runs/{id}`.

The webhook is a bare ASGI endpoint: before its reply it checks the size, the signature and that the body is a JSON object,
decodes it to an event, and makes one durable insert. Everything else happens after the reply. What has no
signature header of the right form is rejected before its body is read; `web_protocol` bounds sizes and times.
https://docs.github.com/webhooks/using-webhooks/best-practices-for-using-webhooks asks for an answer within 10 seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from gibil_bot.errors import StoreError
from gibil_bot.github import webhook
from gibil_bot.runs import events
from gibil_bot.runs.heads import observed_in
from gibil_bot.views import run_view
from gibil_bot.wiring import Bot

log = logging.getLogger("gibil.web")

# ASGI's own words: https://asgi.readthedocs.io/en/latest/specs/www.html
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_LIMIT_BYTES = 25 * 1024 * 1024
"""GitHub sends nothing larger: https://docs.github.com/webhooks/webhook-events-and-payloads#payload-cap."""
STORED_WITHIN_S = 8.5
"""A disk that hangs must not keep GitHub waiting until it gives up, which takes 10 s: 503 says what happened."""
GUID_LIMIT = 128
_SIGNATURE = re.compile(rb"sha256=[0-9a-f]{64}")
_CLOSE = (b"connection", b"close")  # the rest of the body is not read
_UNSIGNED = "X-Hub-Signature-256 is missing or wrong: compare the App's webhook secret with the bot's"
_NOT_JSON = "the body is not a JSON object: the App's webhook has to send application/json\n"
_COMMA = "; the bot takes commas in GIBIL_GITHUB_WEBHOOK_SECRET as separators of several secrets, so none may contain one"


class _AnyObject(msgspec.Struct):
    """Decoding to this checks that a body is one JSON object, and builds nothing."""


_json_object = msgspec.json.Decoder(_AnyObject)


def create_app(bot: Bot, rejected: Mapping[int, int] | None = None) -> ASGIApp:
    """The ASGI app of a running bot. `rejected`: how many requests the server in front of it answered, by status."""
    doors = _Routes(bot, {} if rejected is None else rejected)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/webhook":
            await doors.webhook(scope, receive, send)
        else:
            await doors.look(scope, send)

    return app


_Reply = tuple[int, str, *tuple[tuple[bytes, bytes], ...]]
"""Status, text, more headers."""


class _ClientGone(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """To a GET."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


def _json(value: object, status: int = 200) -> _Answer:
    return _Answer(status, msgspec.json.encode(value))


class _Routes:
    """What answers."""

    def __init__(self, bot: Bot, rejected: Mapping[int, int]) -> None:
        self._bot = bot
        self._rejected = rejected
        self._secrets = tuple(secret.reveal() for secret in bot.settings.webhook_secrets)
        self._allowed_accounts = bot.settings.allowed_accounts
        self._answers: dict[int, int] = {}
        self._started = time.time()

    async def webhook(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, text, *more = await self._accept(scope, receive)
        except _ClientGone:
            return
        self._answers[status] = self._answers.get(status, 0) + 1
        await _send(send, status, text.encode(), b"text/plain; charset=utf-8", *more)

    def _unsigned(self) -> str:
        return f"{_UNSIGNED}{_COMMA if len(self._secrets) > 1 else ''}\n"

    async def _accept(self, scope: Scope, receive: Receive) -> _Reply:
        # What the head alone decides closes the connection: reading the body would be work for a stranger.
        if scope["method"] != "POST":
            return 405, "deliveries are posted here\n", (b"allow", b"POST"), _CLOSE
        signature = guid = event = None
        for name, value in scope["headers"]:
            if name == b"x-hub-signature-256":
                signature = value
            elif name == b"x-github-delivery":
                guid = value.decode("latin-1")
            elif name == b"x-github-event":
                event = value.decode("latin-1")
            elif name == b"content-length" and _is_too_large(value):
                return 413, "a delivery has at most 25 MiB\n", _CLOSE
        if signature is None or _SIGNATURE.fullmatch(signature) is None:
            return 401, self._unsigned(), _CLOSE
        body = await _read(receive)
        if body is None:
            return 413, "a delivery has at most 25 MiB\n", _CLOSE
        if not webhook.verify(body, signature.decode("ascii"), self._secrets):
            return 401, self._unsigned()
        if not guid or len(guid) > GUID_LIMIT or not event or len(event) > GUID_LIMIT:
            return 400, "X-GitHub-Delivery and X-GitHub-Event are needed\n"
        if not _is_utf8(body):
            return 400, _NOT_JSON
        received_at = datetime.now(UTC)
        delivery = events.read_delivery(guid, event, body, received_at, self._allowed_accounts)
        # What could be read of one of our events is a JSON object.
        if (delivery.event is None or event not in webhook.EVENTS) and not _is_json_object(body):
            return 400, _NOT_JSON
        handled = delivery.event is not None and events.starts_nothing(delivery.event)
        observed = observed_in(delivery.event, received_at) if delivery.event is not None else ()
        try:
            new = await self._in_time(self._bot.store.inbox.accept(delivery, handled=handled, observed=observed))
        except (StoreError, TimeoutError) as error:
            # GitHub shows it as failed, and the reaper asks for it again. Should it be stored later, that changes nothing.
            why = error.message if isinstance(error, StoreError) else f"not within {STORED_WITHIN_S:g} s: is its disk hanging?"
            log.error("delivery %s could not be stored: %s", guid, why)
            self._bot.delivery_lost()
            return 503, "the delivery could not be stored; it is asked for again\n"
        return 202, "accepted\n" if new else "accepted before\n"

    async def _in_time(self, storing: Awaitable[bool]) -> bool:
        """asyncio.timeout would do, and costs a twentieth of a delivery. Raises TimeoutError."""
        task = asyncio.current_task()
        assert task is not None
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        timer = asyncio.get_running_loop().call_later(STORED_WITHIN_S, expire)
        try:
            return await storing
        except asyncio.CancelledError:
            if expired and task.uncancel() == 0:
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()

    async def look(self, scope: Scope, send: Send) -> None:
        """What programs and people may see. Plain functions: a framework's import would take a tenth of the start."""
        if scope["method"] not in ("GET", "HEAD"):
            await _send(send, 405, b"only GET here\n", b"text/plain; charset=utf-8", (b"allow", b"GET, HEAD"))
            return
        path: str = scope["path"]
        if path == "/healthz":
            answer = await self._health()
        elif path == "/metrics":
            answer = await self._metrics()
        elif path.startswith("/runs/"):
            answer = await self._run(path.removeprefix("/runs/"))
        else:
            answer = _json({"error": "there is nothing here", "code": "NOT_FOUND"}, 404)
        await _send(send, answer.status, answer.body, answer.content_type)

    async def _health(self) -> _Answer:
        try:
            counts = await self._bot.store.counts()
        except StoreError as error:
            return _json({"status": "failing", "database": error.message}, 503)
        dead = self._bot.stopped_parts()
        if dead:
            return _json({"status": "failing", "stopped": dead}, 503)
        return _json({"status": "ok", **counts})

    async def _metrics(self) -> _Answer:
        """Prometheus' text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""
        try:
            counts = await self._bot.store.counts()
        except StoreError as error:
            return _Answer(503, f"{error.message}\n".encode(), b"text/plain; charset=utf-8")
        lines = [f"# TYPE gibil_{name} gauge\ngibil_{name} {value}" for name, value in sorted(counts.items())]
        lines.append("# TYPE gibil_webhook_answers_total counter")
        lines += [
            f'gibil_webhook_answers_total{{status="{status}"}} {count}' for status, count in sorted(self._answers.items())
        ]
        lines.append("# TYPE gibil_http_rejected_total counter")
        lines += [f'gibil_http_rejected_total{{status="{status}"}} {n}' for status, n in sorted(self._rejected.items())]
        lines.append(f"# TYPE gibil_max_machines gauge\ngibil_max_machines {self._bot.settings.max_machines}")
        lines.append(f"# TYPE gibil_start_time_seconds gauge\ngibil_start_time_seconds {self._started:.0f}")
        return _Answer(200, ("\n".join(lines) + "\n").encode(), b"text/plain; version=0.0.4; charset=utf-8")

    async def _run(self, run_id: str) -> _Answer:
        """How a run stands. Its id cannot be guessed; its output is not here, but on the check run."""
        try:
            run = await self._bot.store.runs.get(run_id)
            if run is None:
                return _json({"error": "there is no such run", "code": "RUN_NOT_FOUND"}, 404)
            results = await self._bot.store.runs.task_results(run.id, run.machine_attempt)
        except StoreError as error:
            return _json({"error": error.message, "code": error.code}, 503)
        return _json(run_view(run, results))


def _is_too_large(content_length: bytes) -> bool:
    """Leading zeros are legal (RFC 9110, 8.6), and `int` raises ValueError above 4300 digits."""
    digits = content_length.lstrip(b"0")
    return digits.isdigit() and (len(digits) > len(str(BODY_LIMIT_BYTES)) or int(digits) > BODY_LIMIT_BYTES)


def _is_json_object(body: bytes) -> bool:
    try:
        _json_object.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_utf8(body: bytes) -> bool:
    """msgspec checks only the strings that it decodes."""
    try:
        str(body, "utf-8")
    except UnicodeDecodeError:
        return False
    return True


async def _send(send: Send, status: int, body: bytes, content_type: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _read(receive: Receive) -> bytes | None:
    """The body; None when it is too large. Raises _ClientGone."""
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > BODY_LIMIT_BYTES:
            return None
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)
