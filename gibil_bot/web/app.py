"""The bot's web application: `POST /webhook`, `GET /healthz`, `GET /metrics`, `GET /runs/{id}`, `/mcp`
(mcp_server.http), and for the bots of other hosts `GET /internal/runs/{id}/files`.

The webhook is a bare ASGI route. Before its reply it checks the size, the signature and that the body is a JSON object, decodes
it to an event, and makes one durable insert. Everything else happens after the reply. Requests without a well-formed signature
header are rejected before the body is read; `http_protocol` limits sizes and times of all routes.
https://docs.github.com/webhooks/using-webhooks/best-practices-for-using-webhooks asks for an answer within 10 seconds.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gibil_bot.errors import StoreError
from gibil_bot.github import webhook
from gibil_bot.runs import events
from gibil_bot.runs.heads import observed_in
from gibil_bot.views import run_view
from gibil_bot.web.health import UNREADABLE, Health, Unhealthy
from gibil_bot.web.host_files import HostFilesRoute
from gibil_bot.web.metrics import BotMetrics
from gibil_bot.wiring import Bot

log = logging.getLogger("gibil.web")

BODY_LIMIT_BYTES = 25 * 1024 * 1024
"""GitHub sends nothing larger: https://docs.github.com/webhooks/webhook-events-and-payloads#payload-cap."""
STORED_WITHIN_S = 8.5
"""If the disk hangs, GitHub must not wait until its timeout of 10 s: a 503 reports the reason."""
GUID_LIMIT = 128
_SIGNATURE = re.compile(rb"sha256=[0-9a-f]{64}")
_CLOSE = (b"connection", b"close")  # the rest of the body isn't read
_UNSIGNED = "X-Hub-Signature-256 is missing or wrong: compare the App's webhook secret with the bot's"
_NOT_JSON = "the body is not a JSON object: set the content type of the App's webhook to application/json\n"
_COMMA = "; the bot takes commas in GIBIL_GITHUB_WEBHOOK_SECRET as separators of several secrets, so none may contain one"


class _AnyObject(msgspec.Struct):
    """Checks that a body is one JSON object without building it."""


_json_object = msgspec.json.Decoder(_AnyObject)


def create_app(bot: Bot, rejected: Mapping[int, int] | None = None, mcp: ASGIApp | None = None) -> Starlette:
    """Return the ASGI app of a running bot. `rejected`: how many requests the server in front of it answered, by status.
    `mcp`: serves /mcp, which doesn't exist without it.
    """
    webhook_route = WebhookRoute(bot)
    pages = _Pages(bot, webhook_route.answers, {} if rejected is None else rejected)
    app = Starlette(
        routes=[
            Route("/webhook", webhook_route),
            Route("/healthz", pages.health, methods=["GET"]),
            Route("/metrics", pages.metrics, methods=["GET"]),
            *([] if mcp is None else [Route("/mcp", mcp)]),
            *_internal(bot),
            Route("/runs/{run_id:path}", pages.run, methods=["GET"]),
            Route("/{path:path}", _not_found, methods=["GET"]),
        ],
        exception_handlers={404: _not_found, 405: _only_get},
    )
    app.router.redirect_slashes = False  # `/healthz/` doesn't exist, and a redirect would suggest that it does
    return app


def _internal(bot: Bot) -> list[Route]:
    """Return the route for the bots of other hosts, if they reach this one."""
    if bot.signer is None:
        return []
    files = HostFilesRoute(bot.signer, bot.settings.data_dir / "logs")
    return [Route("/internal/runs/{run_id}/files", files.answer, methods=["GET"])]


_Reply = tuple[int, str, *tuple[tuple[bytes, bytes], ...]]
"""Status, text, additional headers."""


