# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: sha, depth, tags, submodules; by clone_begin.sh: log
# shellcheck disable=SC2034  # clone_begin.sh calls it: after_checkout
# Fetches all branches and tags with their history, as `git clone` does, for people who work on the machine.

if test -n "$finished"; then
    fetch_submodules
    notes
    exit 0
fi
set -- origin '+refs/heads/*:refs/remotes/origin/*'
test "$tags" != yes || set -- "$@" '+refs/tags/*:refs/tags/*'
test "$depth" = 0 || set -- "--depth=$depth" "$@"
fetch "$@" || true
have || if test "$depth" = 0; then fetch origin "$sha"; else fetch "--depth=$depth" origin "$sha"; fi || true
with_credentials remote set-head origin --auto >"$log" 2>&1 || true
unset GIBIL_CLONE_TOKEN
have || fail 20 "the repository does not contain the commit $sha any more; it was replaced by a newer push"
test "$submodules" = false || after_checkout=fetch_submodules
finish
