# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by instructions.py: folder, state, sha, most; by instructions_begin.sh: head, base
# Puts the checkout's own files back, in the working tree and in the index. If commits since $sha changed such files, HEAD is $sha
# again, with the changes of these commits in the working tree. Prints C and a name for each file that the agent had changed or
# created, D for each that it had deleted, H if HEAD was moved, L if the files were lost and come from $sha; each ended by NUL.

# changed: compares the files with those of the base branch.
# shellcheck disable=SC2016  # the inner shells expand them
changed() {
    test -d "$base" || return 0
    steering | xargs -0 -r sh -c 'find "$@" ! -type d -print0' sh | xargs -0 -r sh -c '
        for path; do
            if test -L "$path" || test ! -f "$path" || test ! -f "$state/base/$path" || ! cmp -s -- "$path" "$state/base/$path"; then
                printf "C%s\0" "${path#./}"
            fi
        done' sh
    (cd -- "$base" && find . -type f -exec sh -c '
        cd -- "$folder" || exit 1
        for path; do
            test -e "$path" || test -L "$path" || printf "D%s\0" "${path#./}"
        done' sh {} +)
}
if test -e "$state/done"; then
    cat -- "$state/report"
    exit 0
fi
if test ! -e "$state/report"; then
    {
        changed | head -zn "$most"
        test -f "$head" || printf 'L\0'
    } >"$state/report.new"
    mv -fT -- "$state/report.new" "$state/report"
fi
now=$(git_ rev-parse -q --verify HEAD) || now=''
objects=$(git_ rev-parse --path-format=absolute --git-path objects) || fail "there is no repository in $folder any more"
index=$(git_ rev-parse --path-format=absolute --git-path index)
# A repository without settings, which has the objects: git runs filters even when it writes an index.
own=$state/own.git
rm -rf -- "$own"
env -u GIT_DIR -u GIT_WORK_TREE git -c init.defaultBranch=main init -q --template= --bare "$own"
mkdir -p -- "$own/info"
printf '%s\n' "$objects" >"$own/objects/info/alternates"
repository=$GIT_DIR GIT_DIR=$own GIT_INDEX_FILE=$own/own_index
export GIT_DIR GIT_INDEX_FILE
git_ read-tree "$sha" || fail "the repository in $folder doesn't have $sha any more"
in_git ls-files -s -z >"$state/entries"
in_git ls-files -z >"$state/own"
if test "$now" != "$sha"; then
    if { test -n "$now" && git_ rev-list "$sha..$now" >"$state/commits"; } \
        && in_git diff-tree --stdin -r -m --root --no-commit-id --name-only -z <"$state/commits" >"$state/names" \
        && test ! -s "$state/names"; then
        :
    else
        GIT_DIR=$repository git -c core.hooksPath=/dev/null -c 'safe.directory=*' update-ref HEAD "$sha" ||
            fail "cannot reset HEAD to $sha"
        printf 'H\0' >>"$state/report"
    fi
fi
GIT_INDEX_FILE=$index
rm -f -- "$index.lock"
git_ ls-files >/dev/null 2>&1 || rm -f -- "$index"
test -s "$index" || git_ read-tree "$sha"
in_git ls-files -z >"$state/names"
git_ update-index -z --force-remove --stdin <"$state/names"
git_ update-index -z --index-info <"$state/entries"
remove_steering
if test ! -f "$head" || ! tar --null --numeric-owner --recursive-unlink -xpf "$head" -C "$folder" 2>"$state/log"; then
    git_ checkout-index -z -f --stdin <"$state/own" || fail "the files that steer agents are lost"
fi
if test -f "$state/created"; then
    sort -zr "$state/created" | xargs -0 -r rmdir --ignore-fail-on-non-empty -- 2>/dev/null || :
fi
: >"$state/done"
rm -rf -- "$head" "$base" "$own"
cat -- "$state/report"
