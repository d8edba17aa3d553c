"""The double authenticates as GitHub does: App JWTs, installation tokens, their scope and their expiry."""

from __future__ import annotations

import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.contracts.double_kit import REPOSITORY, App, app_jwt, signed_in


async def test_an_app_is_identified_by_its_key(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        answer = await app.as_app("GET", "/app")
        assert answer.json()["slug"] == "gibil"
        assert answer.json()["permissions"]["checks"] == "write"
        assert answer.headers["x-github-request-id"].count(":") == 3


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"exp": int(time.time()) + 10**6}, 401, "too far in the future"),
        ({"exp": int(time.time()) - 5}, 401, "'exp'"),
        ({"exp": None}, 401, "'exp'"),
        ({"iat": int(time.time()) + 10**6}, 401, "'iat'"),
        ({"iat": None}, 401, "'iat'"),
        ({"iss": "1"}, 404, "Integration not found"),
    ],
)
async def test_a_jwt_with_wrong_claims_is_rejected(tmp_path: Path, changes: dict[str, object], status: int, words: str) -> None:
    async with signed_in(tmp_path) as app:
        answer = await app.ask("GET", "/app", token=app_jwt(app.github, **changes))
        assert (answer.status_code, words in answer.json()["message"]) == (status, True), answer.text


async def test_a_jwt_signed_with_another_key_is_rejected(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = other.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        now = int(time.time())
        claims = {"iat": now - 10, "exp": now + 60, "iss": str(app.github.app_id)}
        for token in (jwt.encode(claims, pem, algorithm="RS256"), jwt.encode(claims, "x" * 32, algorithm="HS256"), "a.b.c"):
            answer = await app.ask("GET", "/app", token=token)
            assert (answer.status_code, answer.json()["message"]) == (401, "A JSON web token could not be decoded")


async def test_app_endpoints_need_a_jwt_and_repository_endpoints_a_token(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        assert (await app.ask("GET", "/app", token=await app.token())).status_code == 401
        comments = f"/repos/{REPOSITORY}/issues/1/comments"
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "ada")
        assert (await app.as_app("POST", comments, json={"body": "x"})).status_code == 403
        assert (await app.ask("POST", comments, json={"body": "x"})).status_code == 401


async def test_a_token_expires_after_an_hour_and_can_be_revoked(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        first, second = await app.token(), await app.token()
        assert (await app.ask("DELETE", "/installation/token", token=first)).status_code == 204
        gone = await app.ask("GET", f"/repos/{REPOSITORY}", token=first)
        assert (gone.status_code, gone.json()["message"]) == (401, "Bad credentials")
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=second)).status_code == 200
        app.github.advance(3601)
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=second)).status_code == 401
        third = await app.token()
        assert app.github.revoke_tokens() >= 1
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=third)).status_code == 401


