"""The double's own HTTP API, for users with curl: what users do on GitHub's pages. See README.md."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import actions, payloads, payloads_checks, rest
from gibil_bot.demo.access import Refusal
from gibil_bot.demo.records import Issue, PullRequest, Repository, User


def _repository(request: Request) -> Repository:
    try:
        return rest.hub(request).state.repository("{owner}/{name}".format_map(request.path_params))
    except KeyError:
        raise Refusal(404, "Repository not found; GET /_double/state lists all") from None


def _issue(request: Request, repository: Repository) -> Issue:
    found = repository.issues.get(request.path_params["number"])
    if found is None:
        raise Refusal(404, f"{repository.full_name} has no pull request of that number; GET /_double/state lists all")
    return found


def _pull(request: Request, repository: Repository) -> PullRequest:
    found = _issue(request, repository)
    if not isinstance(found, PullRequest):
        raise Refusal(422, f"#{found.number} is an issue, not a pull request")
    return found


def _person(request: Request, content: payloads.Json, default: User) -> User:
    login = rest.text(content, "author", "Control")
    return rest.hub(request).state.add_user(login) if login else default


async def comment(request: Request) -> Response:
    """{"body": "/gibil test", "author": "ada"}; the default author is that of the pull request."""
    repository, content = _repository(request), await rest.body(request)
    issue = _issue(request, repository)
    body = rest.text(content, "body", "Control", required=True) or ""
    author = _person(request, content, issue.author)
    new = actions.comment(rest.hub(request), repository, issue.number, author, body)
    return rest.answer(payloads.comment(rest.hub(request).state, repository, new), 201)


async def push(request: Request) -> Response:
    """{"files": {"path": "content" | null}, "message": …, "author": …, "force": false}: one commit on its branch."""
    repository, content = _repository(request), await rest.body(request)
    pull = _pull(request, repository)
    if pull.head_repository is None:
        raise Refusal(422, "the fork was deleted")
    files = content.get("files")
    if not isinstance(files, dict) or not files or not all(text is None or isinstance(text, str) for text in files.values()):
        raise Refusal(422, 'files: an object of "path": "content", null deletes')
    author = _person(request, content, pull.author)
    message = rest.text(content, "message", "Control") or f"Change {', '.join(files)}"
    force = content.get("force") is True
    sha = await actions.push(
        rest.hub(request), pull.head_repository, pull.head_ref, files, author, message=message, force=force
    )  # fmt: skip
    return rest.answer({"sha": sha}, 201)


async def set_state(request: Request) -> Response:
    """{"state": "closed" | "open"}"""
    repository, content = _repository(request), await rest.body(request)
    pull = _pull(request, repository)
    state = rest.text(content, "state", "Control", required=True)
    if state not in ("open", "closed"):
        raise Refusal(422, "state: open or closed")
    actions.set_pull_request_state(rest.hub(request), repository, pull, state, _person(request, content, pull.author))
    return rest.answer({"state": pull.state})


async def rerequest(request: Request) -> Response:
    """Press Re-run on a check run: {"author": …}."""
    repository, content = _repository(request), await rest.body(request)
    run = repository.check_runs.get(request.path_params["check_run"])
    if run is None:
        raise Refusal(404, "Check run not found")
    actions.rerequest_check_run(rest.hub(request), repository, run, _person(request, content, repository.owner))
    return rest.answer({}, 202)


async def state(request: Request) -> Response:
    """Return everything that GitHub's pages show, and the last deliveries and requests."""
    state = rest.hub(request).state
    repositories: payloads.Json = {}
    for repository in state.repositories.values():
        repositories[repository.full_name] = {
            "private": repository.private,
            "pull_requests": [payloads.pull_request(state, repository, each) for each in repository.pull_requests()],
            "comments": [payloads.comment(state, repository, each) for each in repository.comments.values()],
            "check_runs": [payloads_checks.check_run(state, repository, each) for each in repository.check_runs.values()],
        }
    requests = [
        {"method": each.method, "path": each.path, "status": each.status, "caller": each.caller, "fault": each.fault}
        for each in state.requests[-100:]
    ]
    deliveries = [payloads.delivery(each) for each in state.deliveries[-100:]]
    return rest.answer({"repositories": repositories, "deliveries": deliveries, "requests": requests})


_REPOSITORY = "/_double/repos/{owner}/{name}"
ROUTES = [
    Route("/_double/state", state),
    Route(f"{_REPOSITORY}/pulls/{{number:int}}/comments", comment, methods=["POST"]),
    Route(f"{_REPOSITORY}/pulls/{{number:int}}/push", push, methods=["POST"]),
    Route(f"{_REPOSITORY}/pulls/{{number:int}}/state", set_state, methods=["POST"]),
    Route(f"{_REPOSITORY}/check-runs/{{check_run:int}}/rerequest", rerequest, methods=["POST"]),
]
