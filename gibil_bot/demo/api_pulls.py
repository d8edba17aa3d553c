"""Endpoints of pull requests: lists, get and create."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import actions, payloads, rest
from gibil_bot.demo.access import Refusal, allows, may_write, sees
from gibil_bot.demo.records import PersonalToken, PullRequest, Repository

LONGEST_TITLE, LONGEST_BODY = 256, 65_536
"""In characters. Undocumented: as reported in googleapis/repo-automation-bots#1895 and renovatebot/renovate#2032."""


async def list_pull_requests(request: Request) -> Response:
    """https://docs.github.com/en/rest/pulls/pulls#list-pull-requests: open ones, newest first, by default."""
    repository = rest.repository(request, ("pull_requests", "read"))
    query = request.query_params
    state, head, base = query.get("state", "open"), query.get("head"), query.get("base")
    found = [
        pull
        for pull in repository.pull_requests()
        if state in ("all", pull.state) and (not base or pull.base_ref == base) and (not head or _label(pull) == head)
    ]
    moment_of = (lambda pull: pull.updated_at) if query.get("sort") == "updated" else (lambda pull: pull.created_at)
    found.sort(key=moment_of, reverse=query.get("direction", "desc") != "asc")
    return _pulls(request, repository, found)


async def get_pull_request(request: Request) -> Response:
    """https://docs.github.com/en/rest/pulls/pulls#get-a-pull-request"""
    repository = rest.repository(request, ("pull_requests", "read"))
    found = repository.issues.get(request.path_params["number"])
    if not isinstance(found, PullRequest):
        raise Refusal(404, "Not Found")
    return rest.answer(payloads.pull_request(rest.hub(request).state, repository, found))


async def list_pull_requests_of_commit(request: Request) -> Response:
    """https://docs.github.com/en/rest/commits/commits#list-pull-requests-associated-with-a-commit

    Pull requests from forks aren't found (google/go-github#2241, quarkusio/pt.quarkus.io#389).
    """
    repository = rest.repository(request, ("pull_requests", "read"))
    git = rest.hub(request).git
    sha = await git.resolve(repository.full_name, request.path_params["ref"])
    if sha is None:
        raise Refusal(422, f"No commit found for SHA: {request.path_params['ref']}")
    found = []
    for pull in repository.pull_requests():
        if pull.state != "open" or pull.head_repository is not repository:
            continue
        inside = await git.is_ancestor(repository.full_name, sha, pull.head_sha)
        if inside and not await git.is_ancestor(repository.full_name, sha, pull.base_sha):
            found.append(pull)
    return _pulls(request, repository, found)


def _pulls(request: Request, repository: Repository, found: list[PullRequest]) -> Response:
    state = rest.hub(request).state
    shown, headers = rest.page(request, found)
    return rest.answer([payloads.pull_request(state, repository, pull) for pull in shown], headers=headers)


def _label(pull: PullRequest) -> str:
    owner = pull.head_repository.owner if pull.head_repository else pull.author
    return f"{owner.login}:{pull.head_ref}"


