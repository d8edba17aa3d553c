"""Scripts (POSIX sh) that check out one exact commit in the workspace, from GitHub or from a bundle.

The token is in the environment variable GIBIL_CLONE_TOKEN only: git asks a credential helper that reads it, so it is in no
argv, URL or file. No git hooks run. The last line on stderr is the error for people, the exit status the error for programs. A
script can be run again: a completed clone is left as it is, an incomplete one is deleted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from urllib.parse import urlsplit

from gibil_bot.errors import UsageError
from gibil_bot.model import Checkout
from gibil_bot.scripts.outbox import outbox_function
from gibil_bot.scripts.templates import script, text

CLONE_GONE = 20
"""The repository doesn't contain the commit any more."""
CLONE_UNREACHABLE = 21
"""The server doesn't answer, or gives an invalid answer; try again."""
CLONE_REFUSED = 22
"""The server rejects the credentials, or doesn't show us the repository."""
CLONE_NO_GIT = 23
"""git isn't installed on the machine."""
CLONE_BROKEN = 24
"""The data arrived and couldn't be unpacked, usually because the disk is full."""

WORKSPACE = "/root/project"

# No branch of git's has other characters (git-check-ref-format), and none of these has a meaning in a refspec.
_BRANCH = re.compile(r"[^\x00-\x20\x7f~^:?*\[\\]+")
_SHA = re.compile(r"[0-9a-f]{40}")
_URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/@%+-]+|https?://\[[0-9a-fA-F:]+\][A-Za-z0-9._~:/%+-]*")

_FROM_HTTP = (
    "GIT_ALLOW_PROTOCOL=http:https\nGIBIL_CLONE_HOST=$host GIBIL_CLONE_PROTOCOL=${url%%:*}\n"
    "export GIBIL_CLONE_HOST GIBIL_CLONE_PROTOCOL\n"
)

_WHOLE = Checkout()
_MOST_SUBMODULES = 50
_HISTORY_S = 60
"""Then a run continues with its commit alone."""

_NOTES = {
    "submodules": "This commit has submodules (.gitmodules). They are not fetched: their folders are empty.",
    "history": (
        f"The commit's history and tags were not fetched within {_HISTORY_S} s, so tools that read them may fail; "
        "`checkout: {depth: 1, tags: false}` doesn't fetch them."
    ),
    "lfs": "This commit has Git LFS files (filter=lfs in .gitattributes). gibil fetches only their pointers.",
}


def notes_of_clone(output: bytes) -> tuple[str, ...]:
    """Return the notes for people in a script's output: only fixed texts, whatever the machine prints."""
    lines = set(output[:4096].decode("ascii", "replace").split("\n"))
    return tuple(note for note in _NOTES.values() if f"gibil: {note}" in lines)


def submodule_names(output: bytes, clone_url: str) -> tuple[str, ...]:
    """Return the names of the repositories that a script needed for submodules, of the same owner on the same server."""
    here = urlsplit(clone_url)
    owner = here.path.strip("/").split("/")[0].lower()
    names: dict[str, None] = {}
    ssh = re.compile(rf"(?:ssh://git@{re.escape(here.hostname or '')}/|git@{re.escape(here.hostname or '')}:)(?=[^/])")
    for line in output[:65536].decode("utf-8", "replace").split("\n"):
        word, _, address = line.partition(" ")
        address = ssh.sub(f"{_server(clone_url)}/", address, count=1)
        if word != "gibil-submodule:" or not _URL_CHARACTERS.fullmatch(address):
            continue
        there = urlsplit(address)
        parts = there.path.strip("/").removesuffix(".git").split("/")
        if (there.scheme, there.netloc) == (here.scheme, here.netloc) and len(parts) == 2 and parts[0].lower() == owner:
            names[parts[1]] = None
    return tuple(names)[:_MOST_SUBMODULES]


def same_server(address: str, clone_url: str) -> bool:
    """Return whether the address of a submodule, which may be for SSH, is on the server of a clone URL."""
    host = re.escape(urlsplit(clone_url).hostname or "")
    return address.startswith(f"{_server(clone_url)}/") or re.match(rf"(ssh://git@{host}/|git@{host}:)", address) is not None


