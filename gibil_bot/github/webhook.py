"""What GitHub sends: the signature over the bytes, and the bytes narrowed to one small event.

Pure. The structs name only the fields that are used, ignore all others and give every field that GitHub may leave out
a default, because payloads grow and shrink without notice. What is needed and not there raises InvalidDelivery.

https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, TypeVar

import msgspec

from gibil_bot.errors import InvalidDelivery
from gibil_bot.model import CommentCreated, Event, Ignored, Person, PullRequest, PullRequestChanged, Repository, RerunRequested

EVENTS = ("check_run", "check_suite", "issue_comment", "pull_request", "pull_request_review_comment")
"""What the App subscribes to in `app.yml`. `ping` and the installation's events come unasked."""

PULL_REQUEST_ACTIONS = ("opened", "synchronize", "reopened", "closed")

# Numbers go into a database and paths, hashes into git and URLs: what they may look like is settled here, once.
_Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Sha = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")]
_FullName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-][A-Za-z0-9_.-]*/(?!\.{1,2}\Z)[A-Za-z0-9_.-]+\Z")]
_CloneUrl = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s\x00-\x20]+\Z")]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


def verify(body: bytes, signature_header: str | None, secrets: Sequence[str]) -> bool:
    """Is `X-Hub-Signature-256` the HMAC-SHA256 of the raw body under one of the secrets?

    Constant time, and every secret is tried, so that the time taken does not tell which one fits. An empty secret
    never fits. https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries
    """
    given = (signature_header or "").encode()
    fits = False
    for secret in secrets:
        expected = b"sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest().encode()
        fits = (hmac.compare_digest(expected, given) and secret != "") or fits
    return fits


def narrow(event: str, payload: bytes) -> Event:
    """One delivery as a small value; everything that is not for us is Ignored, with the reason.

    Raises InvalidDelivery, naming the field, when something needed is missing, of the wrong type or not JSON.
    """
    read = _READERS.get(event)
    if read is None:
        return Ignored(reason=f"event {event[:80]!r} is not one of ours")
    return read(event, payload)


def account(payload: bytes) -> str | None:
    """The login of whose repository or installation a delivery is about, in lower case, for the allow-list.

    None where the payload names nobody. Raises InvalidDelivery when it is not JSON.
    """
    facts = _decode("delivery", payload, _Accounts)
    if facts.repository is not None and facts.repository.owner is not None:
        return facts.repository.owner.login.lower()
    if facts.repository is not None and "/" in facts.repository.full_name:
        return facts.repository.full_name.partition("/")[0].lower()
    if facts.installation is not None and facts.installation.account is not None:
        return facts.installation.account.login.lower()
    return None


# --- the payloads, as far as they are used -------------------------------------------------------------------------


class _Action(msgspec.Struct):
    action: str = ""


class _User(msgspec.Struct):
    login: _Text
    type: str = "User"


class _Installation(msgspec.Struct):
    id: _Id


class _Repository(msgspec.Struct):
    id: _Id
    full_name: _FullName
    clone_url: _CloneUrl
    default_branch: _Text = "main"
    private: bool = False


class _Place(msgspec.Struct):
    """What every event of ours carries beside its subject."""

    repository: _Repository
    installation: _Installation


class _Comment(msgspec.Struct):
    id: _Id
    user: _User | None = None
    body: str | None = None


class _Link(msgspec.Struct):
    """Only that it is there matters."""


class _Issue(msgspec.Struct):
    number: _Id
    pull_request: _Link | None = None


class _IssueComment(_Place):
    comment: _Comment
    issue: _Issue


class _Numbered(msgspec.Struct):
    number: _Id


class _ReviewComment(_Place):
    comment: _Comment
    pull_request: _Numbered


class _HeadRepository(msgspec.Struct):
    full_name: _FullName


class _Head(msgspec.Struct):
    sha: _Sha
    ref: _Text
    repo: _HeadRepository | None = None


class _Base(msgspec.Struct):
    sha: _Sha
    ref: _Text


class PullRequestPayload(msgspec.Struct):
    """A pull request as webhooks and the API write it. `user` is null when the account is gone."""

    number: _Id
    head: _Head
    base: _Base
    title: str = ""
    user: _User | None = None
    state: str = "open"
    draft: bool | None = None
    maintainer_can_modify: bool | None = None

    def value(self) -> PullRequest:
        return PullRequest(
            number=self.number,
            title=_no_nul(self.title),
            author=_person(self.user),
            head_sha=self.head.sha,
            head_ref=_no_nul(self.head.ref),
            head_repository=self.head.repo.full_name if self.head.repo else None,
            base_ref=_no_nul(self.base.ref),
            base_sha=self.base.sha,
            is_open=self.state == "open",
            is_draft=bool(self.draft),
            maintainer_can_modify=bool(self.maintainer_can_modify),
        )


class _PullRequestEvent(_Place):
    pull_request: PullRequestPayload
    sender: _User | None = None


class _CheckRun(msgspec.Struct):
    head_sha: _Sha
    external_id: str | None = None


