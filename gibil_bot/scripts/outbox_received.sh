#!/bin/sh
# The hook `post-receive` of the repository that `git push` on this machine goes to: says what happens next. One branch waits there.

set -u
name=$(uname -n)
while read -r _ new ref; do
    branch=${ref#refs/heads/}
    case $new in
        *[!0]*) ;;
        *) echo "gibil: '$branch' is withdrawn; it no longer waits to be collected"; continue ;;
    esac
    git rev-parse -q --verify "$ref" >/dev/null || continue  # a later line contains it
    git for-each-ref --format='%(refname)' refs/heads | while IFS= read -r other; do
        test "$other" != "$ref" || continue
        ! git merge-base --is-ancestor "$other" "$new" || git update-ref -d "$other"
    done
    count=$(git rev-list --count "refs/gibil/base..$new")
    case $count in
        0) echo "gibil: '$branch' has no commit beyond the one that this machine started from: nothing to collect"; continue ;;
        1) commits="1 commit of '$branch' waits for gibil's checks; it isn't" ;;
        *) commits="$count commits of '$branch' wait for gibil's checks; they aren't" ;;
    esac
    echo "gibil: $commits on the server yet."
    echo "gibil: A run's workflow collects them if it has \`commit:\`; from a machine of \`gibil create\`: gibil push $name"
done
