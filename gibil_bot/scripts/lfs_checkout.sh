# shellcheck shell=sh
# Replaces the pointers whose paths are on stdin, each ended by NUL, by their objects in the repository @FOLDER@. git writes the
# files, with a filter that does what git-lfs does, so that they count as unmodified. The filter is @PROGRAM@.

set -eu
umask 022
LC_ALL=C GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_NO_LAZY_FETCH=1
export LC_ALL GIT_CONFIG_NOSYSTEM GIT_CONFIG_GLOBAL GIT_NO_LAZY_FETCH
cd -- @FOLDER@
paths=$(mktemp)
trap 'rm -f "$paths"' EXIT
cat >"$paths"
if ! test -f @PROGRAM@; then printf '%s' @FILTER@ >@PROGRAM@; fi
git config filter.lfs.clean 'sh @PROGRAM@ clean'
git config filter.lfs.smudge 'sh @PROGRAM@ smudge'
xargs -0 rm -f -- <"$paths"
git -c core.hooksPath=/dev/null checkout-index -q -f -u -z --stdin <"$paths" \
    || { echo "cannot write the files of Git LFS; is the disk full?" >&2; exit 1; }
