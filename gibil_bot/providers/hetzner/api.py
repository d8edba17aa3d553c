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
import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import hcloud
import requests

from gibil_bot.errors import ProviderError
from gibil_bot.providers.hetzner.rate_limit import RESERVE, budget_of

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]

ENDPOINT = "https://api.hetzner.cloud/v1"
HTTP_TIMEOUT_S = (5.0, 20.0)
"""To connect, and between two pieces of an answer."""

_THREADS = 8
_ATTEMPTS = 5
_BACKOFF_S = 0.3
_LOCKED_S = 120.0
"""How long a resource may be locked by another action before the call fails."""
_LOCKED_PAUSE_S = 10.0
"""The longest pause between two tries of a locked resource: 35 of them made 411 calls in a minute, of 3600 an hour."""
_RATE_LIMITED_S = 150.0
"""How long one call waits for the rate limit in all before it fails."""
_PER_PAGE = 50
_PAGES = 200
_CLOCK_NOISE_S = 5.0
"""The header `Date` has whole seconds, and the way has its delays: less than this is no difference, and no change."""

_PASSING_STATUS = frozenset((500, 502, 503, 504))
_PASSING_REASONS = frozenset(("server_error", "service_error", "bad_gateway", "unavailable", "timeout"))
"""`service_error` is 422: "Error within a service" (https://docs.hetzner.cloud/reference/cloud#errors)."""
NO_ROOM = frozenset(("resource_unavailable", "placement_error"))
"""Hetzner's codes for a type that it can't place in a location now, of answers and of actions."""


class Refused(ProviderError):
    """Hetzner rejected a request. `reason` is its own code (`uniqueness_error`), `said` its message, on one line.

    `fields` are the fields that it calls wrong: usually none when the request is well-formed and what it names doesn't exist.
    """

    def __init__(
        self, message: str, *, code: str, reason: str, status: int, said: str = "", fields: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(message, code=code)
        self.reason, self.status, self.said, self.fields = reason, status, said, fields


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
    def is_rate_limited(self) -> bool:
        """By the status, too: a 429 of a proxy in front of the API isn't JSON and has no code."""
        return self.status == 429 or self.reason == "rate_limit_exceeded"

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
        rate_limited_s: float = _RATE_LIMITED_S,
    ) -> None:
        self._client = hcloud.Client(token, api_endpoint=endpoint.rstrip("/"), application_name="gibil-bot", timeout=timeout_s)
        stop_retries(self._client)
        self._endpoint = endpoint
        self._budget = budget_of(token, endpoint)
        self._backoff_s, self._rate_limited_s = backoff_s, rate_limited_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hetzner")
        self.clock_ahead_s = 0.0

    async def call(
        self, method: str, path: str, doing: str, *, query: Json | None = None, body: Json | None = None, burning: bool = False
    ) -> dict[str, Any]:
        """One request, until it has an answer. `doing` completes "cannot …" for people; burning may use the last calls.

        Every wait has an end: for the rate limit `rate_limited_s` in all, for a lock or a conflict two minutes, for an API that
        fails five attempts. Raises Refused, and ProviderError when there is no answer.
        """
        began = time.monotonic()
        attempt = locks = 0
        while True:
            if not await self._budget.take(0 if burning else RESERVE, began + self._rate_limited_s):
                raise ProviderError(
                    f"cannot {doing}: the rate limit of this Hetzner project left no call within "
                    f"{self._rate_limited_s:.0f} s; find out what else calls its API, or try again later",
                    code="RATE_LIMITED",
                )
            answer = await self._attempt(method, path, query, body)
            if answer.error is None:
                return answer.body
            if answer.is_rate_limited:
                continue  # the budget knows how long to wait
            if answer.reason in ("locked", "conflict"):
                if time.monotonic() >= began + _LOCKED_S:
                    raise self._failure(answer, doing)
                await asyncio.sleep(min(_LOCKED_PAUSE_S, self._backoff_s * 2**locks) * random.uniform(0.7, 1))
                locks += 1
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
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            if answer.status is None:  # internal error
                raise
            # hcloud expects the documented JSON; a proxy in front of the API may answer anything.
            _log.info("Hetzner, %s %s: an answer that can't be read (%r)", method, path, error)
            answer.error = _undocumented(answer.status)
        else:
            if not isinstance(answer.body, dict):
                answer.body, answer.error = {}, _undocumented(answer.status or 0)
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


def _undocumented(status: int) -> hcloud.APIException:
    """An answer that is not what the API documents, as hcloud reports one that isn't JSON."""
    return hcloud.APIException(code=status, message="an answer that is not the API's", details=None)