class _ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class WebhookRoute:
    """`POST /webhook` as a bare ASGI application: the busiest path doesn't create Starlette's request and response objects."""

    def __init__(self, bot: Bot) -> None:
        self._bot = bot
        self._secrets = tuple(secret.reveal() for secret in bot.settings.webhook_secrets)
        self._allowed_accounts = bot.settings.allowed_accounts
        self.answers: Counter[int] = Counter()
        """Number of answered requests, by status."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            status, text, *more = await self._accept(scope, receive)
        except _ClientGone:
            return
        self.answers[status] += 1
        await _send(send, status, text.encode(), b"text/plain; charset=utf-8", *more)

    def _unsigned(self) -> str:
        return f"{_UNSIGNED}{_COMMA if len(self._secrets) > 1 else ''}\n"

    async def _accept(self, scope: Scope, receive: Receive) -> _Reply:
        # Rejections based on the head alone close the connection: the body of an unauthenticated client isn't read.
        if scope["method"] != "POST":
            return 405, "send deliveries with POST\n", (b"allow", b"POST"), _CLOSE
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
            return 400, "the headers X-GitHub-Delivery and X-GitHub-Event are required\n"
        if not _is_utf8(body):
            return 400, _NOT_JSON
        received_at = datetime.now(UTC)
        delivery = events.read_delivery(guid, event, body, received_at, self._allowed_accounts)
        # If it was decoded to one of our events, it is a JSON object.
        if (delivery.event is None or event not in webhook.EVENTS) and not _is_json_object(body):
            return 400, _NOT_JSON
        handled = delivery.event is not None and events.starts_nothing(delivery.event)
        observed = observed_in(delivery.event, received_at) if delivery.event is not None else ()
        try:
            new = await self._in_time(self._bot.store.inbox.accept(delivery, handled=handled, observed=observed))
        except (StoreError, TimeoutError) as error:
            # GitHub shows it as failed, and the reaper requests it again. If it is stored after all, that is harmless.
            why = error.message if isinstance(error, StoreError) else f"timed out after {STORED_WITHIN_S:g} s; check the disk"
            log.error("delivery %s could not be stored: %s", guid, why)
            self._bot.delivery_lost()
            return 503, "the delivery could not be stored; the bot will ask GitHub for it again\n"
        return 202, "accepted\n" if new else "accepted before\n"

    async def _in_time(self, storing: Awaitable[bool]) -> bool:
        """Await with a limit of STORED_WITHIN_S; this saves a twentieth of a delivery's time over asyncio.timeout. Raises
        TimeoutError.
        """
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


class _Pages:
    """The pages that programs and people read."""

    def __init__(self, bot: Bot, answers: Mapping[int, int], rejected: Mapping[int, int]) -> None:
        self._bot = bot
        self._metrics = BotMetrics(answers, rejected, bot.settings.max_machines)
        self._health = Health(bot.store)

    async def health(self, request: Request) -> Response:
        """Return 200 if the bot can do its work, which begins with storing deliveries."""
        try:
            counts = await self._health.check()
        except Unhealthy as error:
            return _json({"status": "failing", "database": error.reason}, 503)
        dead = self._bot.stopped_parts()
        if dead:
            return _json({"status": "failing", "stopped": dead}, 503)
        return _json({"status": "ok", **counts})

    async def metrics(self, request: Request) -> Response:
        try:
            counts = await self._health.counts()
        except Unhealthy as error:
            return PlainTextResponse(f"{error.reason}\n", 503)
        return Response(self._metrics.text(counts), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})

    async def run(self, request: Request) -> Response:
        """Return the state of a run. Its id can't be guessed; its output is on the check run, not here."""
        try:
            run = await self._bot.store.runs.get(request.path_params["run_id"])
            if run is None:
                return _json({"error": "run not found", "code": "RUN_NOT_FOUND"}, 404)
            results = await self._bot.store.runs.task_results(run.id, run.machine_attempt)
        except StoreError as error:
            self._health.failed("a page can't be answered", error)
            return _json({"error": UNREADABLE, "code": error.code}, 503)
        return _json(run_view(run, results))


async def _not_found(request: Request, error: Exception | None = None) -> Response:
    return _json({"error": "page not found", "code": "NOT_FOUND"}, 404)


async def _only_get(request: Request, error: Exception) -> Response:
    return PlainTextResponse("only GET is allowed", 405, headers={"allow": "GET, HEAD"})


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _is_too_large(content_length: bytes) -> bool:
    """Return whether a Content-Length is too large. Leading zeros are legal (RFC 9110, 8.6); `int` rejects over 4300 digits."""
    digits = content_length.lstrip(b"0")
    return digits.isdigit() and (len(digits) > len(str(BODY_LIMIT_BYTES)) or int(digits) > BODY_LIMIT_BYTES)


def _is_json_object(body: bytes) -> bool:
    try:
        _json_object.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _is_utf8(body: bytes) -> bool:
    """Return whether the body is UTF-8: msgspec checks only the strings that it decodes."""
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
    """Return the body, or None if it is too large. Raises _ClientGone."""
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
