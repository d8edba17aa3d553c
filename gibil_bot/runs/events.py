"""Turns a webhook's body into an event, once, before it is stored. Later code never sees the payload."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from datetime import datetime

from msgspec.structs import replace

from gibil_bot.github import commands, webhook
from gibil_bot.model import BranchPushed, Command, CommentCreated, Delivery, Event, Ignored

log = logging.getLogger("gibil.intake")


def read_delivery(
    guid: str, event_name: str, body: bytes, received_at: datetime, allowed_accounts: frozenset[str] | None
) -> Delivery:
    """Return the delivery in its stored form. Never raises: an unreadable body is stored as it is, and intake reports the
    problem.
    """
    delivery = Delivery(guid=guid, event_name=event_name, event=None, payload=body, received_at=received_at)
    try:
        return decoded(delivery, allowed_accounts)
    except Exception:  # also an internal error: the delivery must not be lost because of it
        return delivery


def decoded(delivery: Delivery, allowed_accounts: frozenset[str] | None) -> Delivery:
    """Return the delivery with its decoded event and without the payload. Raises InvalidDelivery."""
    event = relevant(webhook.narrow(delivery.event_name, delivery.payload), allowed_accounts)
    if isinstance(event, Ignored):
        log.debug("delivery %s: %s", delivery.guid, event.reason)
    digest = b"" if starts_nothing(event) else hashlib.sha256(delivery.payload).digest()
    return replace(delivery, event=event, payload=b"", digest=digest, cancels=_cancels(event))


def relevant(event: Event, allowed_accounts: frozenset[str] | None) -> Event:
    """Return the event, or Ignored if nothing follows from it, as with most comments. Fast: no GitHub, no store."""
    if isinstance(event, Ignored):
        return event
    if allowed_accounts is not None and event.repository.owner.lower() not in allowed_accounts:
        log.info("%s is not among GIBIL_ALLOWED_ACCOUNTS", event.repository.owner)
        return Ignored(reason=f"{event.repository.owner} is not served here")
    if isinstance(event, CommentCreated) and not commands.parse(event.body):
        return Ignored(reason="a comment without a command")
    return event


def only_cancels(asked: Sequence[Command]) -> bool:
    """Return whether a comment with these commands does nothing but cancel."""
    return bool(asked) and all(command.word == "cancel" and not command.problem for command in asked)


def _cancels(event: Event) -> bool:
    return isinstance(event, CommentCreated) and only_cancels(commands.parse(event.body))


def starts_nothing(event: Event) -> bool:
    """Return whether the delivery has no consequences beyond what it reveals about heads, so that it is handled once stored."""
    return isinstance(event, Ignored | BranchPushed)
