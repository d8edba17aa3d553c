"""The task "set up" that stands before the tasks of a `.gibil.yml`: its packages are installed, its runtimes are there.

Packages are only asked for where they are missing, so that an image that has them needs no network. A runtime comes with the
image, or the machine's tool `gibil-runtime` installs it, or the task fails with one sentence that says what is there instead.
A project that works with pnpm gets it with its Node.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

_BEGIN = r"""set -eu
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
"""

_RUNTIME_FUNCTIONS = r"""
# matches FOUND WANTED: 3.12.4 matches 3.12 and 3, and not 3.1
matches() { case "$1." in "$2".*) return 0 ;; esac; return 1; }

version_of() {
    case $1 in
        go) "$2" version 2>/dev/null | sed -n 's/^go version go\([0-9.]*\).*/\1/p' ;;
        *) "$2" --version 2>&1 | sed -n 's/^[^0-9]*\([0-9][0-9.]*\).*/\1/p' | head -n 1 ;;
    esac
}

# want RUNTIME VERSION COMMAND…: the first of these commands with that version; its folder goes first in PATH
want() {
    runtime=$1 wanted=$2 seen=
    shift 2
    for command in "$@"; do
        where=$(command -v "$command" 2>/dev/null) || continue
        found=$(version_of "$runtime" "$where" || true)
        if test -n "$found" && matches "$found" "$wanted"; then
            echo "gibil: $runtime $found ($where)"
            test "$command" != "$runtime$wanted" || link "$runtime" "$where"
            return 0
        fi
        seen="$seen${seen:+, }$command is ${found:-of unknown version}"
    done
    tool=$(command -v gibil-runtime || command -v /opt/gibil/bin/gibil-runtime || true)
    if test "${installed-}" != "$runtime" && test -n "$tool"; then
        installed=$runtime
        echo "gibil: $runtime $wanted is not here (${seen:-none}); installing it"
        "$tool" "$runtime" "$wanted" || fail "$runtime $wanted could not be installed; what is above says why"
        hash -r
        want "$runtime" "$wanted" "$@"
        return 0
    fi
    fail "$runtime $wanted is wanted (.gibil.yml: runtime), and this machine has ${seen:-none}; choose an image that has it"
}

# `python3.12` is called python3 and python for the tasks that follow
link() {
    bin=$RUNNER_TEMP/runtime/bin
    mkdir -p "$bin"
    ln -sf "$2" "$bin/$1"
    test "$1" != python || ln -sf "$2" "$bin/python3"
    echo "$bin" >>"$GITHUB_PATH"
}
"""

# The version that package.json names, or one that every Node from 18 on runs.
_PNPM = r"""
if grep -qs pnpm package.json pnpm-lock.yaml pnpm-workspace.yaml .gibil.yml && ! command -v pnpm >/dev/null 2>&1; then
    version=$(sed -n 's/.*"packageManager": *"pnpm@\([0-9][0-9.]*\).*/\1/p' package.json 2>/dev/null | head -n 1)
    echo "gibil: installing pnpm ${version:-10}"
    prefix=/usr/local
    test -w /usr/local/bin || prefix=$RUNNER_TEMP/pnpm
    npm install --silent --global --prefix "$prefix" "pnpm@${version:-10}" \
        || fail "pnpm could not be installed by npm; what is above says why"
    test "$prefix" = /usr/local || echo "$prefix/bin" >>"$GITHUB_PATH"
fi
"""

_PACKAGES = r"""
has() {
    if command -v dpkg-query >/dev/null 2>&1; then
        test "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed
    elif command -v rpm >/dev/null 2>&1; then
        rpm -q --whatprovides "$1" >/dev/null 2>&1
    elif command -v apk >/dev/null 2>&1; then
        apk info -e "$1" >/dev/null 2>&1
    elif command -v pacman >/dev/null 2>&1; then
        pacman -Q "$1" >/dev/null 2>&1
    else
        return 1
    fi
}

missing=
for package in $packages; do
    has "$package" || missing="$missing $package"
done
if test -z "$missing"; then
    echo "gibil: every package is there already"
    exit 0
fi
echo "gibil: installing$missing"
test "$(id -u)" = 0 || fail "the packages$missing are missing, and only root can install them; choose an image that has them"
if command -v apt-get >/dev/null 2>&1; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -q -y --no-install-recommends $missing
elif command -v dnf >/dev/null 2>&1; then
    dnf install -q -y $missing
elif command -v apk >/dev/null 2>&1; then
    apk add -q $missing
elif command -v zypper >/dev/null 2>&1; then
    zypper --non-interactive --quiet install $missing
elif command -v pacman >/dev/null 2>&1; then
    pacman -Sy --noconfirm --needed $missing
else
    fail "the packages$missing are missing, and this machine has no package manager that we know"
fi || fail "the packages$missing could not be installed; what is above says why"
"""

_COMMANDS = {"python": ("python3", "python"), "node": ("node", "nodejs"), "go": ("go",)}


def set_up_script(runtime: Mapping[str, str], packages: Sequence[str]) -> str | None:
    """POSIX sh for these runtimes and packages, or None when there is nothing to set up. The names were checked."""
    if not runtime and not packages:
        return None
    parts = [_BEGIN]
    if runtime:
        parts.append(_RUNTIME_FUNCTIONS)
    for name, version in runtime.items():
        # The plain name first; then `python3.12`, as distributions call a second Python.
        commands = (*_COMMANDS[name], f"{name}{version}")
        parts.append(f"want {shlex.join((name, version, *commands))}\n")
    if "node" in runtime:
        parts.append(_PNPM)
    if packages:
        parts += [f"\npackages={shlex.quote(' '.join(packages))}\n", _PACKAGES]
    return "".join(parts)
