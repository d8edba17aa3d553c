"""Calls to Hetzner's API for an event loop: in a thread, in time, within the rate limit, repeated where that helps.

`hcloud` brings the address, the headers and the reading of answers. Its models are not used: reading a field of an incomplete
one makes another, blocking call. Its retrying is not either: it sleeps in the thread for minutes, where nobody can stop it.

A thread cannot be stopped, so a cancelled call waits for its answer before the cancellation goes on: whatever the call made
exists by then, and whoever cleans up finds it. The wait is bounded by the HTTP timeout.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import hcloud
import requests

from gibil_bot.errors import ProviderError
from gibil_bot.machines.hetzner_budget import RESERVE, budget_of

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]

ENDPOINT = "https://api.hetzner.cloud/v1"
HTTP_TIMEOUT_S = (5.0, 20.0)
"""To connect, and between two pieces of an answer."""

_THREADS = 8
_ATTEMPTS = 5
_BACKOFF_S = 0.3
_LOCKED_S = 60.0
"""How long something may be locked by another action of Hetzner's."""
_PER_PAGE = 50
_PAGES = 200
_CLOCK_NOISE_S = 5.0
"""The header `Date` has whole seconds, and the way has its delays: less than this is no difference, and no change."""

_PASSING_STATUS = frozenset((500, 502, 503, 504))
_PASSING_REASONS = frozenset(("conflict", "rate_limit_exceeded", "locked", "timeout", "bad_gateway"))


class Refused(ProviderError):
    """Hetzner answered no. `reason` is its own word for it (`uniqueness_error`), `fields` what was wrong in the request."""

    def __init__(self, message: str, *, code: str, reason: str, status: int, fields: frozenset[str] = frozenset()) -> None:
        super().__init__(message, code=code)
        self.reason, self.status, self.fields = reason, status, fields


@dataclass(slots=True)
class _Answer:
    """What one attempt brought; filled in the thread."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    took_s: float = 0.0
    body: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def reason(self) -> str:
        return str(self.error.code) if isinstance(self.error, hcloud.APIException) else ""

    @property
    def may_pass(self) -> bool:
        """Another attempt may do better. All of our calls may be made twice: names and numbers say what they are about."""
        if isinstance(self.error, requests.RequestException):
            return isinstance(
                self.error, requests.Timeout | requests.ConnectionError | requests.exceptions.ChunkedEncodingError
            )
        return self.status in _PASSING_STATUS or self.reason in _PASSING_REASONS


class HetznerApi:
    """`call` and `pages`, for one token. `clock_ahead_s`: how far Hetzner's clock is ahead of ours."""

    def __init__(
        self,
        token: str,
        endpoint: str = ENDPOINT,
        *,
        timeout_s: tuple[float, float] = HTTP_TIMEOUT_S,
        backoff_s: float = _BACKOFF_S,
    ) -> None:
        self._client = hcloud.Client(token, api_endpoint=endpoint.rstrip("/"), application_name="gibil-bot", timeout=timeout_s)
        self._client._client._retry_max_retries = 0  # there is no public way to do without
        self._endpoint = endpoint
        self._budget = budget_of(token, endpoint)
        self._backoff_s = backoff_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hetzner")
        self.clock_ahead_s = 0.0

    async def call(
        self, method: str, path: str, doing: str, *, query: Json | None = None, body: Json | None = None, burning: bool = False
    ) -> dict[str, Any]:
        """One request, until it has an answer. `doing` completes "cannot …" for people; burning may use the last calls.

        Raises Refused, and ProviderError when there is no answer.
        """
        locked_until = time.monotonic() + _LOCKED_S
        attempt = 0
        while True:
            await self._budget.take(0 if burning else RESERVE)
            answer = await self._attempt(method, path, query, body)
            if answer.error is None:
                return answer.body
            if answer.reason == "rate_limit_exceeded":
                pass  # the budget knows how long to wait
            elif answer.reason in ("locked", "conflict"):
                if time.monotonic() >= locked_until:
                    raise self._failure(answer, doing)
                await asyncio.sleep(max(self._backoff_s, 0.02) * random.uniform(1, 3))
            elif answer.may_pass and attempt + 1 < _ATTEMPTS:
                _log.info("Hetzner, %s: %s; trying again", doing, answer.error)
                await asyncio.sleep(self._backoff_s * 2**attempt * random.uniform(0.5, 1))
                attempt += 1
            else:
                raise self._failure(answer, doing)

    async def pages(self, path: str, key: str, doing: str, *, query: Json | None = None, burning: bool = False) -> list[Json]:
        """All pages of a list. A list that does not end is an error, not a hang."""
        found: list[Json] = []
        page = 1
        for _ in range(_PAGES):
            asked = {**(query or {}), "page": page, "per_page": _PER_PAGE}
            answer = await self.call("GET", path, doing, query=asked, burning=burning)
            found += answer.get(key, ())
            following = ((answer.get("meta") or {}).get("pagination") or {}).get("next_page")
            if not following:
                return found
            if following <= page:
                break
            page = following
        raise ProviderError(f"Hetzner, cannot {doing}: the list of {path} does not end")

    async def close(self) -> None:
        """Wait for calls in flight, and let go of the connections."""
        await asyncio.to_thread(self._threads.shutdown)
        self._client._client._session.close()  # nor a public way to do this

    async def _attempt(self, method: str, path: str, query: Json | None, body: Json | None) -> _Answer:
        answer = _Answer()
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._request, answer, method, path, query, body)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError as error:
                cancelled = error
        self._budget.answered(answer.status, answer.headers)
        self._set_clock(answer)
        if cancelled is not None:
            raise cancelled
        running.result()
        return answer

    def _request(self, answer: _Answer, method: str, path: str, query: Json | None, body: Json | None) -> None:
        """In a thread: one attempt."""

        def note(response: requests.Response, **_: object) -> None:
            answer.status, answer.headers = response.status_code, response.headers

        began = time.monotonic()
        arguments: dict[str, Any] = {"hooks": {"response": note}}
        if query:
            arguments["params"] = dict(query)
        if body is not None:
            arguments["json"] = dict(body)
        try:
            answer.body = self._client.request(method, path, **arguments)
        except (hcloud.HCloudException, requests.RequestException) as error:
            answer.error = error
        answer.took_s = time.monotonic() - began

    def _set_clock(self, answer: _Answer) -> None:
        try:
            date = parsedate_to_datetime(answer.headers.get("Date", ""))
        except (ValueError, TypeError):
            return
        ahead = date.timestamp() + 0.5 - (time.time() - answer.took_s / 2)
        if abs(ahead - self.clock_ahead_s) > _CLOCK_NOISE_S:
            self.clock_ahead_s = 0.0 if abs(ahead) < _CLOCK_NOISE_S else ahead

    def _failure(self, answer: _Answer, doing: str) -> ProviderError:
        error = answer.error
        if not isinstance(error, hcloud.APIException):
            kind = "does not answer in time" if isinstance(error, requests.Timeout) else "cannot be reached"
            return ProviderError(
                f"cannot {doing}: Hetzner's API at {self._endpoint} {kind}; check the network and HCLOUD_ENDPOINT",
                code="PROVIDER_UNREACHABLE",
            )
        return refusal(error, answer.status or 0, doing)


