# shellcheck shell=bash
# Functions of the programs that unpack and pack the files of a cache. Patterns are absolute; `!` in front leaves out.

set -u
umask 022
IFS=
export LC_ALL=C
shopt -s globstar dotglob nullglob

# matches ROOT PATTERN…: sets `found` to the paths below ROOT that match, each without those inside a found folder, and
# `left_out` to those that are left out.
matches() {
    local root=$1 pattern path last=//
    local -a all=()
    found=() left_out=()
    for pattern in "${@:2}"; do
        # Unquoted, so that the pattern is expanded; IFS is empty, so nothing is split.
        # shellcheck disable=SC2206  # see above
        case $pattern in
            '!'*) left_out+=("$root"${pattern#!}) ;;
            *) all+=("$root"$pattern) ;;
        esac
    done
    test ${#all[@]} -gt 0 || return 0
    # Sorted so that a folder is followed by what it contains.
    while read -r -d '' path; do
        path=${path%/}
        case $path/ in "$last"*) continue ;; esac
        test -e "$path" || test -L "$path" || continue
        last=$path/
        found+=("$path")
    done < <(printf '%s\0' "${all[@]}" | tr '/' '\001' | sort -z | tr '\001' '/')
}

# Whether a path contains something.
is_filled() {
    if test -d "$1" && test ! -L "$1"; then
        test -n "$(find "$1" -mindepth 1 -print -quit)"
    else
        test -e "$1" || test -L "$1"
    fi
}

# Whether every folder above a path is one, or missing, and not a symbolic link.
is_direct() {
    local parent=${1%/*}
    test "$parent" = "$checked" || test "$(realpath -m -- "${parent:-/}")" = "${parent:-/}" || return 1
    checked=$parent
}
checked=//
