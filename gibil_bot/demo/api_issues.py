"""Endpoints of the conversation: comments and reactions."""

from __future__ import annotations

from datetime import datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import actions, payloads, rest
from gibil_bot.demo.access import Refusal
from gibil_bot.demo.records import Comment, PullRequest, Repository

LONGEST_COMMENT = 65_536
"""In characters. Undocumented; GitHub's response as reported in danger/danger#424."""

# Comments of pull requests can be written with either permission:
# https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps
_READ = (("issues", "read"), ("pull_requests", "read"))
_WRITE = (("issues", "write"), ("pull_requests", "write"))


async def list_comments(request: Request) -> Response:
    """https://docs.github.com/en/rest/issues/comments#list-issue-comments

    Always by ascending id: only the list of a whole repository can be sorted.
    """
    repository = rest.repository(request, *_READ)
    number = request.path_params["number"]
    if number not in repository.issues:
        raise Refusal(404, "Not Found")
    found = [each for each in _conversation(repository, request) if each.number == number]
    return _comments(request, repository, found)


async def list_review_comments(request: Request) -> Response:
    """https://docs.github.com/en/rest/pulls/comments#list-review-comments-on-a-pull-request

    `direction` is ignored without `sort`.
    """
    repository = rest.repository(request, ("pull_requests", "read"))
    number = request.path_params["number"]
    if not isinstance(repository.issues.get(number), PullRequest):
        raise Refusal(404, "Not Found")
    found = [each for each in repository.comments.values() if each.is_review and each.number == number]
    if (sort := request.query_params.get("sort")) in ("created", "updated"):
        backwards = request.query_params.get("direction", "desc") == "desc"
        found.sort(key=lambda each: (each.created_at if sort == "created" else each.updated_at, each.id), reverse=backwards)
    return _comments(request, repository, found)


async def list_repository_comments(request: Request) -> Response:
    """https://docs.github.com/en/rest/issues/comments#list-issue-comments-for-a-repository

    `direction` is ignored without `sort`.
    """
    repository = rest.repository(request, *_READ)
    found = _conversation(repository, request)
    sort = request.query_params.get("sort")
    if sort in ("created", "updated"):
        backwards = request.query_params.get("direction", "desc") == "desc"
        found.sort(key=lambda each: each.created_at if sort == "created" else each.updated_at, reverse=backwards)
    return _comments(request, repository, found)


def _conversation(repository: Repository, request: Request) -> list[Comment]:
    since = request.query_params.get("since")
    try:
        earliest = datetime.fromisoformat(since) if since else None
    except ValueError:
        raise rest.invalid("IssueComment", "since", "invalid", "since is not an ISO 8601 timestamp.") from None
    found = [each for each in repository.comments.values() if not each.is_review]
    return [each for each in found if earliest is None or each.updated_at >= earliest]


def _comments(request: Request, repository: Repository, found: list[Comment]) -> Response:
    shown, headers = rest.page(request, found)
    state = rest.hub(request).state
    return rest.answer([payloads.comment(state, repository, each) for each in shown], headers=headers)


async def create_comment(request: Request) -> Response:
    """https://docs.github.com/en/rest/issues/comments#create-an-issue-comment"""
    repository = rest.repository(request, *_WRITE)
    hub, number = rest.hub(request), request.path_params["number"]
    if number not in repository.issues:
        raise Refusal(404, "Not Found")
    text = await _comment_text(request)
    new = actions.comment(hub, repository, number, rest.actor(request), text, by_app=rest.caller(request).token is not None)
    return rest.answer(payloads.comment(hub.state, repository, new), 201)


async def _comment_text(request: Request) -> str:
    text = rest.text(await rest.body(request), "body", "IssueComment", required=True) or ""
    if not text.strip():
        raise rest.invalid("IssueComment", "body", "custom", "Body can't be blank")
    if len(text) > LONGEST_COMMENT:
        raise rest.invalid("IssueComment", "body", "custom", f"Body is too long (maximum is {LONGEST_COMMENT} characters)")
    return text


def _comment(request: Request, repository: Repository, *, review: bool = False) -> Comment:
    found = repository.comments.get(request.path_params["comment"])
    if found is None or found.is_review != review:
        raise Refusal(404, "Not Found")
    return found


