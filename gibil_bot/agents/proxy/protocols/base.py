"""What the protocols share: endpoints, checked requests, and the counts of an answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from gibil_bot.agent_task import Usage

Json: TypeAlias = dict[str, Any]

BYTES_PER_TOKEN = 4
"""For estimates of what was used: what English text and code have on average."""
_WORST_BYTES_PER_TOKEN = 3
"""For estimates before a call, which should be too high rather than too low."""
_IMAGE_TOKENS = 4000
"""Of one image, at most: https://platform.claude.com/docs/en/build-with-claude/vision counts pixels / 750."""
_DOCUMENT_BYTES_PER_TOKEN = 15
"""Of a PDF in base64: vendors count the text and an image of each page."""
_TEXT_BYTES_PER_TOKEN = 4
"""Of a text in base64, which has a third more bytes than the text."""
_MOST_LINE_BYTES = 8 * 1024 * 1024
_MOST_ANSWER_BYTES = 32 * 1024 * 1024


class Rejected(Exception):
    """A request that the proxy doesn't pass on. The message names what isn't allowed, and is for the user of the agent."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A path of an API, matched."""

    path: str
    is_paid: bool
    """False: it counts tokens."""
    model: str = ""
    """If the path names it."""
    streams: bool | None = None
    """None: the body decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a task may ask for."""

    max_output_tokens: int
    is_vendor: bool = True
    """Whether the vendor itself answers, not another server that speaks its protocol."""

    def output_tokens(self, asked: int | None) -> int:
        """Return how many tokens the answer to a call may have. `asked`: its own limit, if it has one."""
        return self.max_output_tokens if asked is None else min(asked, self.max_output_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request as it goes to the vendor."""

    path: str
    """With its query string."""
    body: bytes
    model: str
    streams: bool
    is_paid: bool
    input_tokens: int
    """An estimate of the most."""
    max_output_tokens: int


class Counts:
    """The tokens of one answer, collected while it passes. Later counts replace earlier ones."""

    def __init__(self) -> None:
        self.input: int | None = None
        self.cache_read = self.cache_write_5m = self.cache_write_1h = 0
        self.output: int | None = None
        self.text_bytes = 0
        """Of what the model has written so far, for an estimate."""
        self.is_final = False
        """Whether the vendor's last counts were seen."""

    def usage(self, *, input_tokens: int, least_output_tokens: int = 0) -> Usage:
        """Return the counts; those which the vendor didn't send are estimated.

        `input_tokens`: the estimate for the request. `least_output_tokens`: of an answer without its last counts.
        """
        estimated_output = -(-self.text_bytes // BYTES_PER_TOKEN)
        output = self.output or 0
        return Usage(
            input=input_tokens if self.input is None else max(0, self.input),
            cache_read=max(0, self.cache_read),
            cache_write_5m=max(0, self.cache_write_5m),
            cache_write_1h=max(0, self.cache_write_1h),
            output=max(0, output if self.is_final else max(output, estimated_output, least_output_tokens)),
            is_estimated=not self.is_final,
        )


class ModelProtocol(ABC):
    """One API."""

    name: str
    refused_status: int
    """With which its programs end after one call. Some of them repeat other statuses for minutes."""
    least_output_tokens: int = 1
    """The lowest limit that the API accepts."""
    ends_with_error: bool = False
    """Whether a stream may end cleanly after `error_event`. Otherwise programs could read that as a complete answer."""

    @abstractmethod
    def endpoint(self, path: str) -> Endpoint | None:
        """Return the endpoint of an exact path, or None."""

    @abstractmethod
    def prepare(self, endpoint: Endpoint, query: str, body: Json, bounds: Bounds) -> Prepared:
        """Check and clamp a request. Raises Rejected."""

    @abstractmethod
    def read(self, data: bytes, counts: Counts) -> None:
        """Read one event, or a whole answer. Raises msgspec.DecodeError if it is neither."""

    @abstractmethod
    def error(self, status: int, message: str, code: str = "") -> Json:
        """Return the body of an error answer. `code`: for programs, in protocols that have one."""

    @abstractmethod
    def key_headers(self, key: str) -> dict[str, str]:
        """Return the headers that authenticate at the vendor."""

    def headers(self, received: Mapping[str, str]) -> dict[str, str]:
        """Return the client's headers that the vendor gets, in addition to content-type and accept."""
        return {}

    def error_event(self, message: str) -> bytes:
        """Return an event that reports an error in a stream that has begun."""
        return b"data: " + msgspec.json.encode(self.error(500, message)) + b"\n\n"


class Tap:
    """Reads the counts of an answer that passes in chunks: server-sent events, or one JSON object."""

    def __init__(self, protocol: ModelProtocol, *, streams: bool) -> None:
        self.counts = Counts()
        self._protocol, self._streams = protocol, streams
        self._rest = bytearray()
        self._is_lost = False

    def feed(self, chunk: bytes) -> None:
        if self._is_lost:
            return
        self._rest += chunk
        if self._streams and b"\n" in chunk:
            *lines, rest = bytes(self._rest).split(b"\n")
            self._rest = bytearray(rest)
            for line in lines:
                if line.startswith(b"data:"):
                    self._read(line[5:])
        if len(self._rest) > (_MOST_LINE_BYTES if self._streams else _MOST_ANSWER_BYTES):
            self._is_lost = True
            self._rest.clear()

    def end(self) -> None:
        """Read what came last."""
        if self._streams:
            self.feed(b"\n")
        elif not self._is_lost:
            self._read(bytes(self._rest))

    @property
    def is_between_events(self) -> bool:
        return self._streams and not self._rest

    def _read(self, data: bytes) -> None:
        try:
            self._protocol.read(data, self.counts)
        except (msgspec.DecodeError, RecursionError):
            return  # `[DONE]`, or an event of no interest


# --- checks of requests


def names(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


def known_fields(body: Json, fields: Iterable[str]) -> Json:
    """Return the known fields that aren't null."""
    known = frozenset(fields)
    return {name: value for name, value in body.items() if name in known and value is not None}


def reject_fields(body: Json, fields: Mapping[str, str]) -> None:
    """Raise Rejected if one of the fields has a value. `fields`: name → what it is."""
    for name, what in fields.items():
        if body.get(name) not in (None, False, [], {}, ""):
            raise Rejected(f"'{name}' isn't allowed: {what}")


def text_field(body: Json, name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise Rejected(f"'{name}' must be a string")
    return value


def flag(body: Json, name: str) -> bool:
    """Return a boolean field; false if it is missing."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Rejected(f"'{name}' must be true or false")
    return value


def count(body: Json, name: str) -> int | None:
    """Return a number of tokens, or None if the field is missing."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise Rejected(f"'{name}' must be a whole number")
    return value


def objects(value: object, where: str) -> list[Json]:
    """Return a list of objects; an empty one for null."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Rejected(f"'{where}' must be a list of objects")
    return value


def kind(value: Json, where: str, default: str = "") -> str:
    """Return the field `type`."""
    found = value.get("type", default)
    if not isinstance(found, str):
        raise Rejected(f"the type in '{where}' must be a string")
    return found


def shown(value: str) -> str:
    """Return text from a request for a message: short, on one line."""
    text = "".join(c if c.isprintable() else "?" for c in value[:80])
    return f"'{text}{'…' if len(value) > 80 else ''}'"


def reject_kind(value: str, where: str) -> Rejected:
    return Rejected(f"{shown(value)} in '{where}' isn't allowed: the vendor would run or fetch it outside of the machine")


def data_url_bytes(url: object, where: str) -> int:
    """Return the size of a `data:` URL. Raises Rejected for any other, which the vendor would fetch."""
    if not isinstance(url, str) or not url.startswith("data:"):
        raise Rejected(f"only data: URLs are allowed in '{where}': the vendor would fetch others from outside of the machine")
    return len(url)


def is_pdf_url(url: str) -> bool:
    return url[:30].lower().startswith("data:application/pdf")


class Size:
    """Estimates the input of a request: media count far less than the bytes of their base64."""

    def __init__(self) -> None:
        self._media_bytes = 0
        self._media_tokens = 0

    def image(self, size: int) -> None:
        self._media_bytes += size
        self._media_tokens += _IMAGE_TOKENS

    def document(self, size: int, *, is_pdf: bool) -> None:
        """`is_pdf`: it isn't text; sounds and videos count like a PDF."""
        self._media_bytes += size
        self._media_tokens += _IMAGE_TOKENS + size // (_DOCUMENT_BYTES_PER_TOKEN if is_pdf else _TEXT_BYTES_PER_TOKEN)

    def tokens(self, body: bytes) -> int:
        return max(1, (len(body) - self._media_bytes) // _WORST_BYTES_PER_TOKEN) + self._media_tokens


# --- both protocols of OpenAI

_OPENAI_TYPES = {400: "invalid_request_error", 402: "insufficient_quota", 403: "permission_error", 404: "not_found_error"}


class OpenAIDetails(Struct):
    """Of the input's tokens, which both protocols count as a whole."""

    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class OpenAIProtocol(ModelProtocol):
    """One of OpenAI's APIs, each of which has one path."""

    path: str

    def endpoint(self, path: str) -> Endpoint | None:
        return Endpoint(path=path, is_paid=True) if path == self.path else None

    def error(self, status: int, message: str, code: str = "") -> Json:
        """https://platform.openai.com/docs/guides/error-codes/api-errors"""
        kind = _OPENAI_TYPES.get(status, "api_error")
        return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}

    def key_headers(self, key: str) -> dict[str, str]:
        return {"authorization": f"Bearer {key}"}

    def set_counts(self, counts: Counts, tokens: int, details: OpenAIDetails | None, output: int) -> None:
        """Set what an answer used. `tokens`: of the whole input."""
        details = details or OpenAIDetails()
        counts.cache_read = details.cached_tokens or 0
        counts.cache_write_5m = details.cache_write_tokens or 0
        counts.input = tokens - counts.cache_read - counts.cache_write_5m
        counts.output = output


# --- counts


def total(*values: int | None) -> int:
    return sum(value or 0 for value in values)


def size(value: msgspec.Raw) -> int:
    """Return the bytes of a part of an event; 0 if the event doesn't have it."""
    return len(memoryview(value))


def sizes(values: Sequence[msgspec.Raw]) -> int:
    return sum(map(size, values))
