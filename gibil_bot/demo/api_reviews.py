"""Endpoints of reviews: list and create. https://docs.github.com/en/rest/pulls/reviews"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import actions, payloads, rest
from gibil_bot.demo.access import Refusal
from gibil_bot.demo.api_issues import LONGEST_COMMENT
from gibil_bot.demo.payloads import Json
from gibil_bot.demo.records import PullRequest, Repository, Review, ReviewLines

_STATES = {"APPROVE": "approved", "REQUEST_CHANGES": "changes_requested", "COMMENT": "commented"}


def _pull(request: Request, level: str) -> tuple[Repository, PullRequest]:
    repository = rest.repository(request, ("pull_requests", level))
    found = repository.issues.get(request.path_params["number"])
    if not isinstance(found, PullRequest):
        raise Refusal(404, "Not Found")
    return repository, found


def _shown(request: Request, home: Repository, it: Review) -> Json:
    # Upper case here, lower case in webhooks: the examples of both pages.
    return payloads.review(rest.hub(request).state, home, it) | {"state": it.state.upper()}


async def list_reviews(request: Request) -> Response:
    """https://docs.github.com/en/rest/pulls/reviews#list-reviews-for-a-pull-request: in chronological order."""
    home, pull = _pull(request, "read")
    found, headers = rest.page(request, [each for each in home.reviews.values() if each.number == pull.number])
    return rest.answer([_shown(request, home, each) for each in found], headers=headers)


@dataclass(slots=True)
class _File:
    left: list[range] = field(default_factory=list)
    right: list[range] = field(default_factory=list)


def _hunks(diff: bytes) -> dict[str, _File]:
    """Return, by path, the lines of each hunk on both sides."""
    files: dict[str, _File] = {}
    old_path = new_path = ""
    left = right = 0
    for line in diff.decode(errors="replace").split("\n"):
        if left > 0 or right > 0:
            left -= line[:1] in ("-", " ", "")
            right -= line[:1] in ("+", " ", "")
        elif line.startswith("--- "):
            old_path = line[4:].rstrip("\t").removeprefix("a/")
        elif line.startswith("+++ "):
            new_path = line[4:].rstrip("\t").removeprefix("b/")
        elif match := re.match(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@", line):
            left, right = int(match[2] or 1), int(match[4] or 1)
            file = files.setdefault(old_path if new_path == "/dev/null" else new_path, _File())
            file.left.append(range(int(match[1]), int(match[1]) + left))
            file.right.append(range(int(match[3]), int(match[3]) + right))
    return files


def _comment(found: object, files: dict[str, _File]) -> tuple[str, str, ReviewLines]:
    """Return the path, the text and the lines of a comment.

    Messages as reported in warpdotdev/oz-for-oss#310 (path) and parkerbxyz/suggest-changes#64 (lines).
    """
    wanted = cast(Json, found) if isinstance(found, dict) else {}
    path, text = (rest.text(wanted, name, "PullRequestReviewComment", required=True) or "" for name in ("path", "body"))
    if not text.strip() or len(text) > LONGEST_COMMENT:
        raise rest.invalid("PullRequestReviewComment", "body", "custom", "Body can't be blank or too long")
    if path not in files:
        raise Refusal(422, "Unprocessable Entity", errors=["Path could not be resolved"])
    side, line = wanted.get("side", "RIGHT"), wanted.get("line")
    start, start_side = wanted.get("start_line"), wanted.get("start_side", wanted.get("side", "RIGHT"))
    if side not in ("LEFT", "RIGHT") or type(line) is not int or (start is not None and type(start) is not int):
        raise rest.invalid("PullRequestReviewComment", "line", "invalid", "line or side is invalid")
    hunks = getattr(files[path], side.lower())
    hunk = next((each for each in hunks if line in each), None)
    problems = [] if hunk is not None else ["Pull request review thread line must be part of the diff"]
    if start is not None and (hunk is None or start not in hunk or start_side != side or start >= line):
        problems.append("Pull request review thread start line must be part of the same hunk as the line.")
    if problems:
        raise Refusal(422, "Unprocessable Entity", errors=[", ".join([*problems, "and the diff hunk can't be blank"])])
    start_side = side if start is not None else None
    return path, text, ReviewLines(review=0, line=line, side=side, start_line=start, start_side=start_side)


async def create_review(request: Request) -> Response:
    """https://docs.github.com/en/rest/pulls/reviews#create-a-review-for-a-pull-request

    All comments are created or none: as reported in QwenLM/qwen-code#6711. Another commit: PyGithub/PyGithub#2501.
    Pending reviews aren't supported.
    """
    home, pull = _pull(request, "write")
    hub, wanted = rest.hub(request), await rest.body(request)
    event = wanted.get("event")
    if event not in _STATES:
        raise rest.invalid("PullRequestReview", "event", "invalid", "The double knows APPROVE, REQUEST_CHANGES and COMMENT.")
    body = rest.text(wanted, "body", "PullRequestReview", required=event != "APPROVE") or ""
    if len(body) > LONGEST_COMMENT:
        raise rest.invalid("PullRequestReview", "body", "custom", f"body is too long (maximum is {LONGEST_COMMENT} characters)")
    sha = rest.text(wanted, "commit_id", "PullRequestReview") or pull.head_sha
    commit = await hub.git.resolve(home.full_name, sha)
    inside = commit is not None and await hub.git.is_ancestor(home.full_name, commit, pull.head_sha)
    if commit is None or not inside or await hub.git.is_ancestor(home.full_name, commit, pull.base_sha):
        message = "pull_request_review_thread.end_commit_oid is not part of the pull request"
        raise rest.invalid("PullRequestReviewComment", "pull_request_review_thread.end_commit_oid", "custom", message)
    comments = wanted.get("comments", [])
    if not isinstance(comments, list):
        raise rest.invalid("PullRequestReview", "comments", "invalid", "comments is not an array.")
    files = _hunks(await hub.git.diff(home.full_name, pull.base_sha, commit)) if comments else {}
    checked = [_comment(each, files) for each in comments]
    who, by_app = rest.actor(request), rest.caller(request).token is not None
    new = actions.review(hub, home, pull, who, body, state=_STATES[event], commit_sha=commit, by_app=by_app)
    for path, text, lines in checked:
        actions.comment(hub, home, pull.number, who, text, path=path, lines=replace(lines, review=new.id), by_app=by_app)
    return rest.answer(_shown(request, home, new))


_REVIEWS = "/repos/{owner}/{name}/pulls/{number:int}/reviews"
ROUTES = [Route(_REVIEWS, list_reviews), Route(_REVIEWS, create_review, methods=["POST"])]