class _CheckRunEvent(_Place):
    check_run: _CheckRun
    sender: _User | None = None


class _CheckSuite(msgspec.Struct):
    head_sha: _Sha


class _CheckSuiteEvent(_Place):
    check_suite: _CheckSuite
    sender: _User | None = None


class _OwnedRepository(msgspec.Struct):
    full_name: str = ""
    owner: _User | None = None


class _AccountInstallation(msgspec.Struct):
    account: _User | None = None


class _Accounts(msgspec.Struct):
    repository: _OwnedRepository | None = None
    installation: _AccountInstallation | None = None


# --- one reader for each event ---------------------------------------------------------------------------------------


def _issue_comment(event: str, payload: bytes) -> Event:
    # `edited` is left out on purpose: whoever may edit an old comment must not start anything with it.
    if (action := _decode(event, payload, _Action).action) != "created":
        return _other_action(event, action)
    found = _decode(event, payload, _IssueComment)
    if found.issue.pull_request is None:
        return Ignored(reason="a comment on an issue, not on a pull request")
    return _comment(found, found.comment, found.issue.number, is_review_comment=False)


def _review_comment(event: str, payload: bytes) -> Event:
    if (action := _decode(event, payload, _Action).action) != "created":
        return _other_action(event, action)
    found = _decode(event, payload, _ReviewComment)
    return _comment(found, found.comment, found.pull_request.number, is_review_comment=True)


def _comment(place: _Place, comment: _Comment, number: int, *, is_review_comment: bool) -> Event:
    author = _person(comment.user)
    if comment.user is None:
        return Ignored(reason="a comment of an account that is gone")
    if author.is_bot:
        return Ignored(reason=f"a comment of the bot {author.login}")
    return CommentCreated(
        installation_id=place.installation.id,
        repository=_repository(place),
        number=number,
        comment_id=comment.id,
        is_review_comment=is_review_comment,
        author=author,
        body=_no_nul(comment.body or ""),
    )


def _pull_request(event: str, payload: bytes) -> Event:
    action = _decode(event, payload, _Action).action
    if action not in PULL_REQUEST_ACTIONS:
        return _other_action(event, action)
    found = _decode(event, payload, _PullRequestEvent)
    return PullRequestChanged(
        installation_id=found.installation.id,
        repository=_repository(found),
        pull_request=found.pull_request.value(),
        action=action,
        sender=_person(found.sender),
    )


def _check_run(event: str, payload: bytes) -> Event:
    if (action := _decode(event, payload, _Action).action) != "rerequested":
        return _other_action(event, action)
    found = _decode(event, payload, _CheckRunEvent)
    if not found.check_run.external_id:
        return Ignored(reason="a check run that is not one of ours: it has no external_id")
    return _rerun(found, found.check_run.head_sha, found.check_run.external_id, found.sender)


def _check_suite(event: str, payload: bytes) -> Event:
    if (action := _decode(event, payload, _Action).action) != "rerequested":
        return _other_action(event, action)
    found = _decode(event, payload, _CheckSuiteEvent)
    return _rerun(found, found.check_suite.head_sha, None, found.sender)


def _rerun(place: _Place, head_sha: str, external_id: str | None, sender: _User | None) -> RerunRequested:
    return RerunRequested(
        installation_id=place.installation.id,
        repository=_repository(place),
        head_sha=head_sha,
        external_id=external_id,
        sender=_person(sender),
    )


def _ping(event: str, payload: bytes) -> Event:
    return Ignored(reason="ping: GitHub can reach us")


def _other_action(event: str, action: str) -> Ignored:
    return Ignored(reason=f"{event} with action {action[:80]!r}")


_READERS: Mapping[str, Callable[[str, bytes], Event]] = {
    "issue_comment": _issue_comment,
    "pull_request_review_comment": _review_comment,
    "pull_request": _pull_request,
    "check_run": _check_run,
    "check_suite": _check_suite,
    "ping": _ping,
}

_T = TypeVar("_T")


def _decode(event: str, payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # msgspec names the field and the types, never the value.
        raise InvalidDelivery(f"{event} delivery: {' '.join(str(error).split())}; replay it once the cause is known") from None
    except RecursionError:
        raise InvalidDelivery(f"{event} delivery: the JSON is nested too deeply; nothing of GitHub's is") from None


def _repository(place: _Place) -> Repository:
    found = place.repository
    return Repository(
        id=found.id,
        full_name=found.full_name,
        clone_url=found.clone_url,
        default_branch=_no_nul(found.default_branch),
        private=found.private,
    )


def _person(user: _User | None) -> Person:
    """`ghost` is GitHub's own stand-in for accounts that are gone: https://github.com/ghost"""
    if user is None:
        return Person(login="ghost")
    return Person(login=_no_nul(user.login), is_bot=user.type == "Bot" or user.login.endswith("[bot]"))


def _no_nul(text: str) -> str:
    """Neither an environment variable nor a path can hold NUL."""
    return text.replace("\0", "")
