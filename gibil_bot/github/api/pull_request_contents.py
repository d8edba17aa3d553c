"""What an agent gets to read of a pull request: `ports.PullRequestContents`. Limited in requests and bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

import msgspec

from gibil_bot.github.api.http import Answer, Request
from gibil_bot.github.api.session import Session
from gibil_bot.github.payloads import UserPayload, no_nul, person, utc
from gibil_bot.ports import FilesAt, PullRequestComment, RepositoryFile

MOST_PAGES = 3
"""Of comments, the newest ones, with a hundred each."""
TREE_BYTES = 16 * 1024 * 1024
"""GitHub cuts a recursive tree at 100,000 entries or 7 MB itself: https://docs.github.com/en/rest/git/trees#get-a-tree"""

_PER_PAGE = 100
_MODES = ("100644", "100755")
_SYMLINK = "120000"
_MOST_LINKS = 5
"""How many symbolic links are followed for one file."""
_MOST_TARGET_BYTES = 4096


class _Text(msgspec.Struct):
    body: str | None = None


class _App(msgspec.Struct):
    """Only its presence matters."""


class _Comment(msgspec.Struct):
    id: int
    created_at: datetime
    updated_at: datetime
    user: UserPayload | None = None
    body: str | None = None
    path: str | None = None
    line: int | None = None
    performed_via_github_app: _App | None = None

    def value(self) -> PullRequestComment:
        return PullRequestComment(
            id=self.id,
            author=person(self.user),
            body=no_nul(self.body or ""),
            created_at=utc(self.created_at),
            updated_at=utc(self.updated_at),
            path=self.path,
            line=self.line,
            by_app=self.performed_via_github_app is not None,
        )


class _Entry(msgspec.Struct):
    path: str
    mode: str
    sha: str
    size: int = 0


class _Tree(msgspec.Struct):
    tree: list[_Entry]
    truncated: bool = False


class PullRequestContents:
    """See ports.PullRequestContents."""

    def __init__(self, session: Session, installation_id: int) -> None:
        self._session = session
        self._installation_id = installation_id

    async def description(self, repository: str, number: int) -> str:
        """https://docs.github.com/en/rest/pulls/pulls#get-a-pull-request"""
        answer = await self._get("/repos/{repository}/pulls/{number}", repository, number=number)
        return no_nul(answer.read(_Text).body or "")

    async def comments(self, repository: str, number: int) -> list[PullRequestComment]:
        """https://docs.github.com/en/rest/issues/comments#list-issue-comments (always the oldest first)
        https://docs.github.com/en/rest/pulls/comments#list-review-comments-on-a-pull-request
        """
        conversation, review = await asyncio.gather(
            self._conversation(repository, number), self._review_comments(repository, number)
        )
        return sorted((each.value() for each in (*conversation, *review)), key=lambda each: (each.created_at, each.id))

    async def _conversation(self, repository: str, number: int) -> list[_Comment]:
        route = "/repos/{repository}/issues/{number}/comments"
        first = await self._get(route, repository, query={"per_page": _PER_PAGE}, number=number)
        newest = first.last_page
        if newest == 1:
            return first.read(list[_Comment])
        found: list[_Comment] = []
        for page in range(max(1, newest - MOST_PAGES + 1), newest + 1):
            answer = await self._get(route, repository, query={"per_page": _PER_PAGE, "page": page}, number=number)
            found += answer.read(list[_Comment])
        return found

    async def _review_comments(self, repository: str, number: int) -> list[_Comment]:
        found: list[_Comment] = []
        for page in range(1, MOST_PAGES + 1):
            answer = await self._get(
                "/repos/{repository}/pulls/{number}/comments",
                repository,
                query={"sort": "created", "direction": "desc", "per_page": _PER_PAGE, "page": page},
                number=number,
            )
            found += answer.read(list[_Comment])
            if 'rel="next"' not in answer.headers.get("link", ""):
                break
        return found

    async def diff(self, repository: str, base: str, head: str, *, most_bytes: int) -> bytes | None:
        """https://docs.github.com/en/rest/commits/commits#compare-two-commits

        406: it is too large. 404: a commit was replaced and deleted.
        """
        answer = await self._get(
            "/repos/{repository}/compare/{range}",
            repository,
            answers=frozenset({404, 406, 422}),
            accept="application/vnd.github.diff",
            at_most=most_bytes,
            range=f"{base}...{head}",
        )
        return answer.content if answer.status < 400 else None

    async def files(
        self, repository: str, commit: str, is_wanted: Callable[[str], bool], *, most_files: int, most_bytes: int
    ) -> FilesAt:
        """https://docs.github.com/en/rest/git/trees#get-a-tree
        https://docs.github.com/en/rest/git/blobs#get-a-blob
        """
        answer = await self._get(
            "/repos/{repository}/git/trees/{tree}",
            repository,
            query={"recursive": 1},
            at_most=TREE_BYTES,
            tree=commit,
        )
        tree = answer.read(_Tree)
        entries = {entry.path: entry for entry in tree.tree}
        files: dict[str, RepositoryFile] = {}
        omitted: list[str] = []
        for path in [path for path, entry in entries.items() if entry.mode in (*_MODES, _SYMLINK) and is_wanted(path)]:
            entry = await self._resolved(repository, entries, path)
            if entry is None or len(files) >= most_files or entry.size > most_bytes:
                omitted.append(path)
                continue
            content = await self._blob(repository, entry, most_bytes)
            most_bytes -= len(content)
            files[path] = RepositoryFile(content=content, is_executable=entry.mode == "100755")
        return FilesAt(commit=commit, files=files, omitted=tuple(omitted), is_complete=not tree.truncated)

    async def _resolved(self, repository: str, entries: dict[str, _Entry], path: str) -> _Entry | None:
        """Return the file that a path means within the same commit; None if that is no file of it."""
        for _ in range(_MOST_LINKS):
            entry = entries.get(path)
            if entry is None or entry.mode != _SYMLINK:
                return entry if entry is not None and entry.mode in _MODES else None
            target = (await self._blob(repository, entry, _MOST_TARGET_BYTES)).decode("utf-8", "surrogateescape")
            parts = path.split("/")[:-1]
            for part in target.split("/"):
                if part == "..":
                    if not parts:
                        return None
                    parts.pop()
                elif part not in ("", "."):
                    parts.append(part)
            if target.startswith("/"):
                return None
            path = "/".join(parts)
        return None

    async def _blob(self, repository: str, entry: _Entry, most_bytes: int) -> bytes:
        answer = await self._get(
            "/repos/{repository}/git/blobs/{sha}",
            repository,
            accept="application/vnd.github.raw+json",
            at_most=most_bytes,
            sha=entry.sha,
        )
        return answer.content

    async def _get(
        self,
        route: str,
        repository: str,
        *,
        query: dict[str, str | int] | None = None,
        answers: frozenset[int] = frozenset(),
        accept: str = "application/vnd.github+json",
        at_most: int | None = None,
        **parameters: str | int,
    ) -> Answer:
        return await self._session.ask(
            Request(
                method="GET",
                route=route,
                path_parameters={"repository": repository, **parameters},
                installation_id=self._installation_id,
                query=query,
                answers=answers,
                accept=accept,
                at_most=at_most,
            )
        )
