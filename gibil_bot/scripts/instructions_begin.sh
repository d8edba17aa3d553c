# shellcheck shell=sh
# shellcheck disable=SC2034  # the scripts after this one read them: head, base
# shellcheck disable=SC2154  # assigned by instructions.py: folder, state
# The beginning of both scripts for the files that steer agents. instructions.py assigns before it: folder, state, sha, and most,
# the number of names that are printed of each kind.
#
# $state has head.tar (the checkout's own files while the base branch's replace them), base (those others), created (folders that were
# created for them), and then report and done. A script can be run again after it was killed at any point. Nothing that the
# repository or a user configures runs: no hook, filter or fsmonitor, and no transport for missing objects.

set -eu
umask 022
LC_ALL=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_ATTR_NOSYSTEM=1 XDG_CONFIG_HOME=/dev/null
GIT_ALLOW_PROTOCOL='' GIT_NO_LAZY_FETCH=1 GIT_NO_REPLACE_OBJECTS=1 GIT_TERMINAL_PROMPT=0 GIT_OPTIONAL_LOCKS=0
GIT_DIR=$folder/.git GIT_WORK_TREE=$folder
export LC_ALL GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_ATTR_NOSYSTEM XDG_CONFIG_HOME GIT_ALLOW_PROTOCOL GIT_NO_LAZY_FETCH
export GIT_NO_REPLACE_OBJECTS GIT_TERMINAL_PROMPT GIT_OPTIONAL_LOCKS GIT_DIR GIT_WORK_TREE folder state
unset GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_TRACE GIT_CONFIG_PARAMETERS GIT_CONFIG_COUNT TAR_OPTIONS || :
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
git_() {
    git -c core.hooksPath=/dev/null -c core.fsmonitor=false -c core.attributesFile=/dev/null -c 'safe.directory=*' \
        -c core.preloadIndex=false -c submodule.recurse=false "$@"
}
head=$state/head.tar base=$state/base
test ! -L "$state" || rm -f -- "$state"
mkdir -p -- "$state" || fail "cannot create $state"
chmod 700 -- "$state"
cd -- "$folder" || fail "there is no checkout at $folder"
# steering: the files and folders that steer agents, each ended by NUL.
steering() { find . -name .git -prune -o \( @MATCHES@ \) -print0 -prune; }
remove_steering() {
    steering | xargs -0 -r rm -rf --
    test -z "$(steering | head -c 1 | tr '\000' x)" || fail "some of the files that steer agents can't be deleted"
}
# in_git: the arguments, then patterns of git for the same files.
in_git() { git_ "$@" -- @PATHSPECS@; }
