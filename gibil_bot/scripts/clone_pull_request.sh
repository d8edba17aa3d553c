# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: number, sha, base, depth, tags, submodules
# shellcheck disable=SC2034  # clone_fetch.sh reads them: within, which_tags
# Fetches the head of pull request $number, and $depth commits of its history and of its base branch; 0 is all of them.
#
# First the commit alone, with all its files. Then the history without the contents of older files, which git fetches when they
# are needed: it is for `git describe`, and for comparisons with the base branch.

if test -n "$finished"; then
    fetch_submodules
    notes
    exit 0
fi
head=refs/gibil/head
# Usually the head is the commit. If the head has moved, fetch the commit by its id, then more history.
if fetch --depth=1 origin "+refs/pull/$number/head:$head"; then
    have || fetch --depth=1 origin "$sha" || true
    for more in 50 1000; do
        have || fetch --depth="$more" origin "+refs/pull/$number/head:$head" || break
    done
else
    fetch --depth=1 origin "$sha" || true
fi
have || fail 20 "the pull request does not contain the commit $sha any more; it was replaced by a newer push"

# fetch_history COMMIT: the base branch may have been deleted.
fetch_history() {
    if test -n "$base"; then
        fetch --depth="$more" --filter=blob:none origin "+$1:$head" "+refs/heads/$base:refs/remotes/origin/$base" && return
        test $? != 3 || return 3
    fi
    fetch --depth="$more" --filter=blob:none origin "+$1:$head"
}
more=$depth
test "$depth" != 0 || more=2147483647  # all of it
within=@HISTORY_S@ which_tags=--no-tags result=0
test "$tags" != yes || which_tags=
fetch_history "$sha" || result=$?
# Not every server serves commits by their id.
test "$result" != 1 || fetch_history "refs/pull/$number/head" || result=$?
test "$result" != 3 || echo @HISTORY@
if test -n "$base" && git rev-parse -q --verify "refs/remotes/origin/$base" >"$log" 2>&1; then
    git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$base"
    # Fetches the older contents of the files that the pull request changes, while there are credentials.
    with_credentials diff --no-ext-diff --no-textconv --numstat "refs/remotes/origin/$base...$sha" >"$log" 2>&1 || true
fi
git update-ref -d "$head"
drop_tags
within=
test "$submodules" = false || after_checkout=fetch_submodules
finish
