#!/bin/sh
# The hook `update` of the repository that `git push` on this machine goes to. Nothing here has access to the server: gibil collects
# the commits, checks them, and pushes them. Arguments: ref, old id, new id.

set -u
ref=$1 new=$3
reject() { echo "gibil: $*" >&2; exit 1; }
case $ref in
    refs/heads/?*) branch=${ref#refs/heads/} ;;
    refs/tags/*) reject "tags aren't collected: push the branch alone (git push origin HEAD), and create the tag on the server" ;;
    *) reject "only a branch is collected, not '$ref': git push origin HEAD:BRANCH" ;;
esac
case $new in
    *[!0]*) ;;
    *) exit 0 ;;  # a deletion, which withdraws the commits
esac
base=$(git rev-parse --verify refs/gibil/base)
git merge-base --is-ancestor "$base" "$new" \
    || reject "'$branch' doesn't contain $base, the commit that this machine started from, and gibil rewrites no history: git rebase $base"
git for-each-ref --format='%(refname)' refs/heads | while IFS= read -r other; do
    test "$other" != "$ref" || continue
    git merge-base --is-ancestor "$other" "$new" || { echo "${other#refs/heads/}"; break; }
done | {
    ! IFS= read -r other || reject "one branch is collected, and '$other' waits with commits that '$branch' doesn't have: push to '$other'" \
        "(git push origin HEAD:$other), or withdraw it first (git push origin :$other)"
}