def clone_script(
    *,
    clone_url: str,
    number: int,
    sha: str,
    base: str = "",
    checkout: Checkout = _WHOLE,
    workspace: str = WORKSPACE,
) -> str:
    """Return a script that checks out `sha` of pull request `number` at `workspace` with a detached head.

    `base` is the branch that the pull request is for; on the machine it is `refs/remotes/origin/<base>`, and `origin/HEAD`
    names it. The history has all commits, but only the current contents of files (git fetches others on demand), unless
    `checkout.depth` limits it.

    Runs in `sh` with GIBIL_CLONE_TOKEN in its environment (empty: without credentials). Exit status 0 or one of
    CLONE_GONE, CLONE_UNREACHABLE, CLONE_REFUSED, CLONE_NO_GIT, CLONE_BROKEN. Raises UsageError for an address that isn't
    plain http(s), or that contains credentials.
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
        hint="is the App still installed on it?",
        base=base if _BRANCH.fullmatch(base) and base != "HEAD" else "",
        **_options(clone_url, checkout),
    )
    program = script("clone_pull_request", HISTORY_S=str(_HISTORY_S), HISTORY=_printed(_NOTES["history"]))
    return f"{values}{_FROM_HTTP}{_begin()}{text('clone_submodules')}{text('clone_fetch')}{program}"


def branch_script(*, clone_url: str, sha: str, checkout: Checkout = _WHOLE, workspace: str = WORKSPACE) -> str:
    """Return a script that checks out `sha`, the head of a branch, at `workspace`: all branches and, unless `checkout` limits
    them, tags and the full history.

    Environment, statuses and errors are those of `clone_script`.
    """
    host = _checked_host(clone_url)
    values = _assignments(
        workspace=_checked_workspace(workspace),
        sha=_checked_sha(sha),
        url=clone_url,
        host=host,
        hint="does it still exist, and is it public?",
        **_options(clone_url, checkout),
    )
    return f"{values}{_FROM_HTTP}{_begin()}{text('clone_submodules')}{text('clone_fetch')}{text('clone_branch')}"


def bundle_script(
    *, path: str, sha: str, base: str = "", remote: str = "", checkout: Checkout = _WHOLE, workspace: str = WORKSPACE
) -> str:
    """Return a script that checks out `sha` at `workspace` from the bare repository, or git bundle, at `path` on the machine.

    The machine gets the bundle's tags and remote branches; its `origin/HEAD` names the branch `base`, and `remote` is the URL
    of its `origin`. Submodules are left to `modules_script`. Exit statuses are those of `clone_script`.
    """
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"the path of a bundle must be absolute, got {path!r}")
    values = _assignments(workspace=_checked_workspace(workspace), sha=_checked_sha(sha), bundle=path, base=base)
    values += _assignments(remote=remote, tags="yes" if checkout.tags else "no", lfs="yes" if checkout.lfs else "no")
    return f"{values}GIT_ALLOW_PROTOCOL=file\n{_begin()}{text('clone_bundle')}"


def pack_script(
    *,
    sha: str,
    base: str = "",
    remote: str = "",
    checkout: Checkout = _WHOLE,
    workspace: str = WORKSPACE,
    keeps_history: bool = False,
) -> str:
    """Return a script that checks out `sha` at `workspace` from the tar archive in its input, which is unpacked into `.git`.

    The archive contains packs with their indexes, and `packed-refs`. `keeps_history`: the packs of a prepared machine are used,
    too; the status is CLONE_GONE if they are not what they should be. Otherwise as `bundle_script`.
    """
    values = _assignments(workspace=_checked_workspace(workspace), sha=_checked_sha(sha), base=base)
    values += _assignments(history="yes" if keeps_history else "no")
    values += _assignments(remote=remote, tags="yes" if checkout.tags else "no", lfs="yes" if checkout.lfs else "no")
    return f"{values}GIT_ALLOW_PROTOCOL=file\n{_begin()}{text('clone_pack')}"


def modules_script(
    modules: Sequence[tuple[str, str, str]], *, archive: str, sha: str, checkout: Checkout, workspace: str = WORKSPACE
) -> str:
    """Return a script that checks out submodules, (parent, path, name), in the finished checkout of `sha` at `workspace`.

    The tar archive at `archive` on the machine has a bare repository `<number>.git` for each, whose HEAD is the commit. Exit
    statuses are those of `clone_script`.
    """
    values = _assignments(
        workspace=_checked_workspace(workspace),
        sha=_checked_sha(sha),
        submodules=checkout.submodules or "false",
        submodule_depth=str(checkout.submodule_depth),
        lfs="yes" if checkout.lfs else "no",
    )
    calls = "".join(f"{shlex.join(('module', *each, str(number)))}\n" for number, each in enumerate(modules))
    program = script("clone_modules", ARCHIVE=shlex.quote(archive))
    return f"{values}GIT_ALLOW_PROTOCOL=file\n{_begin()}{text('clone_submodules')}{program}{calls}end_modules\n"


def _begin() -> str:
    begin = script("clone_begin", **{name.upper(): _printed(_NOTES[name]) for name in ("submodules", "lfs")})
    return f"{text('delete_rules')}{outbox_function()}{begin}"


def _printed(note: str) -> str:
    return shlex.quote(f"gibil: {note}")


def _assignments(**values: str) -> str:
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())


def _options(clone_url: str, checkout: Checkout) -> dict[str, str]:
    return {
        "depth": str(checkout.depth or 0),
        "tags": "yes" if checkout.tags else "no",
        "submodules": checkout.submodules or "false",
        "submodule_depth": str(checkout.submodule_depth),
        "lfs": "yes" if checkout.lfs else "no",
        "server": _server(clone_url),
        "hostname": urlsplit(clone_url).hostname or "",
    }


def _server(clone_url: str) -> str:
    url = urlsplit(clone_url)
    return f"{url.scheme}://{url.netloc}"


def _checked_sha(sha: str) -> str:
    if not _SHA.fullmatch(sha):
        raise UsageError(f"{sha!r} is not a full commit id of 40 hexadecimal digits")
    return sha


def _checked_workspace(workspace: str) -> str:
    parts = workspace.split("/")
    if not workspace.startswith("/") or ".." in parts or len([part for part in parts if part]) < 2 or "\0" in workspace:
        raise UsageError(f"the workspace must be an absolute path of at least two parts, got {workspace!r}")
    return workspace


def _checked_host(clone_url: str) -> str:
    """Return the host, with its port if the URL has one, in the form that git's credential helpers receive."""
    try:
        url = urlsplit(clone_url)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.password is None
        port = url.port
    except ValueError:
        valid, port = False, None
    if not valid or not _URL_CHARACTERS.fullmatch(clone_url):
        raise UsageError("the clone address must be http(s)://host/path without credentials, like GitHub's clone_url")
    host = urlsplit(clone_url).netloc
    return host if port is not None else host.rstrip(":")
