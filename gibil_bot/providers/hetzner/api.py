"""Calls to Hetzner's API from an event loop: in threads, with a time limit, within the rate limit, retried where that helps.

`hcloud` provides authentication, headers and the decoding of answers. Its models aren't used, because reading a field of an
incomplete model makes another, blocking call.

A thread can't be stopped, so a cancelled call waits for its answer before it raises CancelledError: whatever the call created
exists by then, and the cleanup finds it. The wait is bounded by the HTTP timeout.
"""

from __future__ import annotations

import asyncio
import logging
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
from gibil_bot.providers.hetzner.rate_limit import RESERVE, rate_limit_of
from gibil_bot.retry import RetryPolicy

_log = logging.getLogger(__name__)

Json = Mapping[str, Any]

ENDPOINT = "https://api.hetzner.cloud/v1"
HTTP_TIMEOUT_S = (5.0, 20.0)
"""Time limits for connecting, and between two pieces of an answer."""

_THREADS = 8
_ATTEMPTS = 5
_BACKOFF_S = 0.3
_LOCKED_S = 120.0
"""How long a resource may be locked by another action before the call fails."""
_LOCKED_PAUSE_S = 10.0
"""Longest wait between two attempts on a locked resource: shorter ones used 411 of the 3600 calls per hour in a minute."""
_RATE_LIMITED_S = 150.0
"""How long one call waits for the rate limit in total before it fails."""
_PER_PAGE = 50
_PAGES = 200
_CLOCK_NOISE_S = 5.0
"""Smaller clock differences are ignored: the header `Date` has whole seconds, and the network adds delays."""

_TRANSIENT_STATUS = frozenset((500, 502, 503, 504))
_TRANSIENT_REASONS = frozenset(("server_error", "service_error", "bad_gateway", "unavailable", "timeout"))
"""`service_error` is 422: "Error within a service" (https://docs.hetzner.cloud/reference/cloud#errors)."""
NO_ROOM = frozenset(("resource_unavailable", "placement_error"))
"""Hetzner's codes for a type that isn't available in a location now, of answers and of actions."""


