"""`gibil token`: access tokens of people for MCP over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.config import load_settings, parse_duration
from gibil_bot.errors import UsageError

if TYPE_CHECKING:
    from gibil_bot.access_tokens import AccessToken, AccessTokens


@click.group()
def token() -> None:
    """Create, list and revoke access tokens for MCP over HTTP.

    They are for /mcp of the bot, and for `gibil mcp --http`.
    """


@token.command(short_help="Create a token for a GitHub account, and print it once.")
@click.argument("login", metavar="LOGIN")
@click.option(
    "--scope",
    "scopes",
    metavar="SCOPE",
    multiple=True,
    default=("runs:read", "runs:write"),
    show_default="runs:read and runs:write",
    help="What it allows; repeatable: runs:read, runs:write, machines.",
)
@click.option("--expires", metavar="DURATION", default="90d", show_default=True, help="How long it is valid: 12h, 30d, 1y.")
@json_option
def create(login: str, scopes: tuple[str, ...], expires: str, as_json: bool) -> None:
    """Create a token for a GitHub account, and print it once.

    With it a client has the permissions of that account, as if the account had commented: on every call, GitHub is asked
    whether LOGIN may write to the repository (to read runs: may read it). Give the token only to that person. Only a hash of
    it is stored.

    \b
    gibil token create ada --expires 30d
    gibil token create ada --scope machines
    """
    from gibil_bot.access_tokens import DEFAULT_S

    try:
        ttl_s = parse_duration(expires) if expires else DEFAULT_S
    except ValueError as error:
        raise UsageError(f"--expires: {error}") from None
    record, text = _tokens().create(login, scopes, ttl_s)
    view = _view(record)
    if as_json:
        print_json({**view, "token": text})
        return
    print_message(
        f"token {record.id} of {login}: {', '.join(record.scopes)}, until {view['expires_at']}; it is shown only once"
    )
    print_text(f"{text}\n")


@token.command(name="list", short_help="List tokens, without the tokens themselves.")
@json_option
def list_tokens(as_json: bool) -> None:
    """List tokens, without the tokens themselves. Expired ones are listed for 30 days."""
    from gibil_bot.cli.machine import table

    records = _tokens().all()
    views = [_view(record) for record in records]
    if as_json:
        print_json(views)
    elif not views:
        print_message("there are no tokens; create one with gibil token create LOGIN")
    else:
        rows = [
            (record.id, record.login, " ".join(record.scopes), str(view["state"]), str(view["expires_at"]))
            for record, view in zip(records, views, strict=True)
        ]
        print_text(table([("ID", "LOGIN", "SCOPES", "STATE", "EXPIRES"), *rows]))


@token.command(short_help="Revoke a token by its id.")
@click.argument("identifier", metavar="ID")
@json_option
def revoke(identifier: str, as_json: bool) -> None:
    """Revoke a token by its id, the middle part of the token. It is rejected from the next request on."""
    view = _view(_tokens().revoke(identifier))
    if as_json:
        print_json(view)
    else:
        print_message(f"token {view['id']} of {view['login']} is revoked")


def _tokens() -> AccessTokens:
    from gibil_bot.access_tokens import AccessTokens

    return AccessTokens(load_settings().data_dir)


def _view(record: AccessToken) -> dict[str, object]:
    from gibil_bot.views import timestamp

    return {
        "id": record.id,
        "login": record.login,
        "scopes": list(record.scopes),
        "state": record.state(datetime.now(UTC)),
        "created_at": timestamp(record.created_at),
        "expires_at": timestamp(record.expires_at),
        "revoked_at": timestamp(record.revoked_at),
    }
