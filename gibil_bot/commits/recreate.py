"""Creates a commit again with some of its changes only, in our repository."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gibil_bot import git
from gibil_bot.commits import objects
from gibil_bot.commits.objects import FOLDER, Change, environment
from gibil_bot.git import ALL_FILES, GitError

_MOST_COMPARED = 20_000
_INDEX = "gibil-index"
_IDENTITY = {
    "AUTHOR_NAME": "gibil",
    "AUTHOR_EMAIL": "gibil@localhost",
    "COMMITTER_NAME": "gibil",
    "COMMITTER_EMAIL": "gibil@localhost",
}


async def recreate(repository: Path, message: str, parents: Sequence[str], changes: Sequence[Change]) -> str:
    """Return a new commit: the first parent's files with these changes, which are files and links.

    Raises GitError, also if the changes don't fit that parent: a file in a folder that is a file there.
    """
    extra = environment() | {"GIT_INDEX_FILE": str(repository / _INDEX)}
    await git.run("read-tree", parents[0], git_dir=repository, extra=extra, limits=ALL_FILES)
    # Removals first: a file may become a folder.
    ordered = sorted(changes, key=lambda change: change.mode is not None)
    lines = b"".join(
        f"{change.mode or '0'} {change.new or '0' * 40}\t".encode() + change.path.encode("utf-8", "surrogateescape") + b"\0"
        for change in ordered
    )
    await git.run("update-index", "-z", "--index-info", git_dir=repository, extra=extra, stdin=lines, limits=ALL_FILES)
    tree = await git.text("write-tree", git_dir=repository, extra=extra, limits=ALL_FILES)
    named = [word for parent in parents for word in ("-p", parent)]
    identity = {f"GIT_{name}": value for name, value in _IDENTITY.items()}
    created = await git.text(
        "commit-tree", tree, *named, git_dir=repository, extra=extra | identity,
        stdin=message.encode("utf-8", "surrogateescape"),
    )  # fmt: skip
    # What was checked is what is created: git replaces a file by a folder, and the reverse, without a word.
    pair = (parents[0], created)
    try:
        found = (await objects.changes(repository, [pair], most=_MOST_COMPARED, too_many=""))[pair]
    except objects.TooMany:
        found = ()
    changed = {(change.path, change.mode, change.new) for change in found if FOLDER not in (change.mode, change.old_mode)}
    if changed != {(change.path, change.mode, change.new) for change in changes}:
        raise GitError("a commit without the dropped changes has other changes than those that were checked")
    return created