class Rejected(ProviderError):
    """Hetzner rejected a request. `reason` is Hetzner's code (`uniqueness_error`), `detail` its message on one line.

    `status` is the HTTP status, or 0 when an action failed. `fields` are the fields that Hetzner calls invalid: usually none
    when the request is well-formed and names something that doesn't exist.
    """

    def __init__(
        self, message: str, *, code: str, reason: str, status: int, detail: str = "", fields: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(message, code=code)
        self.reason, self.status, self.detail, self.fields = reason, status, detail, fields


@dataclass(slots=True)
class _Answer:
    """The result of one attempt; filled in the thread."""

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
        """Also by the status: a 429 of a proxy in front of the API isn't JSON and has no code."""
        return self.status == 429 or self.reason == "rate_limit_exceeded"

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed. All our calls may be repeated, since they name what they create or change."""
        if isinstance(self.error, requests.RequestException):
            return isinstance(
                self.error, requests.Timeout | requests.ConnectionError | requests.exceptions.ChunkedEncodingError
            )
        return self.status in _TRANSIENT_STATUS or self.reason in _TRANSIENT_REASONS


class HetznerApi:
    """Calls the API with one token. `clock_ahead_s`: how far Hetzner's clock is ahead of this host's."""

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
        disable_retries(self._client)
        self._endpoint = endpoint
        self._rate_limit = rate_limit_of(token, endpoint)
        self._rate_limited_s = rate_limited_s
        self._locked_policy = RetryPolicy(
            attempts=None, first_wait_s=backoff_s, longest_wait_s=_LOCKED_PAUSE_S, jitter=(0.7, 1), within_s=_LOCKED_S
        )
        self._transient_policy = RetryPolicy(attempts=_ATTEMPTS, first_wait_s=backoff_s, jitter=(0.5, 1))
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hetzner")
        self.clock_ahead_s = 0.0

    async def call(
        self, method: str, path: str, doing: str, *, query: Json | None = None, body: Json | None = None, deleting: bool = False
    ) -> dict[str, Any]:
        """Make one request, and return the decoded answer. Raises Rejected, and ProviderError when there is no answer.

        `doing` completes the message "cannot …"; a `deleting` call may use the reserve of the rate limit. Waits are bounded:
        for the rate limit `rate_limited_s` in total, for locks and conflicts two minutes, for transient failures five attempts.
        """
        began = time.monotonic()
        failures = locks = 0
        while True:
            if not await self._rate_limit.acquire(0 if deleting else RESERVE, began + self._rate_limited_s):
                raise ProviderError(
                    f"cannot {doing}: the rate limit of this Hetzner project allowed no call within "
                    f"{self._rate_limited_s:.0f} s; find out which other programs call its API, or try again later",
                    code="RATE_LIMITED",
                )
            answer = await self._attempt(method, path, query, body)
            if answer.error is None:
                return answer.body
            if answer.is_rate_limited:
                continue  # the rate limit knows how long to wait
            if answer.reason in ("locked", "conflict"):
                locks += 1
                wait_s = self._locked_policy.wait_s(locks, elapsed_s=time.monotonic() - began)
            elif answer.is_transient:
                failures += 1
                wait_s = self._transient_policy.wait_s(failures)
            else:
                wait_s = None
            if wait_s is None:
                raise self._failure(answer, doing)
            _log.info("Hetzner, %s: %s; trying again in %.1f s", doing, answer.error, wait_s)
            await asyncio.sleep(wait_s)

    async def pages(self, path: str, key: str, doing: str, *, query: Json | None = None, deleting: bool = False) -> list[Json]:
        """Return all pages of a list. Raises ProviderError for a list that doesn't end."""
        found: list[Json] = []
        page = 1
        for _ in range(_PAGES):
            asked = {**(query or {}), "page": page, "per_page": _PER_PAGE}
            answer = await self.call("GET", path, doing, query=asked, deleting=deleting)
            found += answer.get(key, ())
            following = ((answer.get("meta") or {}).get("pagination") or {}).get("next_page")
            if not following:
                return found
            if following <= page:
                break
            page = following
        raise ProviderError(f"cannot {doing}: Hetzner's list {path} doesn't end; try again later")

    async def close(self) -> None:
        """Wait for calls in flight. The connections close when the client is garbage, since it has no method to close it."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _attempt(self, method: str, path: str, query: Json | None, body: Json | None) -> _Answer:
        answer = _Answer()
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._request, answer, method, path, query, body)
        cancelled: asyncio.CancelledError | None = None
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError as error:
                cancelled = error
        self._rate_limit.answered(answer.status, answer.headers)
        self._set_clock(answer)
        if cancelled is not None:
            raise cancelled
        running.result()
        return answer

    def _request(self, answer: _Answer, method: str, path: str, query: Json | None, body: Json | None) -> None:
        """Make one attempt. Runs in a thread."""

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
            # hcloud expects the documented JSON; a proxy in front of the API may answer something else.
            _log.info("Hetzner, %s %s: unexpected answer (%r)", method, path, error)
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
            kind = "doesn't answer in time" if isinstance(error, requests.Timeout) else "can't be reached"
            return ProviderError(
                f"cannot {doing}: Hetzner's API at {self._endpoint} {kind}; check the network and HCLOUD_ENDPOINT",
                code="PROVIDER_UNREACHABLE",
            )
        return rejected(error, answer.status or 0, doing)


def _undocumented(status: int) -> hcloud.APIException:
    """Return the exception for an undocumented answer, in the form in which hcloud reports one that isn't JSON."""
    return hcloud.APIException(code=status, message="unexpected answer", details=None)


def disable_retries(client: hcloud.Client) -> None:
    """Disable hcloud's own retries, which sleep in the thread for minutes and can't be cancelled.

    Raises ProviderError if a later version of hcloud stores their number elsewhere: with retries left on, calls that should
    fail would seem to hang.
    """
    # A private attribute, because hcloud 2.27 has no setting for this; the pull request that added retries leaves it to later:
    # https://github.com/hetznercloud/hcloud-python/pull/430
    inner: Any = getattr(client, "_client", None)
    if not isinstance(getattr(inner, "_retry_max_retries", None), int):
        raise ProviderError(
            f"the retries of hcloud {hcloud.__version__} can't be disabled as in 2.27; install hcloud 2.27 and report this"
        )
    inner._retry_max_retries = 0


_HOW_TO_REPLACE = "create one with Read & Write (Cloud Console, Security, API tokens)"


def rejected(error: hcloud.APIException, status: int, doing: str) -> Rejected:
    """Return Hetzner's error as one line that says what to do (https://docs.hetzner.cloud/reference/cloud#errors)."""
    reason, detail = str(error.code), _one_line(error.message)
    details = error.details if isinstance(error.details, Mapping) else {}
    fields = _names(details.get("fields"))
    if reason == "token_readonly":
        code, text = "TOKEN_READONLY", f"HCLOUD_TOKEN is read-only; {_HOW_TO_REPLACE}"
    elif reason == "forbidden":
        code, text = "TOKEN_READONLY", f"HCLOUD_TOKEN lacks a permission ({detail}); {_HOW_TO_REPLACE}"
    elif status == 401 or reason == "unauthorized":
        code, text = (
            "UNAUTHORIZED",
            f"Hetzner rejected HCLOUD_TOKEN ({detail}); create one in the Cloud Console (Security, API tokens)",
        )
    elif reason == "resource_limit_exceeded":
        what = ", ".join((detail, *sorted(_names(details.get("limits")))))
        if re.search(r"primary.?ip", what, re.IGNORECASE):
            remedy = "delete unassigned Primary IPs (Cloud Console, Primary IPs), or ask Hetzner for a higher limit"
        else:
            remedy = "destroy machines, or ask Hetzner for a higher limit"
        code, text = "LIMIT_EXCEEDED", f"a limit of this Hetzner project is reached ({what}); {remedy}"
    elif reason == "maintenance":
        code, text = (
            "MAINTENANCE",
            f"Hetzner is doing maintenance there ({detail}); choose another location, or try again later",
        )
    elif reason in NO_ROOM:
        code, text = (
            "RESOURCE_UNAVAILABLE",
            f"Hetzner has no capacity for it now ({detail}); choose another size or location, or try again later",
        )
    elif reason == "locked":
        code, text = "LOCKED", f"it is locked by another action ({detail}); try again in a minute"
    elif reason == "protected":
        code, text = "PROTECTED", f"it is protected ({detail}); remove the protection in the Cloud Console"
    elif reason.isdigit() and status < 500:  # hcloud's code for an answer that isn't the API's JSON
        code, text = (
            "PROVIDER_UNREACHABLE",
            f"the answer (HTTP {status} {detail}) isn't from Hetzner's API; check HCLOUD_ENDPOINT and HTTP proxies",
        )
    elif status >= 500 or reason in _TRANSIENT_REASONS:
        code, text = (
            "PROVIDER_UNREACHABLE",
            f"Hetzner's API failed ({detail}, {reason}); try again, or see https://status.hetzner.com",
        )
    else:
        code, text = "PROVIDER", f"Hetzner rejected it: {detail} ({', '.join((reason, *sorted(fields)))})"
    return Rejected(f"cannot {doing}: {text}", code=code, reason=reason, status=status, detail=detail, fields=fields)


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:200]


def _names(listed: object) -> frozenset[str]:
    """Return the names in `details.fields` or `details.limits`: at most ten, cut to 60 characters, whatever is sent."""
    found = listed[:10] if isinstance(listed, list) else []
    return frozenset(str(each["name"])[:60] for each in found if isinstance(each, Mapping) and "name" in each)


def action_error(action: Json, doing: str) -> Rejected | None:
    """Return why an action failed (https://docs.hetzner.cloud/reference/cloud#actions); None if it runs or succeeded."""
    if action["status"] != "error":
        return None
    error = action.get("error") or {}
    reason, detail = str(error.get("code", "unknown")), _one_line(error.get("message", ""))
    code = "RESOURCE_UNAVAILABLE" if reason in NO_ROOM else "PROVIDER"
    text = f"cannot {doing}: Hetzner's {str(action.get('command', 'action'))[:60]} failed: {detail} ({reason})"
    return Rejected(text, code=code, reason=reason, status=0, detail=detail)
