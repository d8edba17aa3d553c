"""POSIX sh that puts one exact commit at the workspace: cloned from GitHub, or taken out of a bundle.

The token comes in the environment variable GIBIL_CLONE_TOKEN and stays there: git asks a helper that reads it, so that
it is in no argv, no URL, no file. No hook of anybody's runs. The last line on stderr says what went wrong, for people;
the exit status says it for programs. Running a script again is safe: what is done is left, what is half is removed.
"""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

from gibil_bot.errors import UsageError
from gibil_bot.scripts.templates import script, text

CLONE_GONE = 20
"""The commit is not in the repository any more."""
CLONE_UNREACHABLE = 21
"""The server does not answer, or not with sense: worth another try."""
CLONE_REFUSED = 22
"""The server wants other credentials, or does not show the repository to us."""
CLONE_NO_GIT = 23
"""git is not on the machine."""
CLONE_BROKEN = 24
"""It arrived and could not be unpacked: a full disk, most often."""

WORKSPACE = "/root/project"

_SHA = re.compile(r"[0-9a-f]{40}")
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/@%+-]+|https?://\[[0-9a-fA-F:]+\][A-Za-z0-9._~:/%+-]*")

_FROM_HTTP = "GIT_ALLOW_PROTOCOL=http:https\nGIBIL_CLONE_HOST=$host\nexport GIBIL_CLONE_HOST\n"

_NOTES = {
    "submodules": "This commit has submodules (.gitmodules). They are not fetched: their folders are empty.",
    "lfs": "This commit has Git LFS files (filter=lfs in .gitattributes). They are not fetched: pointers are in their place.",
}


def notes_of_clone(output: bytes) -> tuple[str, ...]:
    """Notes for people in what one of these scripts printed: a fixed set, whatever the machine says."""
    lines = set(output[:4096].decode("ascii", "replace").split("\n"))
    return tuple(note for note in _NOTES.values() if f"gibil: {note}" in lines)


def clone_script(*, clone_url: str, number: int, sha: str, workspace: str = WORKSPACE) -> str:
    """A script that puts `sha` of pull request `number` at `workspace`, as a shallow clone with a detached head.

    Runs in `sh` with GIBIL_CLONE_TOKEN in its environment (empty: without credentials). Exit status 0 or one of
    CLONE_GONE, CLONE_UNREACHABLE, CLONE_REFUSED, CLONE_NO_GIT, CLONE_BROKEN. Raises UsageError for an address that is
    not plain http(s), or that holds credentials.
    """
    host = _checked_host(clone_url)
    if number < 1:
        raise UsageError(f"{number} is not the number of a pull request")
    values = _assignments(
        workspace=_checked_workspace(workspace),
        sha=_checked_sha(sha),
        url=clone_url,
        number=str(number),
        host=host,
        doubt="is the App still installed on it?",
    )
    return f"{values}{_FROM_HTTP}{_begin()}{text('clone_fetch')}{text('clone_pull_request')}"


def branch_script(*, clone_url: str, sha: str, workspace: str = WORKSPACE) -> str:
    """A script that puts `sha`, the head of some branch, at `workspace`: all branches, whole history, a detached head.

    Environment, statuses and errors are those of `clone_script`.
    """
    host = _checked_host(clone_url)
    values = _assignments(
        workspace=_checked_workspace(workspace),
        sha=_checked_sha(sha),
        url=clone_url,
        host=host,
        doubt="is it still there, and public?",
    )
    return f"{values}{_FROM_HTTP}{_begin()}{text('clone_fetch')}{text('clone_branch')}"


def bundle_script(*, path: str, sha: str, workspace: str = WORKSPACE) -> str:
    """A script that puts `sha` at `workspace` out of the git bundle, or bare repository, at `path` on the machine.

    Statuses as above.
    """
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"the bundle's path has to be absolute, and {path!r} is not")
    values = _assignments(workspace=_checked_workspace(workspace), sha=_checked_sha(sha), bundle=path)
    return f"{values}GIT_ALLOW_PROTOCOL=file\n{_begin()}{text('clone_bundle')}"


def _begin() -> str:
    return script("clone_begin", **{name.upper(): shlex.quote(f"gibil: {note}") for name, note in _NOTES.items()})


def _assignments(**values: str) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _checked_sha(sha: str) -> str:
    if not _SHA.fullmatch(sha):
        raise UsageError(f"{sha!r} is not a whole commit id: 40 hexadecimal digits")
    return sha


def _checked_workspace(workspace: str) -> str:
    parts = workspace.split("/")
    if not workspace.startswith("/") or ".." in parts or len([part for part in parts if part]) < 2 or "\0" in workspace:
        raise UsageError(f"the workspace has to be an absolute path of two parts or more, and {workspace!r} is not")
    return workspace


def _checked_host(clone_url: str) -> str:
    """The host, with its port where one is named, as git's credential helpers are told it."""
    try:
        url = urlsplit(clone_url)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.password is None
        port = url.port
    except ValueError:
        valid, port = False, None
    if not valid or not _URL_CHARACTERS.fullmatch(clone_url):
        raise UsageError("the clone address has to be http(s)://host/path without credentials, as GitHub's clone_url is")
    host = urlsplit(clone_url).netloc
    return host if port is not None else host.rstrip(":")
