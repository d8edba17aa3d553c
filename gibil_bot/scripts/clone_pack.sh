# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: sha, base, remote; by clone_begin.sh: log, kept_packs
# Unpacks the archive in the input into .git: packs with their indexes, packed-refs, and gibil-known, which names objects that a
# prepared machine has, with everything they can reach.
# shellcheck disable=SC2034  # clone_begin.sh reads it: checks_objects

tar -xf - -C .git >"$log" 2>&1 || { cat "$log" >&2; fail 24 "cannot unpack the commit; is the disk full?"; }
if test -e .git/gibil-known; then
    git cat-file --batch-check <.git/gibil-known >"$log"
    ! grep -q ' missing$' "$log" || fail 20 "the prepared machine does not contain all of its history"
    rm .git/gibil-known
fi
have || fail 20 "the archive does not contain the commit $sha"
test -z "$base" || git symbolic-ref refs/remotes/origin/HEAD "refs/remotes/origin/$base"
test -z "$remote" || git remote add origin "$remote"
test -z "$kept_packs" || checks_objects=yes
finish