def refusal(error: hcloud.APIException, status: int, doing: str) -> Refused:
    """Hetzner's error as one line that says what to do (https://docs.hetzner.cloud/reference/cloud#errors)."""
    reason = str(error.code)
    said = " ".join(str(error.message).split())[:200]
    details = error.details if isinstance(error.details, Mapping) else {}
    wrong = details.get("fields") or ()
    fields = frozenset(str(each.get("name")) for each in wrong if isinstance(each, Mapping))
    if reason == "token_readonly":
        code, text = (
            "TOKEN_READONLY",
            "HCLOUD_TOKEN may only read; make one with Read & Write (Cloud Console, Security, API tokens)",
        )
    elif status == 401 or reason == "unauthorized":
        code, text = (
            "UNAUTHORIZED",
            f"Hetzner does not accept HCLOUD_TOKEN ({said}); make one in the Cloud Console: Security, API tokens",
        )
    elif reason == "resource_limit_exceeded":
        code, text = (
            "LIMIT_EXCEEDED",
            f"the limit of this Hetzner project is reached ({said}); burn machines, or ask Hetzner for more",
        )
    elif reason in ("resource_unavailable", "placement_error"):
        code, text = (
            "RESOURCE_UNAVAILABLE",
            f"Hetzner has no room for it now ({said}); choose another size or location, or wait",
        )
    elif reason == "protected":
        code, text = "PROTECTED", f"it is protected ({said}); take the protection away in the Cloud Console"
    elif status >= 500:
        code, text = (
            "PROVIDER_UNREACHABLE",
            f"Hetzner's API fails ({said}, {reason}); try again, or see https://status.hetzner.com",
        )
    else:
        code, text = "PROVIDER", f"Hetzner refuses: {said} ({', '.join((reason, *sorted(fields)))})"
    return Refused(f"cannot {doing}: {text}", code=code, reason=reason, status=status, fields=fields)
