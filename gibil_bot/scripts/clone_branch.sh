# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: sha
# Fetches all branches and tags with their history, as `git clone` does, for people who work on the machine.

fetch origin '+refs/heads/*:refs/remotes/origin/*' '+refs/tags/*:refs/tags/*' || true
have || fetch origin "$sha" || true
with_credentials remote set-head origin --auto >"$log" 2>&1 || true
unset GIBIL_CLONE_TOKEN
have || fail 20 "the repository does not contain the commit $sha any more; it was replaced by a newer push"
finish
