"""Access tokens: hashed at rest, scopes, expiry, revocation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gibil_bot.access_tokens import FILE, LONGEST_S, AccessTokens
from gibil_bot.errors import GibilError, UsageError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BOTH = ("runs:write", "runs:read")


def test_a_token_is_valid_until_its_expiry(tmp_path: Path) -> None:
    tokens = AccessTokens(tmp_path)
    record, token = tokens.create("ada", BOTH, 3600, NOW)
    assert record.scopes == ("runs:read", "runs:write")
    assert tokens.verify(token, NOW) == record
    assert tokens.verify(token, NOW + timedelta(seconds=3599)) == record
    assert tokens.verify(token, NOW + timedelta(seconds=3600)) is None


def test_the_file_contains_no_token_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    _, token = AccessTokens(tmp_path).create("ada", BOTH, 3600)
    file = tmp_path / FILE
    assert token.rpartition("_")[2] not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_another_process_can_revoke_a_token(tmp_path: Path) -> None:
    server, operator = AccessTokens(tmp_path), AccessTokens(tmp_path)
    record, token = operator.create("ada", BOTH, 3600)
    _, other = operator.create("bob", BOTH, 3600)
    assert server.verify(token) is not None
    operator.revoke(record.id)
    assert server.verify(token) is None
    assert server.verify(other) is not None
    assert [each.state(datetime.now(UTC)) for each in server.all()] == ["revoked", "active"]


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: f"{token}\n",
        lambda token: token.upper(),
        lambda token: "gibil_aaaaaaaaaa_" + token.rpartition("_")[2],
        lambda token: "\ud800",
    ],
)
def test_any_other_text_is_not_a_token(tmp_path: Path, change: object) -> None:
    tokens = AccessTokens(tmp_path)
    _, token = tokens.create("ada", BOTH, 3600)
    assert callable(change)
    assert tokens.verify(change(token)) is None


@pytest.mark.parametrize(
    ("login", "scopes", "ttl_s"),
    [
        ("", BOTH, 3600),
        ("a b", BOTH, 3600),
        ("../x", BOTH, 3600),
        ("ada", (), 3600),
        ("ada", ("admin",), 3600),
        ("ada", BOTH, 0),
        ("ada", BOTH, LONGEST_S + 1),
    ],
)
def test_invalid_requests_create_no_token(tmp_path: Path, login: str, scopes: tuple[str, ...], ttl_s: int) -> None:
    with pytest.raises(UsageError):
        AccessTokens(tmp_path).create(login, scopes, ttl_s)
    assert AccessTokens(tmp_path).all() == []


def test_a_damaged_file_rejects_every_token(tmp_path: Path) -> None:
    tokens = AccessTokens(tmp_path)
    _, token = tokens.create("ada", BOTH, 3600)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(GibilError, match="can't be read"):
        tokens.verify(token)


def test_old_expired_tokens_are_forgotten(tmp_path: Path) -> None:
    tokens = AccessTokens(tmp_path)
    tokens.create("ada", BOTH, 3600, NOW)
    tokens.create("bob", BOTH, 3600, NOW + timedelta(days=32))
    assert [each.login for each in tokens.all()] == ["bob"]


def test_an_unknown_token_can_not_be_revoked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no token 'aaaaaaaaaa'"):
        AccessTokens(tmp_path).revoke("aaaaaaaaaa")
