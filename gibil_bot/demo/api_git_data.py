"""Endpoints of the Git database: blobs, trees, commits and references that an App creates, and the comparison of commits.

https://docs.github.com/en/rest/git. The pages define formats and statuses; the messages are those that users report, each
with the report as its source.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import actions, payloads, rest
from gibil_bot.demo.access import Caller, Refusal, allows, covers, find_repository, may_write
from gibil_bot.demo.git_store import GitFailed
from gibil_bot.demo.records import Repository, User

LARGEST_BLOB = 40 * 1024 * 1024
"""Of a request's body, in bytes. Undocumented."""
WORKFLOWS = ".github/workflows/"
_NOTHING = "0" * 40
_HASH = re.compile(r"[0-9a-f]{40}")
_MODES = {"100644": "blob", "100755": "blob", "120000": "blob", "040000": "tree", "160000": "commit"}
_WEB_FLOW = "GitHub <noreply@github.com>"


# --- permissions


def _writable(request: Request, branch: str | None = None) -> Repository:
    """Return the repository if the caller may write its contents (that branch of it).

    403 "Resource not accessible by integration": https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#resource-not-accessible
    """
    state, caller = rest.hub(request).state, rest.caller(request)
    name = f"{request.path_params['owner']}/{request.path_params['name']}"
    repository = state.repositories.get(name.lower())
    if repository is not None and state.apps_edit_forks and _maintainer_may_edit(request, caller, repository, branch):
        return repository
    found = find_repository(state, caller, name, ("contents", "write"))
    if caller.personal is not None and not may_write(caller.personal, found):
        raise Refusal(403, "Resource not accessible by personal access token")
    return found


def _maintainer_may_edit(request: Request, caller: Caller, fork: Repository, branch: str | None) -> bool:
    """Return whether an open pull request from that branch of a user's fork lets maintainers of a covered repository edit it.

    https://docs.github.com/en/pull-requests/collaborating-with-pull-requests/working-with-forks/allowing-changes-to-a-pull-request-branch-created-from-a-fork
    Without effect for organizations' forks: isaacs/github#1681.
    """
    token = caller.token
    if token is None or fork.parent is None or fork.owner.type == "Organization" or not allows(token, "contents", "write"):
        return False
    return any(
        pull.state == "open" and pull.maintainer_can_modify and pull.head_repository is fork and branch in (None, pull.head_ref)
        for home in rest.hub(request).state.repositories.values()
        if covers(token, home)
        for pull in home.pull_requests()
    )


def _check_workflows(request: Request, paths: Sequence[str]) -> None:
    """Check the permission `workflows` if one of the paths is a workflow of GitHub Actions.

    https://docs.github.com/en/rest/authentication/permissions-required-for-github-apps#repository-permissions-for-workflows;
    403 for a tree as reported in googleapis/release-please-action#704 and anthropics/claude-code-action#29.
    """
    caller = rest.caller(request)
    token = caller.token or caller.personal
    if token is None or allows(token, "workflows", "write"):
        return
    if any(path.startswith(WORKFLOWS) for path in paths):
        who = "personal access token" if caller.personal else "integration"
        raise Refusal(403, f"Resource not accessible by {who}")


# --- blobs, trees, commits


