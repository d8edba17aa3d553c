#!/bin/sh
# A filter of git (gitattributes(5)) for machines without git-lfs. clean prints the pointer for the file on stdin, and smudge
# the file for the pointer on stdin, or the pointer if there is no object for it.

set -eu
objects=$(git rev-parse --absolute-git-dir)/lfs/objects
file=$(mktemp)
trap 'rm -f "$file"' EXIT
cat >"$file"
size=$(wc -c <"$file" | tr -d ' ')
oid=
if test "$size" -lt 1024; then
    oid=$(sed -n 's/^oid sha256:\([0-9a-f]\{64\}\)$/\1/p' "$file" | head -n 1)
    case $(head -n 1 "$file") in version\ https://git-lfs.github.com/spec/v1 | version\ https://hawser.github.com/spec/v1) ;; *) oid= ;; esac
fi
path() { rest=${1#??}; printf '%s/%s/%s/%s' "$objects" "${1%"$rest"}" "${rest%"${rest#??}"}" "$1"; }
if test "$1" = smudge; then
    if test -n "$oid" && test -f "$(path "$oid")"; then cat "$(path "$oid")"; else cat "$file"; fi
elif test -n "$oid" || test "$size" = 0; then
    cat "$file"
else
    oid=$(sha256sum <"$file" | cut -d' ' -f1)
    object=$(path "$oid")
    if ! test -f "$object"; then
        mkdir -p "${object%/*}"
        cp "$file" "$object.$$"
        mv -f "$object.$$" "$object"
    fi
    printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %s\n' "$oid" "$size"
fi
