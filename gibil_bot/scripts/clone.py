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

_BEGIN = r"""
set -eu
umask 022
LC_ALL=C GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_LFS_SKIP_SMUDGE=1
export LC_ALL GIT_TERMINAL_PROMPT GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_LFS_SKIP_SMUDGE GIT_ALLOW_PROTOCOL
unset GIT_ASKPASS SSH_ASKPASS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_TRACE GIT_TRACE_CURL GIT_CURL_VERBOSE || true

log=
fail() { status=$1; shift; printf 'gibil: %s\n' "$*" >&2; exit "$status"; }
trap 'test -z "$log" || rm -f "$log"' EXIT
command -v git >/dev/null 2>&1 || fail 23 "git is not installed on this machine; use an image that has it"
log=$(mktemp) || fail 24 "the machine's disk cannot be written"

# Reports what the workspace lacks, so that a task that fails because of it is understood. Only the top folder is examined.
notes() {
    test ! -f .gitmodules || echo @SUBMODULES@
    if test -f .gitattributes && test ! -L .gitattributes && head -c 65536 .gitattributes | grep -q 'filter=lfs'; then
        echo @LFS@
    fi
}
finished() { test -e "$workspace/.git/gibil-commit" && test "$(cat "$workspace/.git/gibil-commit")" = "$sha"; }
if finished; then
    cd -- "$workspace" && notes
    exit 0
fi
test ! -e "$workspace" || rm -rf -- "$workspace" || fail 24 "what is at $workspace cannot be removed"
mkdir -p -- "$workspace" && cd -- "$workspace" || fail 24 "$workspace cannot be made"
git init -q --template= . >"$log" 2>&1 || { cat "$log" >&2; fail 24 "$workspace cannot be made a git repository"; }

here=
have() { test -n "$here" || { git cat-file -e "$sha^{commit}" 2>/dev/null && here=yes; }; }
finish() {
    git -c core.hooksPath=/dev/null -c advice.detachedHead=false checkout -q --force --detach "$sha" >"$log" 2>&1 \
        || { cat "$log" >&2; fail 24 "the files of $sha cannot be written; is the disk full?"; }
    test "$(git rev-parse HEAD)" = "$sha" || fail 24 "what was checked out is not $sha"
    printf '%s' "$sha" >.git/gibil-commit
    notes
}
"""

for _name, _text in _NOTES.items():
    _BEGIN = _BEGIN.replace(f"@{_name.upper()}@", shlex.quote(f"gibil: {_text}"))

_FETCH = r"""
printf '[remote "origin"]\n\turl = %s\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n' "$url" >>.git/config

# Answers only for the server of the URL, whatever a redirect says.
helper='!f() {
    test "$1" = get && test -n "${GIBIL_CLONE_TOKEN:-}" || exit 0
    while IFS= read -r line; do
        case $line in host=*) test "${line#host=}" = "$GIBIL_CLONE_HOST" || exit 0 ;; esac
    done
    printf "username=x-access-token\npassword=%s\n" "$GIBIL_CLONE_TOKEN"
}; f'

fetch() {
    git -c credential.helper= -c "credential.helper=$helper" -c core.hooksPath=/dev/null -c core.askPass= \
        -c http.lowSpeedLimit=500 -c http.lowSpeedTime=60 -c protocol.version=2 -c gc.auto=0 \
        fetch -q --no-tags --no-recurse-submodules --no-write-fetch-head "$@" >"$log" 2>&1 && return 0
    cat "$log" >&2
    if grep -qiE 'authentication failed|could not read (username|password)|terminal prompts disabled' "$log" \
        || grep -qiE 'requested URL returned error: 40[13]' "$log"; then
        fail 22 "$host refuses our credentials for this repository; $doubt"
    elif grep -qiE "repository .* not found|requested URL returned error: 404" "$log"; then
        fail 22 "$host does not show us this repository; $doubt"
    elif grep -qiE "not our ref|couldn't find remote ref|unadvertised object|no such remote ref" "$log"; then
        return 1
    elif grep -qiE 'no space left|cannot (write|create)|unable to write' "$log"; then
        fail 24 "the commit cannot be written; is the disk full?"
    fi
    fail 21 "$host cannot be reached from this machine, or broke off"
}
"""

_PULL_REQUEST = r"""
# The head is the commit, as a rule. Where it has moved on, ask for the commit itself, and then for more history.
if fetch --depth=1 origin "+refs/pull/$number/head:refs/remotes/origin/pull/$number"; then
    have || fetch --depth=1 origin "$sha" || true
    for depth in 50 1000; do
        have || fetch --depth="$depth" origin "+refs/pull/$number/head:refs/remotes/origin/pull/$number" || break
    done
else
    fetch --depth=1 origin "$sha" || true
fi
unset GIBIL_CLONE_TOKEN
have || fail 20 "the commit $sha is not in the pull request any more; it was replaced by a newer push"
finish
"""

_BRANCH = r"""
# With all branches and their history, as `git clone` has them: whoever works here looks around.
fetch origin '+refs/heads/*:refs/remotes/origin/*' || true
have || fetch origin "$sha" || true
unset GIBIL_CLONE_TOKEN
have || fail 20 "the commit $sha is not in the repository any more; it was replaced by a newer push"
finish
"""

_BUNDLE = r"""
git -c core.hooksPath=/dev/null fetch -q --no-tags --no-write-fetch-head --update-shallow \
    "$bundle" '+refs/*:refs/bundle/*' >"$log" 2>&1 \
    || { cat "$log" >&2; fail 24 "the bundle $bundle cannot be unpacked; is it whole, and the disk not full?"; }
have || fail 20 "the bundle does not hold the commit $sha"
finish
"""


def notes_of_clone(output: bytes) -> tuple[str, ...]:
    """Notes for people in what one of these scripts printed: a fixed set, whatever the machine says."""
    lines = set(output[:4096].decode("ascii", "replace").split("\n"))
    return tuple(text for text in _NOTES.values() if f"gibil: {text}" in lines)


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
    return f"{values}{_FROM_HTTP}{_BEGIN}{_FETCH}{_PULL_REQUEST}"


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
    return f"{values}{_FROM_HTTP}{_BEGIN}{_FETCH}{_BRANCH}"


def bundle_script(*, path: str, sha: str, workspace: str = WORKSPACE) -> str:
    """A script that puts `sha` at `workspace` out of the git bundle, or bare repository, at `path` on the machine.

    Statuses as above.
    """
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"the bundle's path has to be absolute, and {path!r} is not")
    values = _assignments(workspace=_checked_workspace(workspace), sha=_checked_sha(sha), bundle=path)
    return f"{values}GIT_ALLOW_PROTOCOL=file\n{_BEGIN}{_BUNDLE}"


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