async def create_blob(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/blobs#create-a-blob: `encoding` is utf-8 or base64."""
    repository = _writable(request)
    wanted = await rest.body(request)
    content = rest.text(wanted, "content", "Blob", required=True) or ""
    encoding = rest.text(wanted, "encoding", "Blob") or "utf-8"
    if encoding not in ("utf-8", "base64"):
        raise rest.invalid("Blob", "encoding", "invalid", f"{encoding!r} is not an encoding.")
    try:
        raw = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (binascii.Error, ValueError):
        raise rest.invalid("Blob", "content", "invalid", "content is not valid Base64") from None
    if len(raw) > LARGEST_BLOB:
        raise Refusal(422, "Sorry, your input was too large to process.")
    sha = await rest.hub(request).git.write_blob(repository.full_name, raw)
    return rest.answer({"sha": sha, "url": f"{_api(request, repository)}/blobs/{sha}"}, 201)


async def create_tree(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/trees#create-a-tree

    Each entry has either `sha` or `content`; `sha: null` deletes the path from `base_tree`, and is an error if it doesn't exist
    (GitRPC::BadObjectState as reported in mckaywrigley/buildware-ai#29).
    """
    repository = _writable(request)
    hub, wanted = rest.hub(request), await rest.body(request)
    git, name = hub.git, repository.full_name
    entries = wanted.get("tree")
    if not isinstance(entries, list) or not entries:
        raise Refusal(422, "Invalid tree info")
    base = rest.text(wanted, "base_tree", "Tree")
    if base is not None and (not _HASH.fullmatch(base) or (await git.kinds(name, [base]))[0] not in ("tree", "commit")):
        # As reported in sigmavirus24/github3.py#522.
        raise Refusal(422, "base_tree is not a valid tree oid")
    parsed = [_parse_entry(entry) for entry in entries]
    _check_workflows(request, [path for path, _, _, _ in parsed])
    there = {entry.path for entry in await git.tree(name, base, recursive=True) or ()} if base else set()
    final: list[tuple[str, str, str | None]] = []
    for path, mode, sha, content in parsed:
        if content is not None:
            final.append((path, mode, await git.write_blob(name, content.encode())))
            continue
        if sha is None and path not in there:
            raise Refusal(422, "GitRPC::BadObjectState")
        # A submodule's commit is in another repository.
        if sha is not None and mode != "160000" and (await git.kinds(name, [sha]))[0] != _MODES[mode]:
            # As reported in BetaHuhn/repo-file-sync-action#349.
            raise Refusal(422, f"tree.sha {sha} is not a valid {_MODES[mode]}")
        final.append((path, mode, sha))
    try:
        tree = await git.write_tree(name, base, final)
    except GitFailed:
        raise Refusal(422, "GitRPC::BadObjectState") from None
    shown = [
        {"path": entry.path, "mode": entry.mode, "type": entry.kind, "sha": entry.sha}
        for entry in await git.tree(name, tree, recursive=False) or ()
    ]
    answer: payloads.Json = {"sha": tree, "url": f"{_api(request, repository)}/trees/{tree}", "tree": shown, "truncated": False}
    return rest.answer(answer, 201)


def _parse_entry(entry: object) -> tuple[str, str, str | None, str | None]:
    """Return path, mode, hash and content. Messages as reported in octokit/octokit.net#2836 and #2191."""
    if not isinstance(entry, dict):
        raise Refusal(422, "Invalid tree info")
    path, mode, kind = entry.get("path"), entry.get("mode"), entry.get("type")
    if not isinstance(path, str) or not path:
        raise Refusal(422, "Must supply tree.path")
    if path.startswith("/"):
        raise Refusal(422, "tree.path cannot start with a slash")
    if any(part.lower() in ("", ".", "..", ".git") for part in path.split("/")) or "\0" in path:
        raise Refusal(422, "tree.path contains a malformed path component")
    if mode not in _MODES:
        raise Refusal(422, "Must supply a valid tree.mode")
    if kind is not None and kind != _MODES[mode]:
        raise Refusal(422, f"tree.type {kind} doesn't match tree.mode {mode}")
    sha, content = entry.get("sha"), entry.get("content")
    if (content is None) != ("sha" in entry) or not isinstance(content, str | None):
        raise Refusal(422, "Must supply either tree.sha or tree.content. Request will be rejected if both are present.")
    if sha is not None and (not isinstance(sha, str) or not _HASH.fullmatch(sha)):
        raise Refusal(422, "The tree.sha parameter must be exactly 40 characters and contain only [0-9a-f].")
    return path, mode, sha, content


async def create_commit(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/commits#create-a-commit

    GitHub signs a commit of a bot if the request has no custom author, no custom committer and no signature:
    https://docs.github.com/en/authentication/managing-commit-signature-verification/about-commit-signature-verification#signature-verification-for-bots
    """
    repository = _writable(request)
    hub, wanted = rest.hub(request), await rest.body(request)
    message = rest.text(wanted, "message", "Commit", required=True) or ""
    tree = rest.text(wanted, "tree", "Commit", required=True) or ""
    parents = wanted.get("parents", [])
    if not isinstance(parents, list) or not all(isinstance(each, str) and _HASH.fullmatch(each) for each in parents):
        # As reported in Simply-Static/simply-static#335.
        raise Refusal(422, "Each SHA in the 'parents' parameter must be exactly 40 characters and contain only [0-9a-f].")
    kinds = await hub.git.kinds(repository.full_name, [tree, *parents]) if _HASH.fullmatch(tree) else [None]
    if kinds[0] != "tree":
        # As reported in osunyorg/admin#4384.
        raise Refusal(422, "Tree SHA does not exist")
    if any(kind != "commit" for kind in kinds[1:]):
        raise Refusal(422, "Parent SHA does not exist or is not a commit object.")
    actor = rest.actor(request)
    is_custom = any(wanted.get(name) for name in ("author", "committer", "signature"))
    now = f"{int(hub.state.now().timestamp())} +0000"
    author = _identity(wanted.get("author"), now) or f"{actor.login} <{_noreply(actor)}> {now}"
    is_signed = actor is hub.state.bot and not is_custom
    committer = _identity(wanted.get("committer"), now) or (f"{_WEB_FLOW} {now}" if is_signed else author)
    sha = await hub.git.write_commit(
        repository.full_name, tree=tree, parents=parents, message=message, author=author, committer=committer
    )
    if is_signed:
        repository.signed.add(sha)
    return rest.answer(await commit(rest.hub(request), repository, sha), 201)


def _identity(found: object, now: str) -> str | None:
    if not isinstance(found, dict):
        return None
    name, email, date = found.get("name"), found.get("email"), found.get("date")
    if not isinstance(name, str) or not isinstance(email, str) or any(sign in name + email for sign in "<>\n\0"):
        raise Refusal(422, 'Invalid request.\n\n"email", "name" weren\'t supplied.')
    if isinstance(date, str):
        now = f"{int(datetime.fromisoformat(date).timestamp())} +0000"
    return f"{name} <{email}> {now}"


def _noreply(who: User) -> str:
    """https://docs.github.com/en/account-and-profile/reference/email-addresses-reference#your-noreply-email-address"""
    return f"{who.id}+{who.login}@users.noreply.github.com"


async def get_commit(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/commits#get-a-commit-object"""
    repository = rest.repository(request, ("contents", "read"))
    sha = request.path_params["sha"]
    if not _HASH.fullmatch(sha) or (await rest.hub(request).git.kinds(repository.full_name, [sha]))[0] != "commit":
        raise Refusal(404, "Not Found")
    return rest.answer(await commit(rest.hub(request), repository, sha))


async def commit(hub: actions.Hub, repository: Repository, sha: str) -> payloads.Json:
    """Return a commit as the API shows it."""
    headers, _, message = (await hub.git.commit_text(repository.full_name, sha)).partition("\n\n")
    fields = [line.partition(" ") for line in headers.split("\n")]
    api = f"{hub.state.url}/repos/{repository.full_name}/git"
    tree = next(value for name, _, value in fields if name == "tree")
    is_signed = sha in repository.signed
    return {
        "sha": sha,
        "url": f"{api}/commits/{sha}",
        "author": _person(next(value for name, _, value in fields if name == "author")),
        "committer": _person(next(value for name, _, value in fields if name == "committer")),
        "message": message,
        "tree": {"sha": tree, "url": f"{api}/trees/{tree}"},
        "parents": [{"sha": value, "url": f"{api}/commits/{value}"} for name, _, value in fields if name == "parent"],
        # The reasons: https://docs.github.com/en/rest/git/commits#get-a-commit-object
        "verification": {
            "verified": is_signed,
            "reason": "valid" if is_signed else "unsigned",
            "signature": None,
            "payload": None,
        },
    }


def _person(identity: str) -> payloads.Json:
    who, _, rest_ = identity.rpartition("> ")
    name, _, email = who.partition(" <")
    seconds = int(rest_.split(" ")[0])
    return {"name": name, "email": email, "date": payloads.moment(datetime.fromtimestamp(seconds, UTC))}


# --- references


async def create_reference(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/refs#create-a-reference

    "If it doesn't start with 'refs' and have at least two slashes, it will be rejected."
    """
    wanted = await rest.body(request)
    ref = rest.text(wanted, "ref", "Reference", required=True) or ""
    repository = _writable(request, ref.removeprefix("refs/heads/"))
    if not ref.startswith("refs/") or ref.count("/") < 2:
        raise Refusal(422, "Reference name must start with 'refs/' and have at least two slashes")
    sha = await _existing_commit(request, repository, wanted)
    git, name = rest.hub(request).git, repository.full_name
    try:
        await git.git("check-ref-format", ref, repository=name)
    except GitFailed:
        raise Refusal(422, f"{ref} is not a valid ref name.") from None
    if await git.resolve(name, ref) is not None:
        # As reported in usk6666/yorishiro-proxy#82.
        raise Refusal(422, "Reference already exists")
    default = await git.resolve(name, f"refs/heads/{repository.default_branch}")
    await _check_push(request, repository, ref, default, sha)
    if not await git.move_ref(name, ref, sha, None):
        # As reported in actions/github-script#455.
        raise Refusal(422, "Reference update failed")
    await _after_push(request, repository, ref, None, sha, forced=False)
    return rest.answer(_reference(request, repository, ref, sha), 201)


async def update_reference(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/refs#update-a-reference

    "Leaving this out or setting it to `false` will make sure you're not overwriting work." Messages as reported in
    webspace-sdk/webspace-engine#104 (not a fast forward) and github/rest-api-description#2746 (does not exist).
    """
    branch = request.path_params["branch"]
    repository = _writable(request, branch)
    wanted, ref = await rest.body(request), f"refs/heads/{branch}"
    git, name = rest.hub(request).git, repository.full_name
    force = wanted.get("force", False)
    if not isinstance(force, bool):
        raise rest.invalid("Reference", "force", "invalid", f"For 'force', {force!r} is not a boolean.")
    sha = await _existing_commit(request, repository, wanted)
    before = await git.resolve(name, ref)
    if before is None:
        raise Refusal(422, "Reference does not exist")
    if not force and not await git.is_ancestor(name, before, sha):
        raise Refusal(422, "Update is not a fast forward")
    if before != sha:
        await _check_push(request, repository, ref, before, sha)
        if not await git.move_ref(name, ref, sha, before):
            raise Refusal(422, "Reference update failed")
        await _after_push(request, repository, ref, before, sha, forced=force and not await git.is_ancestor(name, before, sha))
    return rest.answer(_reference(request, repository, ref, sha))


async def _existing_commit(request: Request, repository: Repository, wanted: payloads.Json) -> str:
    sha = rest.text(wanted, "sha", "Reference", required=True) or ""
    if not _HASH.fullmatch(sha):
        raise Refusal(422, "The sha parameter must be exactly 40 characters and contain only [0-9a-f].")
    if (await rest.hub(request).git.kinds(repository.full_name, [sha]))[0] != "commit":
        raise Refusal(422, "Object does not exist")
    return sha


async def _check_push(request: Request, repository: Repository, ref: str, before: str | None, sha: str) -> None:
    """Check the rules for the branch, and the permission for workflows that differ from `before`.

    422 with the rule: https://docs.github.com/en/repositories/configuring-branches-and-merges-in-your-repository/managing-rulesets/available-rules-for-rulesets,
    as reported in satisfactory-factories/application#67 and googleapis/repo-automation-bots#5551.
    """
    message = repository.protected.get(ref.removeprefix("refs/heads/"))
    if message is not None:
        raise Refusal(422, f"Repository rule violations found\n\n{message}\n\n")
    if before is not None:
        _check_workflows(request, await rest.hub(request).git.changed_paths(repository.full_name, before, sha))


async def _after_push(
    request: Request, repository: Repository, ref: str, before: str | None, sha: str, *, forced: bool
) -> None:
    if ref.startswith("refs/heads/"):
        branch = (ref.removeprefix("refs/heads/"), before or _NOTHING, sha)
        await actions.after_push(rest.hub(request), repository, rest.actor(request), [branch], forced=forced)


def _reference(request: Request, repository: Repository, ref: str, sha: str) -> payloads.Json:
    api = _api(request, repository)
    return {"ref": ref, "url": f"{api}/{quote(ref)}", "object": {"type": "commit", "sha": sha, "url": f"{api}/commits/{sha}"}}


async def compare(request: Request) -> Response:
    """https://docs.github.com/en/rest/commits/commits#compare-two-commits, without the lists of commits and files; or the diff
    since the merge base.
    """
    repository = rest.repository(request, ("contents", "read"))
    git, name = rest.hub(request).git, repository.full_name
    first, dots, second = request.path_params["range"].partition("...")
    base = await git.resolve(name, first) if dots else None
    head = await git.resolve(name, second) if dots else None
    if base is None or head is None:
        raise Refusal(404, "Not Found")
    if request.headers.get("accept", "").endswith(".diff"):
        return Response(await git.diff(name, base, head), media_type="application/vnd.github.diff; charset=utf-8")
    ahead, behind = await git.count(name, head, base), await git.count(name, base, head)
    status = "diverged" if ahead and behind else "ahead" if ahead else "behind" if behind else "identical"
    return rest.answer({"status": status, "ahead_by": ahead, "behind_by": behind, "total_commits": ahead, "commits": []})


def _api(request: Request, repository: Repository) -> str:
    return f"{rest.hub(request).state.url}/repos/{repository.full_name}/git"


ROUTES = [
    Route("/repos/{owner}/{name}/git/blobs", create_blob, methods=["POST"]),
    Route("/repos/{owner}/{name}/git/trees", create_tree, methods=["POST"]),
    Route("/repos/{owner}/{name}/git/commits", create_commit, methods=["POST"]),
    Route("/repos/{owner}/{name}/git/commits/{sha}", get_commit),
    Route("/repos/{owner}/{name}/git/refs", create_reference, methods=["POST"]),
    Route("/repos/{owner}/{name}/git/refs/heads/{branch:path}", update_reference, methods=["PATCH"]),
    Route("/repos/{owner}/{name}/compare/{range:path}", compare),
]
