# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: workspace, sha
# The beginning of every script that checks out one commit at $workspace; clone.py assigns workspace and sha before it.
# Exit statuses: see CLONE_GONE and the other constants in clone.py. The last line on stderr is for people.

set -eu
umask 022
LC_ALL=C GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_LFS_SKIP_SMUDGE=1
GIT_ATTR_NOSYSTEM=1 XDG_CONFIG_HOME=/dev/null GIT_NO_REPLACE_OBJECTS=1  # no ignore and attributes files of a user, either
export LC_ALL GIT_TERMINAL_PROMPT GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_LFS_SKIP_SMUDGE GIT_ALLOW_PROTOCOL
export GIT_ATTR_NOSYSTEM XDG_CONFIG_HOME GIT_NO_REPLACE_OBJECTS
unset GIT_ASKPASS SSH_ASKPASS GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_TRACE GIT_TRACE_CURL GIT_CURL_VERBOSE || true

log=
fail() { status=$1; shift; printf 'gibil: %s\n' "$*" >&2; exit "$status"; }
trap 'test -z "$log" || rm -f "$log"' EXIT
command -v git >/dev/null 2>&1 || fail 23 "git is not installed on this machine; use an image that has it"
log=$(mktemp) || fail 24 "cannot write to the machine's disk"

# Prints notes about what the workspace lacks, which may explain a failed task. Only the top directory is examined.
notes() {
    test ! -f .gitmodules || test -d .git/modules || echo @SUBMODULES@
    test "${lfs:-no}" = no || return 0
    if test -f .gitattributes && test ! -L .gitattributes && head -c 65536 .gitattributes | grep -q 'filter=lfs'; then
        echo @LFS@
    fi
}
# Whether an earlier call has checked out the commit, and then only submodules may be missing.
finished=
if test -e "$workspace/.git/gibil-commit" && test "$(cat "$workspace/.git/gibil-commit")" = "$sha"; then
    cd -- "$workspace"
    finished=yes
    if test "${submodules:-false}" = false || test "$(cat .git/gibil-submodules 2>/dev/null)" = "$submodules"; then
        notes
        exit 0
    fi
