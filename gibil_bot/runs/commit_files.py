"""Reads the `.gibil.yml` and the workflow files of one commit, with the same results as GitHub's contents API.

A symbolic link to a file of the same commit is followed, as on GitHub
(https://docs.github.com/en/rest/repos/contents#get-repository-content). Anything else that isn't a file becomes an
UnusableFile.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gibil_bot import git
from gibil_bot.git import GitError
from gibil_bot.limits import MOST_WORKFLOW_FILES, REPOSITORY_FILE, WORKFLOW_FILE_BYTES, WORKFLOW_FOLDER
from gibil_bot.model import UnusableFile

_LIST_BYTES = 1024 * 1024
_LINK, _SUBMODULE, _TREE = "120000", "160000", "040000"

Extra = Mapping[str, str | None]
"""Additions to git's environment."""


async def repository_file(repository: Path, sha: str, extra: Extra) -> bytes | None:
    """Return the `.gibil.yml` of a commit in a repository that we created. Raises GitError."""
    entries = await _list(repository, extra, sha, REPOSITORY_FILE)
    return (await _read(repository, extra, sha, entries)).get(REPOSITORY_FILE)


async def workflow_files(repository: Path, sha: str) -> dict[str, bytes]:
    """Return path → content of the `.gibil.yml` and of `.gibil/workflows/*.yml`. Raises GitError."""
    extra: Extra = {}
    entries = await _list(repository, extra, sha, REPOSITORY_FILE, WORKFLOW_FOLDER)
    folder = entries.pop(WORKFLOW_FOLDER, None)
    if folder is not None and folder[0] == _TREE:
        listed = await _list(repository, extra, folder[1])
        names = [name for name, (mode, _) in listed.items() if name.endswith((".yml", ".yaml")) and mode != _TREE]
        entries |= {f"{WORKFLOW_FOLDER}/{name}": listed[name] for name in sorted(names)[:MOST_WORKFLOW_FILES]}
    elif folder is not None and folder[0] in (_LINK, _SUBMODULE):
        entries[WORKFLOW_FOLDER] = folder
    return await _read(repository, extra, sha, entries)


async def _list(repository: Path, extra: Extra, tree: str, *paths: str) -> dict[str, tuple[str, str]]:
    """Return path → (mode, object) of the entries of a tree."""
    listing = await git.run(
        "ls-tree", "-z", "--full-tree", tree, "--", *paths, git_dir=repository, extra=extra, most_bytes=_LIST_BYTES
    )
    found = {}
    for line in listing.decode("utf-8", "surrogateescape").split("\0"):
        entry, tab, path = line.partition("\t")
        if tab:
            mode, _, name = entry.split(" ")
            found[path] = (mode, name)
    return found


async def _read(repository: Path, extra: Extra, sha: str, entries: dict[str, tuple[str, str]]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    wanted: dict[str, str] = {}
    for path, (mode, name) in entries.items():
        if mode == _LINK and path != WORKFLOW_FOLDER:
            target = await _target(repository, extra, sha, path)
            if target is None:
                files[path] = UnusableFile.of("symlink")
            else:
                wanted[path] = target
        elif mode in (_LINK, _SUBMODULE):
            files[path] = UnusableFile.of("symlink" if mode == _LINK else "submodule", is_folder=path == WORKFLOW_FOLDER)
        elif mode != _TREE:
            wanted[path] = name
    for path, name in wanted.items():
        size = int(await git.text("cat-file", "-s", name, git_dir=repository, extra=extra))
        # A file above the limit is reported as too large, whatever it contains.
        files[path] = b" " * (WORKFLOW_FILE_BYTES + 1)
        if size <= WORKFLOW_FILE_BYTES:
            files[path] = await git.run("cat-file", "blob", name, git_dir=repository, extra=extra)
    return files


async def _target(repository: Path, extra: Extra, sha: str, path: str) -> str | None:
    """Return the blob that a symbolic link leads to within its commit; None if it leads elsewhere."""
    if "\n" in path:
        return None
    query = f"{sha}:{path}\n".encode("utf-8", "surrogateescape")
    try:
        answer = await git.run("cat-file", "--batch-check", "--follow-symlinks", git_dir=repository, extra=extra, stdin=query)
    except GitError:
        return None
    words = answer.partition(b"\n")[0].decode("utf-8", "surrogateescape").split(" ")
    return words[0] if len(words) == 3 and words[1] == "blob" else None
