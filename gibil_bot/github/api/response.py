"""An HTTP answer as plain values, and the absence of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.markdown import line

_T = TypeVar("_T")
# Tokens of every kind, the long ones of 2026 with dots and dashes too.
_TOKEN = re.compile(r"\b(?:gh[a-z]|github_pat)_[A-Za-z0-9._-]+")


class Unanswered(Exception):
    """No answer came. `sent`: the request may have had its effect all the same."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.reason = _TOKEN.sub("***", line(reason, 200))
        self.sent = sent


class _Message(msgspec.Struct):
    message: str = ""
    errors: list[object] = msgspec.field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    def read(self, kind: type[_T]) -> _T:
        """The JSON, leniently. Raises GitHubError when it is something else."""
        try:
            return msgspec.json.decode(self.content, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise GitHubError(
                f"GitHub's answer is not what it documents ({line(str(error), 200)}); is GIBIL_GITHUB_URL its API's address?",
                status=self.status,
                retry_after_s=60,
            ) from None

    @property
    def message(self) -> str:
        """What GitHub says is wrong, in one line and without tokens."""
        try:
            found = msgspec.json.decode(self.content, type=_Message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return "no message"
        details = [_detail(error) for error in found.errors[:3]]
        said = "; ".join(part for part in (found.message, *details) if part)
        return _TOKEN.sub("***", line(said, 300)) or "no message"


def _detail(error: object) -> str:
    """https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#validation-failed"""
    if isinstance(error, str):
        return error
    if isinstance(error, dict):
        return " ".join(str(error[key]) for key in ("field", "code", "message") if error.get(key))
    return ""