def stop_retries(client: hcloud.Client) -> None:
    """Switch off hcloud's own retries, which sleep in the thread for minutes and can't be cancelled.

    There is no public setting (hcloud 2.27, `ClientBase.__init__`). Raises ProviderError if a later version keeps it elsewhere:
    silently left on, it would make every call hang that should fail.
    """
    inner: Any = getattr(client, "_client", None)
    if not isinstance(getattr(inner, "_retry_max_retries", None), int):
        raise ProviderError(
            f"hcloud {hcloud.__version__} keeps its number of retries elsewhere than version 2.27 does; "
            "install hcloud 2.27, and report this"
        )
    inner._retry_max_retries = 0


_MAKE_ANOTHER = "make one with Read & Write (Cloud Console, Security, API tokens)"


def refusal(error: hcloud.APIException, status: int, doing: str) -> Refused:
    """Hetzner's error as one line that says what to do (https://docs.hetzner.cloud/reference/cloud#errors)."""
    reason, said = str(error.code), _one_line(error.message)
    details = error.details if isinstance(error.details, Mapping) else {}
    fields = _names(details.get("fields"))
    if reason == "token_readonly":
        code, text = "TOKEN_READONLY", f"HCLOUD_TOKEN may only read; {_MAKE_ANOTHER}"
    elif reason == "forbidden":
        code, text = "TOKEN_READONLY", f"HCLOUD_TOKEN may not do this ({said}); {_MAKE_ANOTHER}"
    elif status == 401 or reason == "unauthorized":
        code, text = (
            "UNAUTHORIZED",
            f"Hetzner does not accept HCLOUD_TOKEN ({said}); make one in the Cloud Console: Security, API tokens",
        )
    elif reason == "resource_limit_exceeded":
        what = ", ".join((said, *sorted(_names(details.get("limits")))))
        if re.search(r"primary.?ip", what, re.IGNORECASE):
            way = "delete Primary IPs that no server has (Cloud Console, Primary IPs), or ask Hetzner for more"
        else:
            way = "burn machines, or ask Hetzner for more"
        code, text = "LIMIT_EXCEEDED", f"a limit of this Hetzner project is reached ({what}); {way}"
    elif reason == "maintenance":
        code, text = "MAINTENANCE", f"Hetzner does maintenance there ({said}); choose another location, or wait"
    elif reason in NO_ROOM:
        code, text = (
            "RESOURCE_UNAVAILABLE",
            f"Hetzner has no room for it now ({said}); choose another size or location, or wait",
        )
    elif reason == "locked":
        code, text = "LOCKED", f"Hetzner is still busy with it ({said}); try again in a minute"
    elif reason == "protected":
        code, text = "PROTECTED", f"it is protected ({said}); take the protection away in the Cloud Console"
    elif reason.isdigit() and status < 500:  # hcloud's code for an answer that isn't the API's JSON
        code, text = (
            "PROVIDER_UNREACHABLE",
            f"what answers there is not Hetzner's API (HTTP {status} {said}); check HCLOUD_ENDPOINT and proxies on the way",
        )
    elif status >= 500 or reason in _PASSING_REASONS:
        code, text = (
            "PROVIDER_UNREACHABLE",
            f"Hetzner's API fails ({said}, {reason}); try again, or see https://status.hetzner.com",
        )
    else:
        code, text = "PROVIDER", f"Hetzner refuses: {said} ({', '.join((reason, *sorted(fields)))})"
    return Refused(f"cannot {doing}: {text}", code=code, reason=reason, status=status, said=said, fields=fields)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:200]


def _names(listed: object) -> frozenset[str]:
    """Of `details.fields` and `details.limits`: at most a few short names, whatever is sent."""
    found = listed[:10] if isinstance(listed, list) else []
    return frozenset(str(each["name"])[:60] for each in found if isinstance(each, Mapping) and "name" in each)


def action_error(action: Json, doing: str) -> Refused | None:
    """Why an action failed (https://docs.hetzner.cloud/reference/cloud#actions); None if it runs or has succeeded."""
    if action["status"] != "error":
        return None
    error = action.get("error") or {}
    reason, said = str(error.get("code", "unknown")), _one_line(error.get("message", ""))
    code = "RESOURCE_UNAVAILABLE" if reason in NO_ROOM else "PROVIDER"
    text = f"cannot {doing}: Hetzner's {str(action.get('command', 'action'))[:60]} failed: {said} ({reason})"
    return Refused(text, code=code, reason=reason, status=0, said=said)
