"""`gibil replay`: sign a recorded delivery and post it to a running bot."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
import uuid
from pathlib import Path

import click

from gibil_bot.cli.output import json_option, print_json, print_message
from gibil_bot.config import load_settings
from gibil_bot.errors import ConfigurationError, GibilError, UsageError

TIMEOUT_S = 30.0


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--event", help="The event's name (X-GitHub-Event). Guessed from the payload by default.")
@click.option("--url", help="The bot's webhook.  [default: http://GIBIL_HOST:GIBIL_PORT/webhook]")
@click.option("--guid", help="X-GitHub-Delivery. A new one by default.")
@json_option
def replay(file: Path, event: str | None, url: str | None, guid: str | None, as_json: bool) -> None:
    """Post a recorded payload as GitHub would, signed with GIBIL_GITHUB_WEBHOOK_SECRET.

    \b
    gibil replay comment.json
    gibil replay pull_request.json --event pull_request --url http://127.0.0.1:8080/webhook
    """
    settings = load_settings()
    if not settings.webhook_secrets:
        raise ConfigurationError(("GIBIL_GITHUB_WEBHOOK_SECRET is not set: the payload can't be signed without it",))
    body = file.read_bytes()
    event = event or guess_event(body, file)
    guid = guid or str(uuid.uuid4())
    url = url or f"http://{settings.host}:{settings.port}/webhook"
    signature = hmac.new(settings.webhook_secrets[0].reveal().encode(), body, hashlib.sha256).hexdigest()
    import httpx

    try:
        answer = httpx.post(
            url,
            content=body,
            timeout=TIMEOUT_S,
            headers={
                "Content-Type": "application/json",
                "User-Agent": "gibil-replay",
                "X-GitHub-Event": event,
                "X-GitHub-Delivery": guid,
                "X-Hub-Signature-256": f"sha256={signature}",
            },
        )
    except httpx.HTTPError as error:
        raise GibilError(
            f"no bot answers at {url}: {error}; start it with `gibil serve`, or set its webhook with --url",
            code="BOT_UNREACHABLE",
        ) from error
    if as_json:
        print_json({"status": answer.status_code, "answer": answer.text.strip(), "event": event, "guid": guid})
    print_message(f"{event} as {guid}: {answer.status_code} {answer.text.strip()}")
    if answer.status_code != 202:
        sys.exit(1)


def guess_event(body: bytes, file: Path) -> str:
    """Guess the event's name from the keys of its payload. Raises UsageError."""
    try:
        payload = json.loads(body)
    except ValueError as error:
        raise UsageError(f"{file} is not JSON: {error}") from error
    if isinstance(payload, dict):
        if "zen" in payload and "hook_id" in payload:
            return "ping"
        if "comment" in payload:
            return "issue_comment" if "issue" in payload else "pull_request_review_comment"
        if "review" in payload:
            return "pull_request_review"
        for event in ("check_run", "check_suite", "merge_group", "pull_request"):
            if event in payload:
                return event
    raise UsageError(f"{file} is not a payload of a known event: set the event with --event")
