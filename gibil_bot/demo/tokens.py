"""The tokens that GitHub issues: an installation's, valid for an hour, and users' own."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import timedelta

from gibil_bot.demo.actions import Hub
from gibil_bot.demo.records import PERSONAL_PERMISSIONS, Installation, PersonalToken, Token, User

TOKEN_LIFE = timedelta(hours=1)
"""https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app"""


def mint_token(
    hub: Hub, installation: Installation, permissions: Mapping[str, str], ids: Sequence[int] | None, *, stateless: bool
) -> Token:
    """Create a token for one hour. Stateless ones have about 520 characters with dots; a header forces them:

    https://github.blog/changelog/2026-05-15-github-app-installation-tokens-per-request-override-header
    """
    state = hub.state
    if stateless:
        # Only GitHub can read the payload: random text of the right shape.
        value = f"ghs_{state.app_id}_{secrets.token_urlsafe(27)}.{secrets.token_urlsafe(90)}.{secrets.token_urlsafe(256)}"
    else:
        value = "ghs_" + secrets.token_hex(18)
    chosen = frozenset(ids) if ids is not None else None
    token = Token(value, installation.id, dict(permissions), chosen, state.now() + TOKEN_LIFE)
    state.tokens[value] = token
    state.touch()
    return token


def personal_token(hub: Hub, person: User, permissions: Mapping[str, str] | None, only: Sequence[str] | None) -> str:
    """Create a fine-grained token:

    https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/managing-your-personal-access-tokens
    """
    value = f"github_pat_{secrets.token_hex(11)}_{secrets.token_hex(29)}"
    chosen = frozenset(hub.state.repository(name).id for name in only) if only is not None else None
    hub.state.personal_tokens[value] = PersonalToken(value, person, dict(permissions or PERSONAL_PERMISSIONS), chosen)
    hub.state.touch()
    return value
