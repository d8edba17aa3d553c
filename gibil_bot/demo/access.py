"""Identities and permissions: App JWTs are verified, tokens of installations and users are restricted to their scope."""

from __future__ import annotations

import base64
import binascii
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from gibil_bot.demo.records import PERMISSION_LEVELS, ROLES, PersonalToken, Repository, Token
from gibil_bot.demo.state import State

DOCUMENTATION = "https://docs.github.com/rest"


class Refusal(Exception):
    """GitHub's error response; `rest.refusal_response` makes its JSON."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        errors: Sequence[dict[str, str] | str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.headers = dict(headers or {})


@dataclass(frozen=True, slots=True)
class Caller:
    """`kind` is anonymous, app, installation (which has a `token`) or user (which has a `personal` token)."""

    kind: str
    token: Token | None = None
    personal: PersonalToken | None = None

    @property
    def rate_key(self) -> str:
        """Return the key for rate limits, which count per installation, per user, and per App for JWTs.

        https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api
        """
        if self.personal is not None:
            return f"user ID {self.personal.user.id}"
        return f"installation:{self.token.installation_id}" if self.token else self.kind


ANONYMOUS = Caller("anonymous")


def identify(state: State, public_key: rsa.RSAPublicKey, authorization: str | None) -> Caller:
    """Return the caller of a header. Raises Refusal 401 for wrong, expired or revoked credentials.

    https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api
    """
    if not authorization:
        return ANONYMOUS
    scheme, _, credential = authorization.partition(" ")
    credential = credential.strip()
    if scheme.lower() == "basic":
        credential = _basic_password(credential)
    elif scheme.lower() not in ("bearer", "token"):
        raise Refusal(401, "Bad credentials")
    token = state.tokens.get(credential)
    if token is not None:
        # Expired and revoked tokens: https://docs.github.com/en/rest/apps/installations#revoke-an-installation-access-token
        if token.revoked or token.expires_at <= state.now() or token.installation_id not in state.installations:
            raise Refusal(401, "Bad credentials")
        return Caller("installation", token)
    personal = state.personal_tokens.get(credential)
    if personal is not None:
        if personal.revoked:
            raise Refusal(401, "Bad credentials")
        return Caller("user", personal=personal)
    if credential.count(".") == 2 and not credential.startswith("ghs_"):
        _check_jwt(state, public_key, credential)
        return Caller("app")
    raise Refusal(401, "Bad credentials")


def _basic_password(credential: str) -> str:
    try:
        return base64.b64decode(credential, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        raise Refusal(401, "Bad credentials") from None


def _check_jwt(state: State, public_key: rsa.RSAPublicKey, jwt: str) -> None:
    """Check RS256, `iss` as the App's id or client id, `iat` in the past, `exp` at most ten minutes ahead.

    https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app
    """
    undecodable = Refusal(401, "A JSON web token could not be decoded")
    signed, _, signature = jwt.rpartition(".")
    header_part, _, claims_part = signed.partition(".")
    try:
        header = json.loads(_base64url(header_part))
        claims = json.loads(_base64url(claims_part))
        public_key.verify(_base64url(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (ValueError, InvalidSignature):
        raise undecodable from None
    if not isinstance(header, dict) or header.get("alg") != "RS256" or not isinstance(claims, dict):
        raise undecodable
    now = time.time()
    issued, expires, issuer = claims.get("iat"), claims.get("exp"), claims.get("iss")
    if not isinstance(issued, int) or issued > now:
        message = "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
        raise Refusal(401, message)
    if not isinstance(expires, int) or expires <= now:
        message = "'Expiration time' claim ('exp') must be a numeric value representing the future time"
        raise Refusal(401, message + " at which the assertion expires")
    if expires > now + 600:
        raise Refusal(401, "'Expiration time' claim ('exp') is too far in the future")
    if str(issuer) not in (str(state.app_id), state.client_id):
        raise Refusal(404, "Integration not found")


def _base64url(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


def covers(token: Token, repository: Repository) -> bool:
    """Return whether the repository belongs to the token's installation, and to the token's list if it has one."""
    belongs = repository.installation_id == token.installation_id
    return belongs and (token.repository_ids is None or repository.id in token.repository_ids)


def sees(personal: PersonalToken, repository: Repository) -> bool:
    """Return whether the user can read the repository, and the token includes it."""
    chosen = personal.repository_ids is None or repository.id in personal.repository_ids
    return chosen and repository.role_of(personal.user.login) != "none"


def may_write(personal: PersonalToken, repository: Repository) -> bool:
    """https://docs.github.com/en/organizations/managing-user-access-to-your-organizations-repositories/managing-repository-roles/repository-roles-for-an-organization"""
    return ROLES[repository.role_of(personal.user.login)] in ("write", "admin")


def allows(token: Token | PersonalToken, permission: str, level: str) -> bool:
    held = token.permissions.get(permission, "none")
    return PERMISSION_LEVELS.index(held) >= PERMISSION_LEVELS.index(level)


def find_repository(state: State, caller: Caller, full_name: str, *needs: tuple[str, str]) -> Repository:
    """Return the repository if the caller has one of `needs` (permission, level).

    404 if the caller may not know that it exists, 401 for anonymous writes, 403 for a missing permission:
    https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api. Public repositories are readable for all
    callers.
    """
    repository = state.repositories.get(full_name.lower())
    if repository is None or not may_see(caller, repository):
        raise Refusal(404, "Not Found")
    covered = _covered(caller, repository)
    reading = all(level == "read" for _, level in needs)
    if reading and not repository.private:
        return repository
    if caller.kind == "anonymous":
        raise Refusal(401, "Requires authentication")
    token = caller.token or caller.personal
    if not covered or token is None or not any(allows(token, *need) for need in needs):
        accepted = "; ".join(f"{permission}={level}" for permission, level in needs)
        headers = {"X-Accepted-GitHub-Permissions": accepted}
        who = "personal access token" if caller.personal else "integration"
        raise Refusal(403, f"Resource not accessible by {who}", headers=headers)
    if repository.archived and not reading:
        # https://docs.github.com/en/repositories/archiving-a-github-repository/archiving-repositories
        raise Refusal(403, "Repository was archived so is read-only.")
    return repository


def may_see(caller: Caller, repository: Repository) -> bool:
    """Return whether the caller may know that the repository exists."""
    return not repository.private or _covered(caller, repository)


def _covered(caller: Caller, repository: Repository) -> bool:
    if caller.personal is not None:
        return sees(caller.personal, repository)
    return caller.token is not None and covers(caller.token, repository)
