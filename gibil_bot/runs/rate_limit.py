"""How many commands a person may give, and a bound on what a rejected comment costs.

GitHub accepts 80 comments and reactions a minute from us, and 500 an hour, for all repositories of an installation together:
one person who may write comments could use up all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from gibil_bot.github import replies
from gibil_bot.model import Command, CommentCreated, Delivery, Notification, RerunRequested, Spending
from gibil_bot.ports import Inbox

HOUR_S = 3600.0


async def comment_over_limit(
    inbox: Inbox, per_hour: int, delivery: Delivery, event: CommentCreated, origin: str, asked: Sequence[Command]
) -> list[Notification] | None:
    """None when the comment's commands, `asked`, are within its author's limit, and count from now on. Otherwise what to
    answer: once an hour the limit and when to try again, and nothing after that.

    Nothing is asked of GitHub for it, so it comes before the question of permission. Cancelling has a limit of its own: a
    person who has used up the commands can still stop what they started.
    """
    kind = "cancel" if asked and all(command.word == "cancel" for command in asked) else "command"
    spending = await _spend(inbox, per_hour, delivery, kind, event.repository.id, event.author.login, len(asked))
    if spending.allowed:
        return None
    if not spending.first_refusal:
        return []
    text = replies.rate_limited(event.author.login, per_hour, spending.wait_s)
    return [replies.reply(event, origin, text), *replies.reactions(event, "confused")]


async def rerun_over_limit(inbox: Inbox, per_hour: int, delivery: Delivery, event: RerunRequested) -> str | None:
    """None when this re-run is within the limit of the person who asked for it. Otherwise the refusal; empty: none is due."""
    spending = await _spend(inbox, per_hour, delivery, "command", event.repository.id, event.sender.login, 1)
    if spending.allowed:
        return None
    return replies.rate_limited(event.sender.login, per_hour, spending.wait_s) if spending.first_refusal else ""


async def permission_refused(
    inbox: Inbox, delivery: Delivery, event: CommentCreated, origin: str, permission: str
) -> list[Notification]:
    """What a comment of a person without permission is answered: a reaction, and once an hour and pull request a reply."""
    login = event.author.login
    answer = replies.reactions(event, "confused")
    key = f"refusal:{event.repository.id}:{event.number}:{login.lower()}"
    # A delivery that is handled again gets the reply that it may have got before: it has the same key.
    if delivery.attempts > 1 or (await inbox.spend(key, cost=1, capacity=1, per_s=1 / HOUR_S)).allowed:
        answer.append(replies.reply(event, origin, replies.permission_refused(login, permission)))
    return answer


async def _spend(
    inbox: Inbox, per_hour: int, delivery: Delivery, kind: str, repository_id: int, login: str, cost: int
) -> Spending:
    if delivery.attempts > 1:  # counted when it was handled first
        return Spending(allowed=True)
    key = f"{kind}:{repository_id}:{login.lower()}"
    return await inbox.spend(key, cost=min(cost, per_hour), capacity=per_hour, per_s=per_hour / HOUR_S)