fi
# What a prepared machine has installed in the workspace stays: all files that git ignores. Everything else is that of the commit,
# whatever earlier tasks changed. Its repository is created again, so that nothing of its configuration and index is used; only
# packs stay, if $history is yes and the history is complete, and `check_objects` compares what is read from them with its names.
kept='' kept_packs='' checks_objects='' prepared=
test ! -e "${workspace%/*}/.gibil/prepared" || prepared=yes
has_whole_history() {
    test "${history:-no}" = yes && test -d objects/pack || return 1
    test ! -L objects && test ! -L objects/pack && test ! -e shallow && test ! -e objects/info/alternates || return 1
    for each in objects/pack/*.promisor; do
        test ! -e "$each" || return 1
    done
}
# empty_repository: deletes the rest of the repository that is the working directory.
empty_repository() {
    ! has_whole_history || kept_packs=yes
    for each in * .[!.]* ..?*; do
        test "$each" != objects || test -z "$kept_packs" || continue
        rm -rf -- "$each" || return 1
    done
    test -n "$kept_packs" || return 0
    find objects -mindepth 1 ! -path objects/pack ! \( -path 'objects/pack/*.pack' -type f \) \
        ! \( -path 'objects/pack/*.idx' -type f \) -depth -exec rm -rf -- {} \;
}
create() {
    if test -n "$prepared" && test -d "$workspace" && test ! -L "$workspace"; then
        kept=yes
        repository=$workspace/.git
        if test -d "$repository" && test ! -L "$repository"; then
            # shellcheck disable=SC2015  # both ways end with the failure
            cd -- "$repository" && empty_repository || fail 24 "cannot delete the files of $repository"
        else
            rm -rf -- "$repository" || fail 24 "cannot delete $repository"
        fi
    fi
    test -n "$kept" || test ! -e "$workspace" || rm -rf -- "$workspace" || fail 24 "cannot delete $workspace"
    # shellcheck disable=SC2015  # both ways end with the failure
    mkdir -p -- "$workspace" && cd -- "$workspace" || fail 24 "cannot create $workspace"
    git init -q --template= . >"$log" 2>&1 || { cat "$log" >&2; fail 24 "cannot create a git repository in $workspace"; }
}
test -n "$finished" || create

here='' after_checkout=:
have() { test -n "$here" || { git cat-file -e "$sha^{commit}" 2>/dev/null && here=yes; }; }
# drop_tags: of the tags, only those that the commit can reach stay, and none if $tags is no.
drop_tags() {
    set --
    test "$tags" != yes || set -- "--no-merged=$sha"
    git for-each-ref "$@" --format='delete %(refname)' refs/tags | git update-ref --stdin
}
submodule_paths() { git ls-tree -r "$sha" | sed -n 's/^160000 commit [0-9a-f]*	//p'; }
# recognize_files: creates an index in which the files that have the content of the commit count as unmodified, so that they stay.
# Their contents are compared without any conversion. If git converts files of this commit, it writes all of them again.
recognize_files() {
    delete_rules "$sha" || return 1
    # The submodules' repositories were in the deleted one.
    submodule_paths | while IFS= read -r path; do rm -rf -- "$path/.git"; done
    git read-tree "$sha" || return 1
    attributes | cut -d ' ' -f 2 | git cat-file --batch >"$log" || return 1
    if ! grep -qaE 'crlf|ident|encoding|filter' "$log"; then
        mkdir -p .git/info || return 1
        echo '* -text -eol -crlf -ident -filter -working-tree-encoding' >.git/info/attributes || return 1
        git update-index -q --refresh >/dev/null || :
        rm -f .git/info/attributes
    fi
}
attributes() { git ls-files -s -- ':(glob)**/.gitattributes'; }
# check_objects: whether the objects that the checkout reads have the contents that their names say. git checks none of them.
check_objects() {
    checked=.git/gibil-checked
    mkdir "$checked" || return 1
    {
        echo "$sha"
        git rev-parse "$sha^{tree}"
        git ls-tree -r -t "$sha" | sed -n 's/^[0-7]* tree \([0-9a-f]*\)	.*/\1/p'
        attributes | cut -d ' ' -f 2
        git diff-files --no-renames --raw --abbrev=40 --ignore-submodules=all | cut -d ' ' -f 3
    } | sort -u >"$checked/names"
    # A second repository computes all names again.
    git init -q --template= --bare "$checked/again.git" || return 1
    git pack-objects --quiet --window=0 --stdout <"$checked/names" >"$checked/pack" || return 1
    GIT_DIR=$checked/again.git git index-pack --stdin <"$checked/pack" >/dev/null || return 1
    for each in "$checked"/again.git/objects/pack/*.idx; do git show-index <"$each"; done | cut -d ' ' -f 2 | sort -u |
        cmp -s - "$checked/names"
}
finish() {
    if test -n "$kept"; then
        recognize_files 2>"$log" || { cat "$log" >&2; fail 24 "cannot compare the files with those of $sha"; }
        test -z "$checks_objects" || check_objects 2>"$log" || { cat "$log" >&2; fail 20 "the prepared machine's objects were changed"; }
        rm -rf .git/gibil-checked
    fi
    git -c core.hooksPath=/dev/null -c advice.detachedHead=false checkout -q --force --detach "$sha" >"$log" 2>&1 \
        || { cat "$log" >&2; fail 24 "cannot write the files of $sha; is the disk full?"; }
    test -z "$kept" || git -c core.hooksPath=/dev/null clean -q -ffd >"$log" 2>&1 \
        || { cat "$log" >&2; fail 24 "cannot delete the files that $sha doesn't have"; }
    test "$(git rev-parse HEAD)" = "$sha" || fail 24 "git checked out another commit than $sha"
    "$after_checkout"
    create_outbox "$workspace" "$sha" >"$log" 2>&1 || echo "gibil: git push will need credentials: $(tail -n 1 "$log")" >&2
    printf '%s' "$sha" >.git/gibil-commit
    notes
}
