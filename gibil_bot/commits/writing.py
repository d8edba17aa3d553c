"""Writes checked commits to GitHub through its Git database API, so that GitHub signs them.

The commits are in a bare repository on this host, and have passed all checks. Each is created again at GitHub with the same
tree and message, and with the App as its author; so its hash is another one. Objects are named by their content: a tree that
GitHub returns is compared with the one on this host, and a repeated write creates nothing that a branch shows.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gibil_bot import git
from gibil_bot.commits import objects
from gibil_bot.commits.objects import FOLDER, SUBMODULE, Change, Commit, TooMany
from gibil_bot.commits.paths import parents_of
from gibil_bot.errors import GibilError, GitHubError
from gibil_bot.git import FOREIGN
from gibil_bot.model import PullRequest
from gibil_bot.ports import GitCommit, GitData, TreeEntry

log = logging.getLogger("gibil.runner")

MOST_COMMITS = 100
"""Each takes at least one request, usually two."""
RUN_TRAILER = "Gibil-Run"
CO_AUTHOR_TRAILER = "Co-authored-by"

_LONGEST_TEXT = 256 * 1024
"""A text file up to this many bytes is sent with its tree instead of as a blob."""
_MOST_CHANGES = 20_000
_MOST_TEXT = 2 * 1024 * 1024
"""All text files of one tree."""
_RUN_LINE = re.compile(rf"{RUN_TRAILER}\s*:.*", re.IGNORECASE)
# https://docs.github.com/en/pull-requests/committing-changes-to-your-project/creating-and-editing-commits/creating-a-commit-with-multiple-authors
# and /creating-a-commit-on-behalf-of-an-organization; git(1) writes and reads other names in -by
_SPEAKS_FOR_A_PERSON = re.compile(r"(?:[a-z]+-)+by\s*:.*|on-behalf-of\s*:.*|skip-checks\s*:.*", re.IGNORECASE)
# https://docs.github.com/en/actions/managing-workflow-runs-and-deployments/managing-workflow-runs/skipping-workflow-runs
_SKIPS_CHECKS = re.compile(
    r"\[\s*((?:skip|no)[ _-][\w-]{1,20}|[\w-]{1,20}[ _-]skip)\s*\]|(?<!\*)\*{3,}+(NO_CI)\*{3,}+", re.IGNORECASE
)
_TRAILER = re.compile(r"[A-Za-z][A-Za-z0-9-]*: \S.*")
_WITHIN_S = 120.0


class NotWritten(GibilError):
    """Commits that can't be written to GitHub as they are."""

    code = "NOT_WRITTEN"


@dataclass(slots=True)
class _Job:
    """What one write needs to know while it runs."""

    data: GitData
    repository: str
    folder: Path
    new: frozenset[str]
    """Hashes of objects that GitHub may not have."""
    sent: set[str] = field(default_factory=set)
    """Blobs and trees that GitHub has now."""


async def write(
    data: GitData,
    repository: str,
    folder: Path,
    *,
    base: str,
    head: str,
    run_url: str = "",
    co_author: str = "",
    own_message: str = "",
) -> str:
    """Create the commits between `base`, which GitHub has, and `head` of the bare repository in `folder`; return the new head.

    `co_author`: the requester, as `Name <address>`. `own_message`: the workflow's message; others are the machine's. Raises
    NotWritten, GitHubError, GitError. Safe to repeat at any time.
    """
    try:
        commits = await _commits(folder, base, head)
        changes = await _changes(folder, commits)
    except TooMany as error:
        raise NotWritten(error.message) from error
    trailers = [(CO_AUTHOR_TRAILER, co_author), (RUN_TRAILER, run_url)]
    job = _Job(data, repository, folder, await _new_objects(folder, base, head))
    created: dict[str, str] = {}
    for commit in commits:
        await _write_tree(job, commit, changes[commit.sha])
        # A parent that isn't new is the base or one of its ancestors.
        parents = [created.get(parent, parent) for parent in commit.parents]
        is_own = commit.message.strip() == own_message.strip()
        message = with_trailers(commit.message if is_own else from_machine(commit.message), trailers)
        found: GitCommit = await data.create_commit(repository, message, commit.tree, parents)
        created[commit.sha] = found.sha
    if not found.verified:
        log.warning("%s: GitHub shows %s as unverified", repository, found.sha[:7])
    return created[head]


