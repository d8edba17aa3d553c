"""Access tokens of people for MCP over HTTP, in a file of the data directory that contains only their hashes.

A token has 256 random bits, so its SHA-256 can't be reversed by guessing, and a slow hash would only slow down the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec import structs

from gibil_bot import durable_files
from gibil_bot.errors import GibilError, UsageError

SCOPES = {
    "runs:read": "read runs and their logs",
    "runs:write": "start and cancel runs",
    "machines": "use machines through `gibil mcp --http`: with its user's credentials for git, and the files of its directory",
}
DEFAULT_S = 90 * 24 * 3600
LONGEST_S = 366 * 24 * 3600
MOST_TOKENS = 1000
FILE = "tokens.json"

_TOKEN = re.compile(r"gibil_([a-z2-7]{10})_[0-9a-f]{64}", re.ASCII)
_LOGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", re.ASCII)
_LISTED_AFTER_END = timedelta(days=30)
_LETTERS = "abcdefghijklmnopqrstuvwxyz234567"
_NO_HASH = "0" * 64


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is stored. A new field needs a default."""

    id: str
    """The middle part of the token, which isn't secret."""
    login: str
    """The GitHub account whose permissions it has."""
    scopes: tuple[str, ...]
    sha256: str
    created_at: datetime
    expires_at: datetime
    revoked_at: datetime | None = None

    def state(self, now: datetime) -> str:
        """Return `active`, `revoked` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        return "active" if now < self.expires_at else "expired"


class _File(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[AccessToken] = msgspec.field(default_factory=list)


class AccessTokens:
    """The tokens of one data directory. A change by another process counts from the next call on."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE
        self._read_at: tuple[int, int, int] | None = None
        self._tokens: dict[str, AccessToken] = {}

    def create(self, login: str, scopes: tuple[str, ...], ttl_s: int, now: datetime | None = None) -> tuple[AccessToken, str]:
        """Store a new token; return its record and the token, which can't be shown again. Raises UsageError, GibilError."""
        if not _LOGIN.fullmatch(login):
            raise UsageError(f"{login!r} is not a GitHub account: write the name that is in its profile's address")
        unknown = [scope for scope in scopes if scope not in SCOPES]
        if unknown or not scopes:
            got = f", got {unknown[0]!r}" if unknown else ""
            raise UsageError(f"a token needs one or more of the scopes {', '.join(SCOPES)}{got}")
        if not 60 <= ttl_s <= LONGEST_S:
            raise UsageError("a token is valid for at least one minute and at most 366 days")
        now = now or datetime.now(UTC)
        identifier = "".join(secrets.choice(_LETTERS) for _ in range(10))
        token = f"gibil_{identifier}_{secrets.token_hex(32)}"
        record = AccessToken(
            id=identifier,
            login=login,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            sha256=_digest(token),
            created_at=now,
            expires_at=now + timedelta(seconds=ttl_s),
        )
        with self._changing() as tokens:
            kept = [each for each in tokens if now < each.expires_at + _LISTED_AFTER_END]
            if len(kept) >= MOST_TOKENS:
                raise UsageError(f"there are {MOST_TOKENS} tokens already; expired ones are deleted after 30 days")
            tokens[:] = [*kept, record]
        return record, token

    def revoke(self, identifier: str, now: datetime | None = None) -> AccessToken:
        """Revoke the token with that id; a revoked one stays revoked. Raises UsageError with code TOKEN_NOT_FOUND."""
        with self._changing() as tokens:
            for index, token in enumerate(tokens):
                if token.id == identifier:
                    if token.revoked_at is None:
                        tokens[index] = structs.replace(token, revoked_at=now or datetime.now(UTC))
                    return tokens[index]
        raise UsageError(f"there is no token {identifier[:20]!r}; `gibil token list` lists them", code="TOKEN_NOT_FOUND")

    def all(self) -> list[AccessToken]:
        """Return all tokens, oldest first. Raises GibilError if the file can't be read."""
        return list(self._current().values())

    def verify(self, token: str, now: datetime | None = None) -> AccessToken | None:
        """Return the record of a valid token; None for any other text. Raises GibilError if the file can't be read.

        The time doesn't depend on how much of a token is right.
        """
        match = _TOKEN.fullmatch(token)
        record = self._current().get(match[1]) if match else None
        expected = record.sha256 if record is not None else _NO_HASH
        is_equal = hmac.compare_digest(_digest(token), expected)
        if record is None or not is_equal or record.state(now or datetime.now(UTC)) != "active":
            return None
        return record

    def _current(self) -> dict[str, AccessToken]:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            self._tokens, self._read_at = {}, None
            return self._tokens
        except OSError as error:
            raise self._unreadable(error) from error
        version = status.st_mtime_ns, status.st_ino, status.st_size
        if version != self._read_at:
            self._tokens = {token.id: token for token in self._read()}
            self._read_at = version
        return self._tokens

    def _read(self) -> list[AccessToken]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_File).tokens
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError, RecursionError) as error:
            raise self._unreadable(error) from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[list[AccessToken]]:
        """Lock the file, and replace it with the changed list unless the block raises."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._path.with_name(f"{FILE}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = self._read()
            yield tokens
            self._write(tokens)
        finally:
            os.close(lock)

    def _write(self, tokens: list[AccessToken]) -> None:
        content = msgspec.json.format(msgspec.json.encode(_File(tokens=tokens)), indent=2) + b"\n"
        try:
            durable_files.replace(self._path, content)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unreadable(self, error: Exception) -> GibilError:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return GibilError(f"{self._path} can't be read: {why}; restore it, or delete it and create new tokens", code="TOKENS")

    def _unwritable(self, error: OSError) -> GibilError:
        return GibilError(f"{self._path} can't be written: {error.strerror}", code="TOKENS")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
