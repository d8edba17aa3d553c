"""Limits the commands per person, and the cost of rejected comments.

GitHub accepts 80 comments and reactions a minute from us, and 500 an hour, for all repositories of an installation together:
one person who may write comments could use up all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from gibil_bot.github import replies
from gibil_bot.model import Command, CommentCreated, Delivery, Notification, RunRequested, Spending
from gibil_bot.ports import Inbox

HOUR_S = 3600.0


async def comment_over_limit(
    inbox: Inbox, per_hour: int, delivery: Delivery, event: CommentCreated, reply_key: str, asked: Sequence[Command]
) -> list[Notification] | None:
    """Count the comment's commands, `asked`; None if they are within the author's limit, else the notifications that reply.

    The first rejection in an hour states the limit and when to try again; later ones get no reply. This check needs no request
    to GitHub, so it precedes the permission check. Cancelling has a separate limit: a person who has used up the commands can
    still stop what they started.
    """
    kind = "cancel" if asked and all(command.word == "cancel" for command in asked) else "command"
    spending = await _spend(inbox, per_hour, delivery, kind, event.repository.id, event.author.login, len(asked))
    if spending.allowed:
        return None
    if not spending.first_refusal:
        return []
    text = replies.rate_limited(event.author.login, per_hour, spending.wait_s)
    return [replies.reply(event, reply_key, text), *replies.reactions(event, "confused")]


async def rerun_over_limit(inbox: Inbox, per_hour: int, delivery: Delivery, repository_id: int, login: str) -> str | None:
    """Return None if this button is within the user's limit, else the rejection; empty if it was sent already."""
    spending = await _spend(inbox, per_hour, delivery, "command", repository_id, login, 1)
    if spending.allowed:
        return None
    return replies.rate_limited(login, per_hour, spending.wait_s) if spending.first_refusal else ""


async def request_over_limit(inbox: Inbox, per_hour: int, delivery: Delivery, event: RunRequested) -> str | None:
    """Return None if this request is within the person's limit, which comments share, else the rejection."""
    spending = await _spend(inbox, per_hour, delivery, "command", event.repository.id, event.person.login, 1)
    return None if spending.allowed else replies.rate_limited(event.person.login, per_hour, spending.wait_s)


async def permission_refused(
    inbox: Inbox, delivery: Delivery, event: CommentCreated, reply_key: str, permission: str
) -> list[Notification]:
    """Return the reply to a person without permission: a reaction, and one comment per hour and pull request."""
    login = event.author.login
    answer = replies.reactions(event, "confused")
    key = f"refusal:{event.repository.id}:{event.number}:{login.lower()}"
    # A redelivery repeats the reply that may have been sent before: it has the same key.
    if delivery.attempts > 1 or (await inbox.spend(key, cost=1, capacity=1, per_s=1 / HOUR_S)).allowed:
        answer.append(replies.reply(event, reply_key, replies.permission_refused(login, permission)))
    return answer


async def own_push(inbox: Inbox, repository_id: int, number: int, workflow: str, per_hour: int) -> Spending:
    """Count a run that an App's push starts: at most `per_hour` within any hour.

    One bucket would refill during the hour, so each run of the hour has its own. A delivery that is handled again counts again,
    because the first attempt may have failed before it was counted.
    """
    spending = Spending(allowed=False)
    for attempt in range(per_hour):
        key = f"own-push:{repository_id}:{number}:{workflow}:{attempt}"
        spending = await inbox.spend(key, cost=1, capacity=1, per_s=1 / HOUR_S)
        if spending.allowed:
            break
    return spending


async def _spend(
    inbox: Inbox, per_hour: int, delivery: Delivery, kind: str, repository_id: int, login: str, cost: int
) -> Spending:
    if delivery.attempts > 1:  # counted on the first attempt
        return Spending(allowed=True)
    key = f"{kind}:{repository_id}:{login.lower()}"
    return await inbox.spend(key, cost=min(cost, per_hour), capacity=per_hour, per_s=per_hour / HOUR_S)
