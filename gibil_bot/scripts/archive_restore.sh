# shellcheck shell=sh
# Reads an archive of another machine (archive_save.sh) and changes this one in the same way, around the commit that is checked out.
# Exit statuses: see archive.py. After 3, nothing is changed.

set -eu
umask 022
export LC_ALL=C
fail() { status=$1; shift; printf 'gibil: %s\n' "$*" >&2; exit "$status"; }
mark=$HOME/.gibil/restored
if test -e "$mark"; then
    case $(cat "$mark") in
        @ID@) exit 0 ;;
        "@ID@ incomplete") ;;
        *) fail 4 "this machine has been restored from another archive" ;;
    esac
fi
read -r word format compression base bytes || fail 3 "the archive is empty"
test "$word $format" = "gibil 1" || fail 3 "the archive has an unknown format"
test "$base" = "$(head -n 1 /run/gibil-base)" || fail 3 "the packages of the image have changed since"
case $compression in
    zstd) command -v zstd >/dev/null || fail 3 "this machine lacks zstd" ;;
    gzip) ;;
    *) fail 3 "the archive has an unknown compression" ;;
esac
mkdir -p "$HOME/.gibil"
echo "@ID@ incomplete" >"$mark"
cd /
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
head -c "$bytes" | gzip -dc | tar -x -C "$work" -f - || fail 5 "cannot write files; is the disk full?"
# What this machine had from the beginning and the other didn't have any more was deleted there.
# shellcheck disable=SC2016  # that shell expands it
xargs -0 -r sh -c 'for each; do test ! -d "$each" || test -L "$each" || printf "%s\0" "$each"; done' sh <"$work/folders" |
    xargs -0 -r sh -c 'find "$@" -mindepth 1 -maxdepth 1 ! -cnewer /run/gibil-base -print0' sh | sort -zu |
    comm -z -23 - "$work/entries" | xargs -0 -r rm -rf -- || fail 5 "cannot delete files"
# tar doesn't replace a folder by a file or a link.
# shellcheck disable=SC2016  # that shell expands it
xargs -0 -r sh -c 'for each; do test ! -d "$each" || test -L "$each" || rm -rf -- "$each"; done' sh <"$work/leaves" ||
    fail 5 "cannot delete folders"
tar -x -P -p -I "$compression" --numeric-owner --xattrs --xattrs-include='security.capability' -f - ||
    fail 5 "cannot write files; is the disk full?"
# Files that are part of this commit, or that it doesn't ignore, are not those of another commit.
cd @WORKSPACE@
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_LFS_SKIP_SMUDGE=1 GIT_ATTR_NOSYSTEM=1 XDG_CONFIG_HOME=/dev/null
@RULES@
delete_rules HEAD || fail 5 "cannot restore the commit"
git -c core.hooksPath=/dev/null checkout -q --force HEAD || fail 5 "cannot restore the commit"
git -c core.hooksPath=/dev/null clean -q -ffd || fail 5 "cannot restore the commit"
systemctl daemon-reload >/dev/null 2>&1 || true
echo "@ID@" >"$mark"
