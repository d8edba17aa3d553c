"""Commits and branches through GitHub's Git database API: `ports.GitData`.

Requests are limited, repeated and spaced by `session`. Objects leave room for the results of runs, and wait for their turn.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

from gibil_bot.errors import GitHubError, NotFastForward, NoWriteAccess, RefRejected
from gibil_bot.github.api.http import APP, Answer, Request
from gibil_bot.github.api.session import Session
from gibil_bot.github.registration import web_address
from gibil_bot.model import Priority
from gibil_bot.ports import GitCommit, TreeEntry
from gibil_bot.retry import RetryPolicy

MOST_BLOB_BYTES = 32 * 1024 * 1024
"""GitHub's limit isn't documented; larger requests fail."""
_TURNS = RetryPolicy(attempts=16, first_wait_s=2.0, longest_wait_s=60.0, within_s=900.0)
"""How long a request waits for a rate limit or an unreachable GitHub."""
_COLLISIONS = RetryPolicy(attempts=4, first_wait_s=0.3, longest_wait_s=3.0)
"""How often a branch is moved again that another client was just moving."""
_PERMISSIONS_AGE_S = 60.0
_REJECTED = frozenset({403, 404, 422})
_TYPES = {"040000": "tree", "160000": "commit"}


class _Object(msgspec.Struct):
    sha: str


class _Verification(msgspec.Struct):
    verified: bool = False


class _Commit(msgspec.Struct):
    sha: str
    tree: _Object
    parents: list[_Object] = msgspec.field(default_factory=list)
    verification: _Verification | None = None

    def value(self) -> GitCommit:
        return GitCommit(
            sha=self.sha,
            tree=self.tree.sha,
            parents=tuple(parent.sha for parent in self.parents),
            verified=self.verification is not None and self.verification.verified,
        )


class _Ref(msgspec.Struct):
    object: _Object


class _Comparison(msgspec.Struct):
    status: str


class _Pull(msgspec.Struct):
    number: int
    html_url: str


class _Numbered(msgspec.Struct):
    id: int


class _User(msgspec.Struct):
    id: int
    login: str


class GitDataClient:
    """ports.GitData over a session."""

    def __init__(self, session: Session, installation_id: int) -> None:
        self._session = session
        self._installation_id = installation_id

    async def may_write(self) -> bool:
        for age_s in (3600.0, _PERMISSIONS_AGE_S):
            # A token keeps the permissions that it was created with, so a missing one is looked up again.
            found = await self._session.permissions(self._installation_id, within_s=age_s)
            if found.get("contents") == "write":
                return True
        return False

    async def installation_of(self, repository: str) -> int | None:
        """https://docs.github.com/en/rest/apps/apps#get-a-repository-installation-for-the-authenticated-app"""
        request = Request(
            method="GET",
            route="/repos/{repository}/installation",
            path_parameters={"repository": repository},
            installation_id=APP,
            answers=frozenset({404}),
        )
        answer = await self._ask(request)
        return answer.read(_Numbered).id if answer.status < 400 else None

    async def noreply_address(self, login: str) -> str | None:
        """https://docs.github.com/en/rest/users/users#get-a-user; the number is the user's, also for the bot of an App.

        https://docs.github.com/en/account-and-profile/reference/email-addresses-reference#your-noreply-email-address
        """
        if login in ("", ".", ".."):
            return None
        answer = await self._get("/users/{login}", {"login": login})
        if answer.status >= 400:
            return None
        user = answer.read(_User)
        return noreply_address(self._session.url, user.id, user.login)

    # --- reading

    async def ref(self, repository: str, branch: str) -> str | None:
        """https://docs.github.com/en/rest/git/refs#get-a-reference"""
        answer = await self._get("/repos/{repository}/git/ref/heads/{path}", {"repository": repository, "path": branch})
        return answer.read(_Ref).object.sha if answer.status < 400 else None

    async def contains(self, repository: str, branch: str, sha: str) -> bool:
        """https://docs.github.com/en/rest/commits/commits#compare-two-commits: only the first page has the changed files."""
        head = await self.ref(repository, branch)
        if head is None or head == sha:
            return head == sha
        answer = await self._get(
            "/repos/{repository}/compare/{range}",
            {"repository": repository, "range": f"{sha}...{head}"},
            {"per_page": 1, "page": 2},
        )
        return answer.status < 400 and answer.read(_Comparison).status in ("ahead", "identical")

    # --- objects: creating one again returns the same, or one that no branch has

    async def create_blob(self, repository: str, content: bytes) -> str:
        """https://docs.github.com/en/rest/git/blobs#create-a-blob"""
        if len(content) > MOST_BLOB_BYTES:
            raise GitHubError(f"a file of {len(content)} bytes is too large for GitHub's API", status=422)
        body = {"content": base64.b64encode(content).decode(), "encoding": "base64"}
        return (await self._create("/repos/{repository}/git/blobs", repository, body)).read(_Object).sha

    async def create_tree(self, repository: str, base_tree: str | None, entries: Sequence[TreeEntry]) -> str:
        """https://docs.github.com/en/rest/git/trees#create-a-tree"""
        body: dict[str, object] = {"tree": [_entry(entry) for entry in entries]}
        if base_tree is not None:
            body["base_tree"] = base_tree
        return (await self._create("/repos/{repository}/git/trees", repository, body)).read(_Object).sha

    async def create_commit(self, repository: str, message: str, tree: str, parents: Sequence[str]) -> GitCommit:
        """https://docs.github.com/en/rest/git/commits#create-a-commit

        Without `author`, `committer` and `signature`, as the signature for bots requires:
        https://docs.github.com/en/authentication/managing-commit-signature-verification/about-commit-signature-verification#signature-verification-for-bots
        """
        body = {"message": message, "tree": tree, "parents": list(parents)}
        return (await self._create("/repos/{repository}/git/commits", repository, body)).read(_Commit).value()

    async def _create(self, route: str, repository: str, body: Mapping[str, object]) -> Answer:
        answer = await self._write("POST", route, {"repository": repository}, body, priority=Priority.COMMENT)
        if answer.status >= 400:
            raise _rejected(repository, answer)
        return answer

    # --- branches

    async def create_ref(self, repository: str, branch: str, sha: str) -> None:
        """https://docs.github.com/en/rest/git/refs#create-a-reference"""

        async def once() -> None:
            body = {"ref": f"refs/heads/{branch}", "sha": sha}
            answer = await self._write("POST", "/repos/{repository}/git/refs", {"repository": repository}, body)
            if answer.status < 400:
                return
            error = _rejected(repository, answer, branch)
            if not isinstance(error, RefRejected) or await self.ref(repository, branch) != sha:
                raise error

        await self._collision_free(once)

    async def move_ref(self, repository: str, branch: str, sha: str, *, expected: str | None = None) -> None:
        """https://docs.github.com/en/rest/git/refs#update-a-reference

        The API can't compare with an expected head. Fast-forward excludes every head but ancestors of `sha`, so a head to which
        the branch was reset is found by reading it just before.
        """

        async def once() -> None:
            if expected is not None and await self._is_moved(repository, branch, sha, expected):
                return
            answer = await self._write(
                "PATCH",
                "/repos/{repository}/git/refs/heads/{path}",
                {"repository": repository, "path": branch},
                {"sha": sha, "force": False},
            )
            if answer.status < 400:
                return
            error = _rejected(repository, answer, branch)
            if not isinstance(error, RefRejected):
                raise error
            if await self.contains(repository, branch, sha):
                # The answer to an earlier attempt was lost, and the branch may have moved on since.
                return
            if expected is not None and not isinstance(error, NotFastForward):
                # Another client was faster. That has several messages.
                await self._is_moved(repository, branch, sha, expected)
            raise error

        await self._collision_free(once)

    async def _is_moved(self, repository: str, branch: str, sha: str, expected: str) -> bool:
        """Return whether the branch has the commit, False if its head is `expected`. Raises NotFastForward for another head."""
        head = await self.ref(repository, branch)
        if head is None:
            raise RefRejected(f"{repository} has no branch {branch}; it was deleted or renamed", status=404)
        if head == expected:
            return False
        if head == sha or await self.contains(repository, branch, sha):
            return True
        raise NotFastForward(f"{branch} of {repository} has moved from {expected[:7]} to {head[:7]}", status=422)

    async def _collision_free(self, once: Callable[[], Awaitable[None]]) -> None:
        """Try again while GitHub can't change the branch because another write has it.

        "Reference update failed" and "Reference cannot be updated" are reported for writes at the same time:
        github/rest-api-description#4887, osunyorg/admin#119, joshcai/leetcode-sync#75.
        """

        def retry_after_s(error: Exception) -> float | None:
            return 0.0 if isinstance(error, RefRejected) and error.is_collision else None

        await _COLLISIONS.call(once, retry_after_s=retry_after_s, sleep=self._session.pause)

    # --- pull requests

    async def open_pull_request(
        self, repository: str, *, head: str, base: str, title: str, body: str = "", draft: bool = False
    ) -> tuple[int, str]:
        """https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request

        Repeatable, because GitHub allows one open pull request per head and base.
        """
        wanted: dict[str, object] = {"title": title, "head": head, "base": base, "body": body, "draft": draft}
        answer = await self._write("POST", "/repos/{repository}/pulls", {"repository": repository}, wanted)
        if answer.status == 422 and draft and "draft" in answer.message.lower():
            # Private repositories of free accounts have none.
            wanted["draft"] = False
            answer = await self._write("POST", "/repos/{repository}/pulls", {"repository": repository}, wanted)
        if answer.status < 400:
            pull = answer.read(_Pull)
            return pull.number, pull.html_url
        if answer.status == 422 and "already exists" in answer.message:
            query: dict[str, str | int] = {"state": "open", "head": f"{repository.partition('/')[0]}:{head}", "base": base}
            found = await self._get("/repos/{repository}/pulls", {"repository": repository}, query)
            if found.status < 400 and (pulls := found.read(list[_Pull])):
                return pulls[0].number, pulls[0].html_url
        if answer.status == 422:
            raise GitHubError(f"{repository}: GitHub rejected the pull request: {answer.message}", status=422)
        raise _rejected(repository, answer)

    # --- requests

    async def _get(
        self, route: str, path_parameters: Mapping[str, str | int], query: Mapping[str, str | int] | None = None
    ) -> Answer:
        request = Request(
            method="GET",
            route=route,
            path_parameters=path_parameters,
            installation_id=self._installation_id,
            query=query,
            answers=frozenset({404}),
        )
        return await self._ask(request)

    async def _write(
        self,
        method: str,
        route: str,
        path_parameters: Mapping[str, str | int],
        body: Mapping[str, object],
        *,
        priority: Priority = Priority.RESULT,
    ) -> Answer:
        request = Request(
            method=method,
            route=route,
            path_parameters=path_parameters,
            installation_id=self._installation_id,
            body=body,
            answers=_REJECTED,
            repeatable=True,
            priority=priority,
        )
        return await self._ask(request)

    async def _ask(self, request: Request) -> Answer:
        async def once() -> Answer:
            return await self._session.ask(request)

        return await _TURNS.call(
            once,
            retry_after_s=lambda error: error.retry_after_s if isinstance(error, GitHubError) else None,
            sleep=self._session.pause,
        )