async def git_data_for_head(data: GitData, pull: PullRequest, base_repository: str, installation_id: int) -> int | None:
    """Return the installation with which to write to the head's repository; None if there is no chance.

    A fork may have its own installation. Otherwise "Allow edits by maintainers" may extend to the App, which GitHub
    doesn't document, so that the attempt may raise NoWriteAccess: a token of GitHub Actions could push once it was ticked
    (stefanzweifel/git-auto-commit-action#281). It has no effect on an organization's fork (isaacs/github#1681).
    https://docs.github.com/en/pull-requests/collaborating-with-pull-requests/working-with-forks/allowing-changes-to-a-pull-request-branch-created-from-a-fork
    """
    if pull.head_repository is None:
        return None
    if pull.head_repository.lower() == base_repository.lower():
        return installation_id
    own = await data.installation_of(pull.head_repository)
    if own is not None:
        return own
    return installation_id if pull.maintainer_can_modify and pull.head_owner_is_user else None


def with_trailers(message: str, trailers: Sequence[tuple[str, str]]) -> str:
    """Return a message that ends with these trailers; one that it has already isn't repeated. Pure.

    Trailers that name a run are removed first, because only the bot writes them.
    """
    kept = [line for line in re.split(r"\r\n|\r|\n", message) if not _RUN_LINE.fullmatch(line)]
    text = "\n".join(kept).strip("\n")
    present = {line.strip().lower() for line in text.split("\n")}
    added = [f"{name}: {value}" for name, value in trailers if value]
    added = [line for line in added if line.lower() not in present]
    if not added:
        return f"{text}\n"
    subject, _, body = text.partition("\n\n")
    last = body.rpartition("\n\n")[2]
    joined = "\n" if subject and last and all(_TRAILER.fullmatch(line) for line in last.split("\n")) else "\n\n"
    return f"{text}{joined}{chr(10).join(added)}\n"


def from_machine(message: str) -> str:
    """Return a machine's message without control characters, and without effects that GitHub gives to words. Pure.

    The commit is signed in the App's name, so lines in which a person or an organization takes part become quotations, and
    checks can't be skipped. Nothing else is lost.
    """
    text = re.sub(r"\r\n?", "\n", message)
    # First, because what remains of a line or a word could have an effect.
    text = "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) != "Cc")
    quoted = "\n".join(f"> {line}" if _SPEAKS_FOR_A_PERSON.fullmatch(line) else line for line in text.split("\n"))
    return _SKIPS_CHECKS.sub(lambda match: match[2] or f"({match[1]})", quoted)


# --- trees


async def _write_tree(job: _Job, commit: Commit, changes: Sequence[Change]) -> None:
    """Make sure that GitHub has the commit's tree."""
    if commit.tree not in job.new or commit.tree in job.sent:
        return
    base = await _tree_of(job.folder, commit.parents[0]) if commit.parents else None
    if not _replaces_kinds(changes):
        entries = await _entries(job, changes)
        try:
            found = await job.data.create_tree(job.repository, base, entries)
        except GitHubError as error:
            if error.status != 422:
                raise
        else:
            if found == commit.tree:
                job.sent.update({commit.tree, *(change.new for change in changes if change.new)})
                return
    # A file that becomes a folder, a name that isn't UTF-8 or a text that JSON doesn't preserve: every folder by itself.
    await _write_folder(job, commit.tree)


async def _entries(job: _Job, changes: Sequence[Change]) -> list[TreeEntry]:
    wanted = [change.new for change in changes if change.mode != SUBMODULE]
    texts: dict[str, str] = {}
    size = 0
    async for sha, content in _contents(job, wanted):
        text = _text(content)
        if text is not None and size + len(content) <= _MOST_TEXT and wanted.count(sha) == 1:
            texts[sha] = text
            size += len(content)
        else:
            await _write_blob(job, sha, content)
    return [
        TreeEntry(path=change.path, mode=_mode(change), text=texts[change.new])
        if change.new in texts
        else TreeEntry(path=change.path, mode=_mode(change), sha=change.new)
        for change in changes
    ]


