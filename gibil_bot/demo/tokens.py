"""The tokens that are handed out: an installation's, for an hour, and people's own."""

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
    """A token of one hour. Stateless ones are about 520 characters with dots in them, to be forced with a header:
    https://github.blog/changelog/2026-05-15-github-app-installation-tokens-per-request-override-header"""
    world = hub.world
    if stateless:
        # The payload is opaque to everybody but GitHub: random text of the right shape.
        value = f"ghs_{world.app_id}_{secrets.token_urlsafe(27)}.{secrets.token_urlsafe(90)}.{secrets.token_urlsafe(256)}"
    else:
        value = "ghs_" + secrets.token_hex(18)
    chosen = frozenset(ids) if ids is not None else None
    token = Token(value, installation.id, dict(permissions), chosen, world.now() + TOKEN_LIFE)
    world.tokens[value] = token
    world.touch()
    return token


def personal_token(hub: Hub, person: User, permissions: Mapping[str, str] | None, only: Sequence[str] | None) -> str:
    """A fine-grained token:
    https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/managing-your-personal-access-tokens"""
    value = f"github_pat_{secrets.token_hex(11)}_{secrets.token_hex(29)}"
    chosen = frozenset(hub.world.repository(name).id for name in only) if only is not None else None
    hub.world.personal_tokens[value] = PersonalToken(value, person, dict(permissions or PERSONAL_PERMISSIONS), chosen)
    hub.world.touch()
    return value
