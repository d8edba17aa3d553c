"""Asks GitHub for what an agent may know of a pull request: the texts as they were when the request was made, and the diff.

A comment counts only if its author has write permission now and if it wasn't edited since the request: otherwise an attacker
could add to a comment after a person with write permission has read it. `author_association` is a label, and no access check.
"""

from __future__ import annotations

from datetime import datetime

from msgspec import Struct

from gibil_bot.agents.context import DIFF_BYTES, MOST_COMMENTS, PullRequestText, Remark
from gibil_bot.errors import GitHubError
from gibil_bot.model import Source
from gibil_bot.ports import GitHub, PullRequestComment

MOST_PEOPLE = 20
"""Maximum number of people whose permission is queried."""
_WRITE = frozenset({"admin", "write"})
_MOST_DIFF_BYTES = 4 * DIFF_BYTES
"""What is read of a diff, before parts of it are cut."""


class Trigger(Struct, frozen=True, kw_only=True):
    """What started the run."""

    at: datetime
    """When the request was written, by GitHub's clock; if that is unknown, any later time. A comment's own time counts if it is
    among the newest ones.
    """
    comment_id: int | None = None
    """The comment that contains it: its words come from the delivery, so it isn't read again."""


async def pull_request_context(github: GitHub, source: Source, trigger: Trigger) -> PullRequestText:
    """Return texts and diff of the run's pull request. Raises GitHubError."""
    pull, repository = source.pull_request, source.repository.full_name
    contents = github.pull_request_contents(source.installation_id)
    body = await contents.description(repository, pull.number)
    comments = await contents.comments(repository, pull.number)
    remarks, left_out = await _remarks(github, source, trigger, comments)
    base = await github.git_data(source.installation_id).ref(repository, pull.base_ref) or pull.base_sha
    diff = await contents.diff(repository, base, source.sha, most_bytes=_MOST_DIFF_BYTES)
    return PullRequestText(
        repository=repository,
        number=pull.number,
        title=pull.title,
        author=pull.author.login,
        base_ref=pull.base_ref,
        head_ref=pull.head_ref,
        sha=source.sha,
        body=body,
        diff=diff,
        is_diff_cut=diff is not None and len(diff) >= _MOST_DIFF_BYTES,
        requested_at=_place_of(trigger, comments) if source.is_review_comment else "",
        remarks=remarks,
        left_out=left_out,
    )


def _place_of(trigger: Trigger, comments: list[PullRequestComment]) -> str:
    for comment in comments:
        if comment.id == trigger.comment_id and comment.path is not None:
            return f"{comment.path}, line {comment.line}" if comment.line is not None else comment.path
    return ""


async def _remarks(
    github: GitHub, source: Source, trigger: Trigger, comments: list[PullRequestComment]
) -> tuple[tuple[Remark, ...], tuple[str, ...]]:
    """Return the comments that count, oldest first, and why others don't."""
    since = min([trigger.at, *(each.created_at for each in comments if each.id == trigger.comment_id)])
    kept: list[Remark] = []
    left_out: list[str] = []
    permissions: dict[str, bool] = {}
    strangers = 0
    for comment in reversed(comments):
        if comment.id == trigger.comment_id or comment.author.is_bot or comment.by_app:
            continue
        # GitHub's times are in whole seconds: one in the same second may be later.
        if comment.created_at >= since:
            continue
        if len(kept) >= MOST_COMMENTS:
            left_out.append("Older comments are left out, because there are too many.")
            break
        login = comment.author.login.lower()
        if login not in permissions:
            if len(permissions) >= MOST_PEOPLE:
                left_out.append("Older comments of more people are left out.")
                break
            permissions[login] = await _may_write(github, source, comment.author.login)
        if not permissions[login]:
            strangers += 1
        elif comment.updated_at >= since:
            when = f"{comment.updated_at:%Y-%m-%d %H:%M:%S} UTC"
            left_out.append(f"Comment {comment.id} of {comment.author.login} was edited at {when}, after the request.")
        else:
            kept.append(
                Remark(
                    author=comment.author.login,
                    text=comment.body,
                    at=comment.created_at,
                    path=comment.path,
                    line=comment.line,
                )
            )
    if strangers:
        left_out.append(f"{strangers} by people without write permission.")
    return tuple(reversed(kept)), tuple(left_out)


async def _may_write(github: GitHub, source: Source, login: str) -> bool:
    try:
        return await github.permission(source.installation_id, source.repository.full_name, login) in _WRITE
    except GitHubError as error:
        if error.retry_after_s is not None:
            raise
        return False
