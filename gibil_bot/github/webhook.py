"""Verifies a delivery's signature, and decodes the delivery into an event.

Pure. Missing required fields raise InvalidDelivery. https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec

from gibil_bot.errors import InvalidDelivery
from gibil_bot.github.payloads import (
    ActionPayload,
    CheckRunEventPayload,
    CheckSuiteEventPayload,
    CommentPayload,
    IssueCommentPayload,
    MergeGroupPayload,
    PullRequestEventPayload,
    RepositoryPayload,
    ReviewCommentPayload,
    ReviewEventPayload,
    UserPayload,
    moment,
    no_nul,
    person,
    repository,
)
from gibil_bot.limits import APPLY_PATCH
from gibil_bot.model import (
    BranchPushed,
    CommentCreated,
    Event,
    Ignored,
    MergeGroupChecked,
    PatchRequested,
    PullRequestChanged,
    RerunRequested,
)

EVENTS = (
    "check_run",
    "check_suite",
    "issue_comment",
    "merge_group",
    "pull_request",
    "pull_request_review",
    "pull_request_review_comment",
)
"""The App's subscriptions in `app.yml`. `ping` and installation events are sent without a subscription."""

PULL_REQUEST_ACTIONS = ("opened", "synchronize", "reopened", "closed")


def verify(body: bytes, signature_header: str | None, secrets: Sequence[str]) -> bool:
    """Return whether `X-Hub-Signature-256` is the HMAC-SHA256 of the raw body under one of the secrets.

    Takes constant time and tries every secret, so that the time doesn't reveal which one matches. An empty secret never
    matches. https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
    """
    given = (signature_header or "").encode()
    matches = False
    for secret in secrets:
        expected = b"sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().encode()
        matches = (hmac.compare_digest(expected, given) and secret != "") or matches
    return matches


def narrow(event: str, payload: bytes) -> Event:
    """Decode one delivery; everything that the bot doesn't handle is Ignored, with the reason.

    Raises InvalidDelivery, naming the field, if something needed is missing, has the wrong type or isn't JSON.
    """
    read = _READERS.get(event)
    if read is None:
        return Ignored(reason=f"event {event[:80]!r} is not handled")
    return read(event, payload)


# --- one reader for each event ---------------------------------------------------------------------------------------


def _issue_comment(event: str, payload: bytes) -> Event:
    # `edited` is omitted on purpose: a user who may edit an old comment must not start anything with it.
    found = _if_action(event, payload, ("created",), IssueCommentPayload)
    if isinstance(found, Ignored):
        return found
    if found.issue.pull_request is None:
        return Ignored(reason="a comment on an issue, not on a pull request")
    return _comment(found, found.comment, found.issue.number, "issue_comment", found.issue.updated_at)


def _review_comment(event: str, payload: bytes) -> Event:
    found = _if_action(event, payload, ("created",), ReviewCommentPayload)
    if isinstance(found, Ignored):
        return found
    return _comment(
        found, found.comment, found.pull_request.number, "pull_request_review_comment", found.pull_request.updated_at
    )


def _review(event: str, payload: bytes) -> Event:
    # As with comments, `edited` is omitted; `dismissed` adds no information.
    found = _if_action(event, payload, ("submitted",), ReviewEventPayload)
    if isinstance(found, Ignored):
        return found
    review = found.review
    written = CommentPayload(id=review.id, user=review.user, body=review.body, created_at=review.submitted_at)
    return _comment(
        found,
        written,
        found.pull_request.number,
        "pull_request_review",
        found.pull_request.updated_at,
        commit_sha=review.commit_id,
    )


def _comment(
    payload: RepositoryPayload,
    comment: CommentPayload,
    number: int,
    event_name: str,
    thread_updated_at: object,
    *,
    commit_sha: str | None = None,
) -> Event:
    author = person(comment.user)
    if comment.user is None:
        return Ignored(reason="a comment of a deleted account")
    if author.is_bot:
        return Ignored(reason=f"a comment of the bot {author.login}")
    return CommentCreated(
        installation_id=payload.installation.id,
        repository=repository(payload),
        number=number,
        comment_id=comment.id,
        author=author,
        body=no_nul(comment.body or ""),
        event_name=event_name,
        created_at=moment(comment.created_at),
        thread_updated_at=moment(thread_updated_at),
        commit_sha=commit_sha,
    )


