"""Endpoints of a repository: the repository itself, permissions, files."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import payloads, rest
from gibil_bot.demo.access import Refusal, may_see
from gibil_bot.demo.git_store import GitFailed, TreeEntry
from gibil_bot.demo.records import ROLES, Repository

LARGEST_INLINE = 1024 * 1024
"""Above that, the JSON of a file has no content: https://docs.github.com/en/rest/repos/contents#get-repository-content"""

_HASH = re.compile(r"[0-9a-f]{40}")


async def get_repository(request: Request) -> Response:
    """https://docs.github.com/en/rest/repos/repos#get-a-repository"""
    found = rest.repository(request, ("metadata", "read"))
    caller = rest.caller(request)
    return rest.answer(payloads.full_repository(rest.hub(request).state, found, lambda each: may_see(caller, each)))


async def get_branch_reference(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/refs#get-a-reference, for branches. The name must be exact."""
    repository = rest.repository(request, ("contents", "read"))
    ref = f"refs/heads/{request.path_params['branch']}"
    sha = await rest.hub(request).git.resolve(repository.full_name, ref)
    if sha is None:
        raise Refusal(404, "Not Found")
    api = f"{rest.hub(request).state.url}/repos/{repository.full_name}/git"
    commit = {"type": "commit", "sha": sha, "url": f"{api}/commits/{sha}"}
    return rest.answer({"ref": ref, "url": f"{api}/{quote(ref)}", "object": commit})


async def get_permission(request: Request) -> Response:
    """https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user

    `permission` is admin, write, read or none (maintain → write, triage → read); `role_name` is the exact role.
    """
    repository = rest.repository(request, ("metadata", "read"))
    if rest.caller(request).kind in ("anonymous", "app"):
        raise Refusal(401, "Requires authentication")
    state = rest.hub(request).state
    login = request.path_params["login"]
    user = state.users.get(login.lower())
    if user is None:
        raise Refusal(404, f"{login} is not a user")
    role = repository.role_of(login)
    return rest.answer({"permission": ROLES[role], "role_name": role, "user": payloads.user(state, user)})


async def list_activity(request: Request) -> Response:
    """https://docs.github.com/en/rest/repos/repos#list-repository-activities: newest first; with `ref`, of one branch."""
    repository = rest.repository(request, ("contents", "read"))
    ref = request.query_params.get("ref")
    wanted = None if not ref else ref if ref.startswith("refs/") else f"refs/heads/{ref}"
    found = [each for each in reversed(repository.activity) if wanted in (None, each.ref)]
    shown, headers = rest.page(request, found)
    state = rest.hub(request).state
    return rest.answer([payloads.activity(state, each) for each in shown], headers=headers)


async def get_contents(request: Request) -> Response:
    """https://docs.github.com/en/rest/repos/contents#get-repository-content: a file in base64, or a folder's list.

    "If the requested :path points to a symlink, and the symlink's target is a normal file in the repository, then the API
    responds with the content of the file. Otherwise, the API responds with an object describing the symlink itself."
    """
    repository = rest.repository(request, ("contents", "read"))
    git = rest.hub(request).git
    ref = request.query_params.get("ref") or repository.default_branch
    sha = await git.resolve(repository.full_name, ref)
    if sha is None:
        raise Refusal(404, f"No commit found for the ref {ref}")
    path = request.path_params.get("path", "").strip("/")
    entry = await git.entry(repository.full_name, sha, path)
    if entry is None:
        raise Refusal(404, "Not Found")
    if entry.kind == "tree":
        entries = await git.folder(repository.full_name, sha, path)
        return rest.answer([_entry(request, repository, ref, each) for each in entries])
    if entry.mode == "120000":
        linked = await git.linked_file(repository.full_name, sha, path)
        if linked is None:
            target = (await git.blob(repository.full_name, entry.sha)).decode(errors="replace")
            return rest.answer({**_entry(request, repository, ref, entry), "target": target})
        entry = linked
    shown = _entry(request, repository, ref, entry)
    if entry.kind != "blob":
        return rest.answer(shown)
    content = await git.blob(repository.full_name, entry.sha)
    if ".raw" in request.headers.get("accept", ""):
        return Response(content, media_type="application/vnd.github.raw+json")
    fits = len(content) <= LARGEST_INLINE
    shown["encoding"] = "base64" if fits else "none"
    shown["content"] = base64.encodebytes(content).decode() if fits else ""
    return rest.answer(shown)


async def get_tree(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/trees#get-a-tree: by the hash of a tree or commit, or a branch's name."""
    repository = rest.repository(request, ("contents", "read"))
    git, name = rest.hub(request).git, request.path_params["tree"]
    sha = name if _HASH.fullmatch(name) else await git.resolve(repository.full_name, name)
    if sha is None:
        raise Refusal(404, "Not Found")
    entries = await git.tree(repository.full_name, sha, recursive="recursive" in request.query_params)
    if entries is None:
        raise Refusal(404, "Not Found")
    api = f"{rest.hub(request).state.url}/repos/{repository.full_name}/git"
    tree: list[payloads.Json] = []
    for entry in entries:
        size: payloads.Json = {"size": entry.size} if entry.kind == "blob" else {}
        url = f"{api}/{'trees' if entry.kind == 'tree' else 'blobs'}/{entry.sha}"
        tree.append({"path": entry.path, "mode": entry.mode, "type": entry.kind, "sha": entry.sha, **size, "url": url})
    return rest.answer({"sha": sha, "url": f"{api}/trees/{sha}", "tree": tree, "truncated": False})


async def get_blob(request: Request) -> Response:
    """https://docs.github.com/en/rest/git/blobs#get-a-blob: base64 in JSON, or the raw bytes."""
    repository = rest.repository(request, ("contents", "read"))
    sha = request.path_params["sha"]
    if not _HASH.fullmatch(sha):
        raise Refusal(422, "The sha parameter must be exactly 40 characters and contain only [0-9a-f].")
    try:
        content = await rest.hub(request).git.blob(repository.full_name, sha)
    except GitFailed:
        raise Refusal(404, "Not Found") from None
    if ".raw" in request.headers.get("accept", ""):
        return Response(content, media_type="application/vnd.github.raw+json")
    encoded = base64.encodebytes(content).decode()
    return rest.answer({"sha": sha, "size": len(content), "encoding": "base64", "content": encoded})


def _entry(request: Request, repository: Repository, ref: str, entry: TreeEntry) -> payloads.Json:
    kinds = {"blob": "file", "tree": "dir", "commit": "submodule"}
    url = f"{rest.hub(request).state.url}/repos/{repository.full_name}/contents/{quote(entry.path)}?ref={quote(ref, safe='')}"
    return {
        "type": "symlink" if entry.mode == "120000" else kinds[entry.kind],
        "size": entry.size,
        "name": entry.path.rpartition("/")[2],
        "path": entry.path,
        "sha": entry.sha,
        "url": url,
        "_links": {"self": url},
    }


ROUTES = [
    Route("/repos/{owner}/{name}", get_repository),
    Route("/repos/{owner}/{name}/collaborators/{login}/permission", get_permission),
    Route("/repos/{owner}/{name}/git/ref/heads/{branch:path}", get_branch_reference),
    Route("/repos/{owner}/{name}/git/trees/{tree:path}", get_tree),
    Route("/repos/{owner}/{name}/git/blobs/{sha}", get_blob),
    Route("/repos/{owner}/{name}/activity", list_activity),
    Route("/repos/{owner}/{name}/contents", get_contents),
    Route("/repos/{owner}/{name}/contents/{path:path}", get_contents),
]
