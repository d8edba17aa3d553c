# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by clone.py: workspace, sha
# The beginning of every script that checks out one commit at $workspace; clone.py assigns workspace and sha before it.
# Exit statuses: see CLONE_GONE and the other constants in clone.py. The last line on stderr is for people.

set -eu
umask 022
LC_ALL=C GIT_TERMINAL_PROMPT=0 GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_LFS_SKIP_SMUDGE=1
export LC_ALL GIT_TERMINAL_PROMPT GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_LFS_SKIP_SMUDGE GIT_ALLOW_PROTOCOL
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
# What a prepared machine has installed in the workspace stays: all files that git ignores. Its repository is created again, so
# that nothing of its configuration is used. Only the objects of a complete repository stay, and the index, with which git
# recognizes unmodified files.
kept='' prepared=
test ! -e "${workspace%/*}/.gibil/prepared" || prepared=yes
has_whole_history() {
    test -d objects && test ! -L objects && test ! -e shallow || return 1
    for each in objects/info/alternates objects/pack/*.promisor; do
        test ! -e "$each" || return 1
    done
}
# empty_repository: deletes the rest of the repository that is the working directory.
empty_repository() {
    complete=
    ! has_whole_history || complete=yes
    for each in * .[!.]*; do
        test "$each" != index || continue
        test "$each" != objects || test -z "$complete" || continue
        rm -rf -- "$each" || return 1
    done
}
create() {
    if test -n "$prepared" && test -d "$workspace" && test ! -L "$workspace"; then
        kept=yes
        repository=$workspace/.git
        if test -d "$repository" && test ! -L "$repository"; then
            (cd -- "$repository" && empty_repository) || fail 24 "cannot delete the files of $repository"
        else
            rm -rf -- "$repository" || fail 24 "cannot delete $repository"
        fi
    fi
    test -n "$kept" || test ! -e "$workspace" || rm -rf -- "$workspace" || fail 24 "cannot delete $workspace"
    # shellcheck disable=SC2015  # both ways end with the failure
    mkdir -p -- "$workspace" && cd -- "$workspace" || fail 24 "cannot create $workspace"
    git init -q --template= . >"$log" 2>&1 || { cat "$log" >&2; fail 24 "cannot create a git repository in $workspace"; }
    # An index that can't be read, or that excludes files from comparison, isn't used.
    test -z "$kept" || test -z "$(git ls-files -v 2>&1 | grep -v '^H ' | head -n 1)" || rm -f .git/index
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
finish() {
    # The submodules' repositories were in the deleted one.
    test -z "$kept" || submodule_paths | while IFS= read -r path; do rm -rf -- "$path/.git"; done
    git -c core.hooksPath=/dev/null -c advice.detachedHead=false checkout -q --force --detach "$sha" >"$log" 2>&1 \
        || { cat "$log" >&2; fail 24 "cannot write the files of $sha; is the disk full?"; }
    test -z "$kept" || git -c core.hooksPath=/dev/null clean -q -ffd >"$log" 2>&1 \
        || { cat "$log" >&2; fail 24 "cannot delete the files that $sha doesn't have"; }
    test "$(git rev-parse HEAD)" = "$sha" || fail 24 "git checked out another commit than $sha"
    "$after_checkout"
    printf '%s' "$sha" >.git/gibil-commit
    notes
}