async def get_comment(request: Request) -> Response:
    """https://docs.github.com/en/rest/issues/comments#get-an-issue-comment"""
    repository = rest.repository(request, *_READ)
    found = _comment(request, repository)
    return rest.answer(payloads.comment(rest.hub(request).state, repository, found))


async def update_comment(request: Request) -> Response:
    """https://docs.github.com/en/rest/issues/comments#update-an-issue-comment"""
    repository = rest.repository(request, *_WRITE)
    found, hub = _comment(request, repository), rest.hub(request)
    actions.edit_comment(hub, repository, found, await _comment_text(request), rest.actor(request))
    return rest.answer(payloads.comment(hub.state, repository, found))


async def delete_comment(request: Request) -> Response:
    """https://docs.github.com/en/rest/issues/comments#delete-an-issue-comment"""
    repository = rest.repository(request, *_WRITE)
    hub = rest.hub(request)
    actions.delete_comment(hub, repository, _comment(request, repository), rest.actor(request))
    return rest.nothing()


def _reacted(request: Request, level: str) -> tuple[Repository, Comment]:
    review = "/pulls/comments/" in request.url.path
    needs = [("pull_requests", level)] if review else [("issues", level), ("pull_requests", level)]
    repository = rest.repository(request, *needs)
    return repository, _comment(request, repository, review=review)


async def create_reaction(request: Request) -> Response:
    """https://docs.github.com/en/rest/reactions/reactions#create-reaction-for-an-issue-comment

    201 for a new one, 200 if it exists already.
    """
    _, comment = _reacted(request, "write")
    hub = rest.hub(request)
    content = rest.text(await rest.body(request), "content", "Reaction", required=True)
    if content not in payloads.REACTIONS:
        raise rest.invalid("Reaction", "content", "invalid", f"content is not one of {', '.join(payloads.REACTIONS)}")
    reaction, new = actions.react(hub, comment, rest.actor(request), content)
    return rest.answer(payloads.reaction(hub.state, reaction), 201 if new else 200)


async def list_reactions(request: Request) -> Response:
    """https://docs.github.com/en/rest/reactions/reactions#list-reactions-for-an-issue-comment"""
    _, comment = _reacted(request, "read")
    wanted = request.query_params.get("content")
    found = [each for each in comment.reactions if wanted in (None, each.content)]
    shown, headers = rest.page(request, found)
    state = rest.hub(request).state
    return rest.answer([payloads.reaction(state, each) for each in shown], headers=headers)


async def delete_reaction(request: Request) -> Response:
    """https://docs.github.com/en/rest/reactions/reactions#delete-an-issue-comment-reaction"""
    _, comment = _reacted(request, "write")
    found = next((each for each in comment.reactions if each.id == request.path_params["reaction"]), None)
    if found is None:
        raise Refusal(404, "Not Found")
    comment.reactions.remove(found)
    rest.hub(request).state.touch()
    return rest.nothing()


_REPOSITORY = "/repos/{owner}/{name}"
ROUTES = [
    Route(f"{_REPOSITORY}/issues/{{number:int}}/comments", list_comments),
    Route(f"{_REPOSITORY}/issues/{{number:int}}/comments", create_comment, methods=["POST"]),
    Route(f"{_REPOSITORY}/pulls/{{number:int}}/comments", list_review_comments),
    Route(f"{_REPOSITORY}/issues/comments", list_repository_comments),
    Route(f"{_REPOSITORY}/issues/comments/{{comment:int}}", get_comment),
    Route(f"{_REPOSITORY}/issues/comments/{{comment:int}}", update_comment, methods=["PATCH"]),
    Route(f"{_REPOSITORY}/issues/comments/{{comment:int}}", delete_comment, methods=["DELETE"]),
]
for _kind in ("issues", "pulls"):
    _reactions = f"{_REPOSITORY}/{_kind}/comments/{{comment:int}}/reactions"
    ROUTES += [
        Route(_reactions, list_reactions),
        Route(_reactions, create_reaction, methods=["POST"]),
        Route(f"{_reactions}/{{reaction:int}}", delete_reaction, methods=["DELETE"]),
    ]