def _mode(change: Change) -> str:
    """Return the mode of a file, also of one that is deleted."""
    mode = change.mode or change.old_mode
    assert mode is not None
    return mode


async def _write_folder(job: _Job, tree: str) -> None:
    """Create a folder from all its entries, after the folders and files in it that GitHub may not have."""
    if tree in job.sent or tree not in job.new:
        return
    listing = await git.run(
        "ls-tree", "-z", tree, git_dir=job.folder, limits=FOREIGN, within_s=_WITHIN_S, extra=objects.environment()
    )
    entries: list[TreeEntry] = []
    for record in listing.split(b"\0")[:-1]:
        attributes, _, name = record.partition(b"\t")
        mode, _, sha = attributes.decode().split(" ")
        try:
            entries.append(TreeEntry(path=name.decode(), mode=mode, sha=sha))
        except UnicodeDecodeError:
            raise NotWritten(f"the name {name!r} isn't UTF-8, so GitHub's API can't create it") from None
        if mode == FOLDER:
            await _write_folder(job, sha)
    async for sha, content in _contents(job, [entry.sha for entry in entries if entry.mode not in (FOLDER, SUBMODULE)]):
        await _write_blob(job, sha, content)
    if not entries:
        raise NotWritten("a commit without any file can't be created through GitHub's API")
    found = await job.data.create_tree(job.repository, None, entries)
    if found != tree:
        raise NotWritten(f"GitHub created the tree {found[:7]} in place of {tree[:7]}; nothing was pushed")
    job.sent.add(tree)


async def _write_blob(job: _Job, sha: str, content: bytes) -> None:
    found = await job.data.create_blob(job.repository, content)
    if found != sha:
        raise NotWritten(f"GitHub created the file {found[:7]} in place of {sha[:7]}; nothing was pushed")
    job.sent.add(sha)


def _text(content: bytes) -> str | None:
    """Return a content that JSON preserves; None for another."""
    if len(content) > _LONGEST_TEXT or b"\0" in content:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _replaces_kinds(changes: Sequence[Change]) -> bool:
    """Return whether a file becomes a folder or the reverse, or a name isn't UTF-8."""
    names = {change.path for change in changes}
    folders = {folder for name in names for folder in parents_of(name)}
    return bool(names & folders) or any("\udc80" <= sign <= "\udcff" for name in names for sign in name)


# --- reading the repository on this host


async def _commits(folder: Path, base: str, head: str) -> tuple[Commit, ...]:
    """Return the new commits, parents first."""
    too_many = f"there are more than {MOST_COMMITS} new commits; squash them"
    found = await objects.commits(folder, head, base, most=MOST_COMMITS, too_many=too_many)
    if not found:
        raise NotWritten("there is no new commit")
    return found


async def _changes(folder: Path, commits: Sequence[Commit]) -> dict[str, list[Change]]:
    """Return for each commit what differs from its first parent, without folders."""
    pairs = [(commit.parents[0] if commit.parents else "", commit.sha) for commit in commits]
    too_many = f"the commits change files more than {_MOST_CHANGES:,} times"
    found = await objects.changes(folder, pairs, most=_MOST_CHANGES, too_many=too_many)
    return {sha: [each for each in found[before, sha] if FOLDER not in (each.mode, each.old_mode)] for before, sha in pairs}


async def _new_objects(folder: Path, base: str, head: str) -> frozenset[str]:
    """Return the hashes of blobs and trees that the base doesn't have."""
    listing = await git.run(
        "rev-list", "--objects", "--no-object-names", head, f"^{base}", git_dir=folder, limits=FOREIGN, within_s=_WITHIN_S,
        extra=objects.environment(),
    )  # fmt: skip
    return frozenset(listing.decode().split())


async def _tree_of(folder: Path, commit: str) -> str:
    return await git.text(
        "rev-parse", "--verify", f"{commit}^{{tree}}", git_dir=folder, limits=FOREIGN, extra=objects.environment()
    )


async def _contents(job: _Job, shas: Iterable[str | None]) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the contents that GitHub may not have, each once. See objects.contents for how many are held at once."""
    missing = list(dict.fromkeys(sha for sha in shas if sha and sha in job.new and sha not in job.sent))
    async for pair in objects.contents(job.folder, list((await objects.sizes(job.folder, missing)).items())):
        yield pair
