# shellcheck shell=sh
# Prints an archive of what commands have changed on this cloud machine since it was ready: a line `gibil 1 COMPRESSION BASE
# BYTES`; BYTES of compressed lists of changed folders; a compressed tar file. In the project's folder, these are the files that git
# ignores; a commit has all others.

set -eu
export LC_ALL=C
@FILES@
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { printf 'gibil: %s\n' "$*" >&2; exit 1; }
cd /
{
    own_files -cnewer /run/gibil-base \( -type d -fprint0 "$work/dirs" -o -true \)
    # shellcheck disable=SC2016  # that shell expands it
    git -c core.fsmonitor=false -C @WORKSPACE@ ls-files -z --others --ignored --exclude-standard --directory |
        (cd @WORKSPACE@ && xargs -0 -r sh -c 'for each; do find "$PWD/$each" -print0; done' sh)
} | sort -zu >"$work/changed"
# What was deleted is missing in a folder that has changed since. So the archive has the contents of these folders.
sort -zu "$work/dirs" >"$work/folders"
# shellcheck disable=SC2016  # that shell expands it
xargs -0 -r sh -c 'find "$@" -mindepth 1 -maxdepth 1 -print0' sh <"$work/folders" | sort -zu >"$work/entries"
# shellcheck disable=SC2016  # that shell expands it
xargs -0 -r sh -c 'find "$@" -mindepth 1 -maxdepth 1 ! -type d -print0' sh <"$work/folders" >"$work/leaves"
tar -c -C "$work" -f "$work/lists" folders entries leaves
gzip -1 "$work/lists"
# A zstd that commands installed doesn't exist on the next machine.
compression=gzip pack='gzip -1'
zstd=$(command -v zstd) || zstd=
if test -n "$zstd" && test -z "$(find "$(readlink -f "$zstd")" -cnewer /run/gibil-base)"; then
    compression=zstd pack='zstd -1 -T0 -q'
fi
read -r base </run/gibil-base
echo "gibil 1 $compression $base $(stat -c %s "$work/lists.gz")"
cat "$work/lists.gz"
tar -c -P -I "$pack" --null --verbatim-files-from --no-recursion --numeric-owner --xattrs --xattrs-include='security.capability' \
    -T "$work/changed" -f - || fail "files changed while they were read"