def noreply_address(api_url: str, user_id: int, login: str) -> str:
    """Return `ID+LOGIN@users.noreply.HOST`. Pure."""
    host = urlsplit(web_address(api_url)).hostname or "github.com"
    return f"{user_id}+{login}@users.noreply.{host}"


def _entry(entry: TreeEntry) -> dict[str, object]:
    found: dict[str, object] = {"path": entry.path, "mode": entry.mode, "type": _TYPES.get(entry.mode, "blob")}
    # An entry has either; `sha: null` deletes the path.
    return found | ({"content": entry.text} if entry.text is not None else {"sha": entry.sha})


def _rejected(repository: str, answer: Answer, branch: str = "") -> GitHubError:
    """Explain a rejected write. The messages are those that users report, because GitHub documents only the statuses."""
    message = answer.message
    if answer.status in (403, 404):
        return NoWriteAccess(
            f"the App may not write to {repository} ({message}): it needs `contents: write`, accepted at the installation, and "
            "for files in .github/workflows also `workflows: write`",
            status=answer.status,
        )
    if not branch:
        return GitHubError(f"{repository}: GitHub rejected a git object: {message}", status=answer.status)
    if "fast forward" in message.lower():
        return NotFastForward(f"{branch} of {repository} has commits that would be lost: {message}", status=answer.status)
    error = RefRejected(f"{branch} of {repository} was not changed: GitHub answered {message!r}", status=answer.status)
    error.is_collision = "update failed" in message.lower() or "cannot be updated" in message.lower()
    return error