async def test_a_token_can_access_only_its_repositories(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        first = await app.github.add_repository("ada/secret", {"a": "1"}, private=True)
        await app.github.add_repository("ada/other", {"a": "1"}, private=True)
        await app.github.add_repository("eve/private", {"a": "1"}, private=True)
        scoped = await app.token(repository_ids=[first.id])
        whole = await app.token()
        seen = {
            name: ((await app.ask("GET", f"/repos/{name}", token=scoped)).status_code, await _status(app, name, whole))
            for name in ("ada/secret", "ada/other", "eve/private", REPOSITORY, "ada/none")
        }
        assert seen == {
            "ada/secret": (200, 200),
            "ada/other": (404, 200),
            "eve/private": (404, 404),
            REPOSITORY: (200, 200),  # public
            "ada/none": (404, 404),
        }
        write = await app.ask("POST", f"/repos/{REPOSITORY}/check-runs", token=scoped, json={"name": "x", "head_sha": "0" * 40})
        assert write.json()["message"] == "Resource not accessible by integration"


async def _status(app: App, name: str, token: str) -> int:
    return (await app.ask("GET", f"/repos/{name}", token=token)).status_code


async def test_a_token_has_only_its_permissions(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "ada")
        reader = await app.token(permissions={"contents": "read"})
        comments = f"/repos/{REPOSITORY}/issues/1/comments"
        refused = await app.ask("POST", comments, token=reader, json={"body": "x"})
        assert (refused.status_code, refused.json()["message"]) == (403, "Resource not accessible by integration")
        assert refused.headers["x-accepted-github-permissions"] == "issues=write; pull_requests=write"
        writer = await app.token(permissions={"pull_requests": "write"})
        assert (await app.ask("POST", comments, token=writer, json={"body": "x"})).status_code == 201


async def test_a_tokens_permissions_can_only_be_reduced(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        path = f"/app/installations/{app.github.installation(REPOSITORY).id}/access_tokens"
        for wanted in (
            {"permissions": {"contents": "admin"}},
            {"permissions": {"administration": "read"}},
            {"repository_ids": [5]},
            {"repositories": ["nothing"]},
        ):
            assert (await app.as_app("POST", path, json=wanted)).status_code == 422
        assert (await app.as_app("POST", "/app/installations/7/access_tokens", json={})).status_code == 404


async def test_stateless_tokens_are_long_and_contain_dots(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        path = f"/app/installations/{app.github.installation(REPOSITORY).id}/access_tokens"
        answer = await app.as_app("POST", path, headers={"X-GitHub-Stateless-S2S-Token": "enabled"})
        token = answer.json()["token"]
        assert len(token) > 400
        assert token.count(".") == 2
        assert (await app.ask("GET", f"/repos/{REPOSITORY}/installation", token=token)).status_code == 401
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=token)).status_code == 200


async def test_an_uninstalled_app_has_no_access(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        token, number = await app.token(), app.github.installation(REPOSITORY).id
        app.github.uninstall(REPOSITORY)
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=token)).status_code == 401
        assert (await app.as_app("POST", f"/app/installations/{number}/access_tokens", json={})).status_code == 404


async def test_a_users_permission_follows_from_the_role(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.add_repository("ada/secret", {"a": "1"}, private=True)
        for login, role in {"mia": "maintain", "tom": "triage", "wes": "write", "nic": "none"}.items():
            app.github.set_permission(REPOSITORY, login, role)
        app.github.add_user("stranger")
        token = await app.token()

        async def permission(name: str, login: str) -> tuple[int, str, str]:
            answer = await app.ask("GET", f"/repos/{name}/collaborators/{login}/permission", token=token)
            return answer.status_code, answer.json().get("permission", ""), answer.json().get("role_name", "")

        assert await permission(REPOSITORY, "ada") == (200, "admin", "admin")
        assert await permission(REPOSITORY, "mia") == (200, "write", "maintain")
        assert await permission(REPOSITORY, "tom") == (200, "read", "triage")
        assert await permission(REPOSITORY, "WES") == (200, "write", "write")
        assert await permission(REPOSITORY, "nic") == (200, "none", "none")
        assert await permission(REPOSITORY, "stranger") == (200, "read", "read")
        assert await permission("ada/secret", "stranger") == (200, "none", "none")
        assert (await permission(REPOSITORY, "nobody"))[0] == 404


async def test_rate_limits_are_counted_and_enforced_for_each_installation(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.state.rate_limit = 3
        token = await app.token()
        answers = [await app.ask("GET", f"/repos/{REPOSITORY}", token=token) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 403]
        assert [answer.headers["x-ratelimit-remaining"] for answer in answers] == ["2", "1", "0", "0"]
        assert "rate limit exceeded" in answers[-1].json()["message"]
        free = await app.ask("GET", "/rate_limit", token=token)
        assert free.status_code == 403  # this query is free, but its response carries the limit
        app.github.advance(3601)
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=await app.token())).status_code == 200
