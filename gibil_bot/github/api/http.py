"""Requests to the API, its responses, and the failure to get a response.

Pure. Only this file inserts external values into an API path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import quote

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.markdown import line
from gibil_bot.model import Priority

_T = TypeVar("_T")
# Tokens of every kind, including the long ones introduced in 2026 with dots and dashes.
_TOKEN = re.compile(r"\b(?:gh[a-z]|github_pat)_[A-Za-z0-9._-]+")
_LAST_PAGE = re.compile(r'[?&]page=(\d{1,6})[^>]*>; rel="last"')


class Unanswered(Exception):
    """No response arrived. `sent`: the request may have taken effect anyway."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = _TOKEN.sub("***", line(reason, 200))
        self.sent = sent


class _Message(msgspec.Struct):
    message: str = ""
    errors: list[object] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def read(self, kind: type[_T]) -> _T:
        """Decode the JSON, ignoring unknown fields. Raises GitHubError if it has another form."""
        try:
            return msgspec.json.decode(self.content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise GitHubError(
                f"GitHub's answer is not as documented ({line(str(error), 200)}); check that GIBIL_GITHUB_URL is its API's URL",
                status=self.status,
                retry_after_s=60,
            ) from None

    @property
    def last_page(self) -> int:
        """Return the number of a list's last page, by the answer with its first one; 1 if there is no other.

        https://docs.github.com/en/rest/using-the-rest-api/using-pagination-in-the-rest-api#using-link-headers
        """
        found = _LAST_PAGE.search(self.headers.get("link", ""))
        return int(found[1]) if found else 1

    @property
    def message(self) -> str:
        """Return GitHub's error message, in one line and without tokens."""
        try:
            found = msgspec.json.decode(self.content, type=_Message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "no message"
        details = [_detail(error) for error in found.errors[:3]]
        message = "; ".join(part for part in (found.message, *details) if part)
        return _TOKEN.sub("***", line(message, 300)) or "no message"


def _detail(error: object) -> str:
    """Describe an error: https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#validation-failed"""
    if isinstance(error, str):
        return error
    if isinstance(error, dict):
        return " ".join(str(error[key]) for key in ("field", "code", "message") if error.get(key))
    return ""


APP = 0
"""Means the App itself where an installation's id is expected; installation ids start at 1."""

_SLUG = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. `route` has names in braces, replaced from `path_parameters`; it also names the request in `requests`."""

    method: str
    route: str
    path_parameters: Mapping[str, str | int] = field(default_factory=dict)
    installation_id: int = APP
    query: Mapping[str, str | int] | None = None
    body: Mapping[str, object] | None = None
    answers: frozenset[int] = frozenset()
    """HTTP errors that count as an answer to this request."""
    repeatable: bool | None = None
    """Whether sending it twice has the same effect as once; None: true for every method but POST."""
    is_comment: bool = False
    """Comments notify people, so they are limited most."""
    priority: Priority = Priority.RESULT
    """Of a write: how much of the rate limit it leaves to more important writes."""
    accept: str = "application/vnd.github+json"
    at_most: int | None = None

    @property
    def name(self) -> str:
        return f"{self.method} {self.route}"

    @property
    def may_repeat(self) -> bool:
        return self.method != "POST" if self.repeatable is None else self.repeatable

    @property
    def path(self) -> str:
        """Return the path. Raises GitHubError for values that would change its structure."""
        return self.route.format_map({name: _segment(name, str(value)) for name, value in self.path_parameters.items()})


def mint_request(installation_id: int, body: Mapping[str, object] | None = None) -> Request:
    """Return a request for an installation token. Repeatable: an unused token does no harm and expires within the hour.

    https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
    """
    return Request(
        method="POST",
        route="/app/installations/{installation}/access_tokens",
        path_parameters={"installation": installation_id},
        body=body,
        repeatable=True,
    )


def _segment(name: str, value: str) -> str:
    """Return a value as a path segment that can't change the path."""
    parts = value.split("/") if name in ("repository", "path") else [value]
    if any(part in ("", ".", "..") for part in parts):
        raise GitHubError(f"{name} {value[:80]!r} is not allowed in an API path; no request was sent", status=404)
    if name == "repository" and (len(parts) != 2 or not all(_SLUG.fullmatch(part) for part in parts)):
        raise GitHubError(f"{value[:80]!r} is not owner/name; no request was sent", status=404)
    return "/".join(quote(part, safe="") for part in parts)
