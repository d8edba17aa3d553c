# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: bundle, sha, base, remote; by clone_begin.sh: log
# Fetches everything from the git bundle, or bare repository, $bundle.

git -c core.hooksPath=/dev/null fetch -q --no-tags --no-write-fetch-head --update-shallow \
    "$bundle" '+refs/heads/*:refs/gibil/*' '+refs/tags/*:refs/tags/*' '+refs/remotes/*:refs/remotes/*' >"$log" 2>&1 \
    || { cat "$log" >&2; fail 24 "cannot unpack the bundle $bundle; is it complete, and the disk not full?"; }
have || fail 20 "the bundle does not contain the commit $sha"
test -z "$base" || git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$base"
test -z "$remote" || git remote add origin "$remote"
drop_tags
git for-each-ref --format='delete %(refname)' refs/gibil | git update-ref --stdin
finish