async def create_pull_request(request: Request) -> Response:
    """https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request

    The author needs write access to the head branch. Error responses as reported in google/go-github#1441 (already exists),
    tgymnich/fork-sync#112 and backstrokeapp/server#46 (no commits), dailymotion-oss/octopilot#134 (no such branch),
    tgymnich/fork-sync#8 (not readable).
    """
    home = rest.repository(request, ("pull_requests", "write"))
    hub, wanted = rest.hub(request), await rest.body(request)
    title, head_name, base = (rest.text(wanted, name, "PullRequest", required=True) or "" for name in ("title", "head", "base"))
    body = rest.text(wanted, "body", "PullRequest") or ""
    draft = wanted.get("draft", False)
    if not isinstance(draft, bool):
        raise rest.invalid("PullRequest", "draft", "invalid", f"For 'draft', {draft!r} is not a boolean.")
    if not title.strip():
        raise Refusal(422, "Validation Failed", errors=[{"resource": "Issue", "code": "missing_field", "field": "title"}])
    for field, text, longest in (("title", title, LONGEST_TITLE), ("body", body, LONGEST_BODY)):
        if len(text) > longest:
            raise rest.invalid("Issue", field, "custom", f"{field} is too long (maximum is {longest} characters)")
    head, branch = _head(request, home, head_name, rest.text(wanted, "head_repo", "PullRequest"))
    head_sha = await hub.git.resolve(head.full_name, f"refs/heads/{branch}") if head is not None else None
    base_sha = await hub.git.resolve(home.full_name, f"refs/heads/{base}")
    for field, found in (("head", head_sha), ("base", base_sha)):
        if found is None:
            error = {"resource": "PullRequest", "field": field, "code": "invalid"}
            raise Refusal(422, "Validation Failed", errors=[error])
    assert head is not None
    assert head_sha is not None
    assert base_sha is not None
    personal = rest.caller(request).personal
    if personal is not None and not all(_readable(personal, each) for each in (home, head)):
        raise _custom("not all refs are readable")
    if personal is not None and not may_write(personal, head):
        raise Refusal(403, "Resource not accessible by personal access token")
    if draft and not home.drafts:
        # https://docs.github.com/en/pull-requests/collaborating-with-pull-requests/proposing-changes-to-your-work-with-pull-requests/
        # about-pull-requests#draft-pull-requests; the words as reported in MetaMask/action-create-release-pr#67
        raise Refusal(422, "Draft pull requests are not supported in this repository.")
    # A commit that only a fork has can't be an ancestor here.
    if await hub.git.is_ancestor(home.full_name, head_sha, base_sha):
        names = (base, branch) if head is home else (f"{home.owner.login}:{base}", f"{head.owner.login}:{branch}")
        raise _custom(f"No commits between {names[0]} and {names[1]}")
    for pull in home.pull_requests():
        if pull.state == "open" and (pull.head_repository, pull.head_ref, pull.base_ref) == (head, branch, base):
            raise _custom(f"A pull request already exists for {head.owner.login}:{branch}.")
    new = await actions.open_pull_request(
        hub, home, head, branch, rest.actor(request), title=title, body=body, draft=draft, base=base
    )  # fmt: skip
    return rest.answer(payloads.pull_request(hub.state, home, new), 201)


def _custom(message: str) -> Refusal:
    return Refusal(422, "Validation Failed", errors=[{"resource": "PullRequest", "code": "custom", "message": message}])


def _readable(personal: PersonalToken, repository: Repository) -> bool:
    """Return whether the token may see the branches; those of a public repository are visible to everyone."""
    return not repository.private or (sees(personal, repository) and allows(personal, "contents", "read"))


def _head(request: Request, home: Repository, name: str, head_repo: str | None) -> tuple[Repository | None, str]:
    """Return the head repository and branch; None for a repository that doesn't exist.

    `branch` is a branch of this repository, `owner:branch` one of that owner's repository in the network; `head_repo` chooses
    if the owner has several.
    """
    owner, colon, branch = name.partition(":")
    if not colon:
        owner, branch = home.owner.login, name
    network = [each for each in rest.hub(request).state.repositories.values() if each.source is home.source]
    theirs = [each for each in network if each.owner.login.lower() == owner.lower()]
    if head_repo is not None:
        return next((each for each in theirs if each.full_name.lower() == head_repo.lower()), None), branch
    return home if home in theirs else next(iter(theirs), None), branch


ROUTES = [
    Route("/repos/{owner}/{name}/pulls", list_pull_requests),
    Route("/repos/{owner}/{name}/pulls", create_pull_request, methods=["POST"]),
    Route("/repos/{owner}/{name}/pulls/{number:int}", get_pull_request),
    Route("/repos/{owner}/{name}/commits/{ref}/pulls", list_pull_requests_of_commit),
]
