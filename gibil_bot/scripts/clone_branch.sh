# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: sha
# Fetches all branches.

# With all branches and their history, as `git clone` has them: whoever works here looks around.
fetch origin '+refs/heads/*:refs/remotes/origin/*' || true
have || fetch origin "$sha" || true
unset GIBIL_CLONE_TOKEN
have || fail 20 "the commit $sha is not in the repository any more; it was replaced by a newer push"
finish
