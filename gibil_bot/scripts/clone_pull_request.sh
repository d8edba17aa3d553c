# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: number, sha
# Fetches the head of pull request $number.

# Usually the head is the commit. If the head has moved, fetch the commit by its id, then more history.
if fetch --depth=1 origin "+refs/pull/$number/head:refs/remotes/origin/pull/$number"; then
    have || fetch --depth=1 origin "$sha" || true
    for depth in 50 1000; do
        have || fetch --depth="$depth" origin "+refs/pull/$number/head:refs/remotes/origin/pull/$number" || break
    done
else
    fetch --depth=1 origin "$sha" || true
fi
unset GIBIL_CLONE_TOKEN
have || fail 20 "the pull request does not contain the commit $sha any more; it was replaced by a newer push"
finish