def _pull_request(event: str, payload: bytes) -> Event:
    found = _if_action(event, payload, PULL_REQUEST_ACTIONS, PullRequestEventPayload)
    if isinstance(found, Ignored):
        return found
    return PullRequestChanged(
        installation_id=found.installation.id,
        repository=repository(found),
        pull_request=found.pull_request.value(),
        action=found.action,
        sender=person(found.sender),
        before=found.before if found.action == "synchronize" and found.before else None,
    )


def _check_run(event: str, payload: bytes) -> Event:
    found = _if_action(event, payload, ("rerequested", "requested_action"), CheckRunEventPayload)
    if isinstance(found, Ignored):
        return found
    if not found.check_run.external_id:
        return Ignored(reason="a check run of another App: it has no external_id")
    check_run = found.check_run
    if found.action == "requested_action":
        if found.requested_action is None or found.requested_action.identifier != APPLY_PATCH:
            return Ignored(reason="an unknown button on a check run")
        return PatchRequested(
            installation_id=found.installation.id,
            repository=repository(found),
            run_id=no_nul(found.check_run.external_id),
            sender=person(found.sender),
        )
    return _rerun(found, check_run.head_sha, check_run.external_id, found.sender, check_name=no_nul(check_run.name or ""))


def _check_suite(event: str, payload: bytes) -> Event:
    found = _if_action(event, payload, ("rerequested", "requested"), CheckSuiteEventPayload)
    if isinstance(found, Ignored):
        return found
    suite = found.check_suite
    if found.action == "rerequested":
        return _rerun(found, suite.head_sha, None, found.sender)
    # A push to a branch of this repository, never of a fork, created the suite, and the pusher is the sender:
    # https://docs.github.com/en/rest/guides/using-the-rest-api-to-interact-with-checks#about-check-suites
    created_at = moment(suite.created_at)
    if found.sender is None or not suite.head_branch or created_at is None:
        return Ignored(reason="a check suite without pusher, branch or time")
    return BranchPushed(
        repository=repository(found),
        branch=no_nul(suite.head_branch),
        sha=suite.head_sha,
        pusher=person(found.sender),
        at=created_at,
    )


def _merge_group(event: str, payload: bytes) -> Event:
    found = _if_action(event, payload, ("checks_requested",), MergeGroupPayload)
    if isinstance(found, Ignored):
        return found
    return MergeGroupChecked(
        installation_id=found.installation.id,
        repository=repository(found),
        head_sha=found.merge_group.head_sha,
        base_ref=no_nul(found.merge_group.base_ref).removeprefix("refs/heads/"),
    )


def _rerun(
    payload: RepositoryPayload,
    head_sha: str,
    external_id: str | None,
    sender: UserPayload | None,
    *,
    check_name: str | None = None,
) -> RerunRequested:
    return RerunRequested(
        installation_id=payload.installation.id,
        repository=repository(payload),
        head_sha=head_sha,
        external_id=external_id,
        sender=person(sender),
        check_name=check_name or None,
    )


def _ping(event: str, payload: bytes) -> Event:
    return Ignored(reason="ping: GitHub can reach us")


def _other_action(event: str, action: str) -> Ignored:
    return Ignored(reason=f"{event} with action {action[:80]!r}")


_READERS: Mapping[str, Callable[[str, bytes], Event]] = {
    "issue_comment": _issue_comment,
    "pull_request_review_comment": _review_comment,
    "pull_request_review": _review,
    "merge_group": _merge_group,
    "pull_request": _pull_request,
    "check_run": _check_run,
    "check_suite": _check_suite,
    "ping": _ping,
}

_T = TypeVar("_T")
_Payload = TypeVar("_Payload", bound=RepositoryPayload)


def _if_action(event: str, payload: bytes, actions: Sequence[str], kind: type[_Payload]) -> _Payload | Ignored:
    """Decode the payload if its action is one of those. Payloads with other actions may have any form."""
    try:
        found = _decode(event, payload, kind)
    except InvalidDelivery:
        action = _decode(event, payload, ActionPayload).action
        if action in actions:
            raise
        return _other_action(event, action)
    return found if found.action in actions else _other_action(event, found.action)


def _decode(event: str, payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # msgspec names the field and the types, never the value.
        raise InvalidDelivery(f"{event} delivery: {' '.join(str(error).split())}; replay it when the cause is fixed") from None
    except RecursionError:
        raise InvalidDelivery(f"{event} delivery: the JSON is nested too deeply to be GitHub's") from None
