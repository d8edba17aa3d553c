# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by caches.py: workspace
# Functions that print the digest of the commit's files that match pathspecs: of their names and of git's ids of them. Before the
# first task, the index has the files of the commit.

cd -- "$workspace" || exit 1
hash_files() {
    git -c core.fsmonitor=false --no-optional-locks ls-files -s -z -- "$@" >"$index" || exit 1
    if test -s "$index"; then sha256sum <"$index"; else echo none; fi
}
index=$(mktemp) || exit 1
trap 'rm -f "$index"' EXIT
if command -v zstd >/dev/null 2>&1; then echo zstd; else echo tar; fi
