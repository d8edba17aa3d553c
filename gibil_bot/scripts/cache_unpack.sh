# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by caches.py: folder, mode, most_bytes, compressed, patterns; by cache_functions.sh: found
# Unpacks the archive in the input into a separate folder, from which cache_place.sh moves it: until the bot has compared the
# archive's digest, nothing of it is used. Exit status 10: the machine has files at the paths already.

if test "$mode" = missing; then
    matches '' "${patterns[@]}"
    for path in "${found[@]}"; do
        ! is_filled "$path" || exit 10
    done
fi
rm -rf -- "$folder" && mkdir -p -- "${folder%/*}" && mkdir -m 700 -- "$folder" || exit 1
decompress() { if test -n "$compressed"; then zstd -q -dc; else cat; fi; }
set -o pipefail
# tar rejects members outside of the folder, and creates symbolic links last.
decompress | head -c "$most_bytes" | tar -C "$folder" -x -p --no-same-owner --delay-directory-restore -f - && exit 0
chmod -R u+rwX -- "$folder" 2>/dev/null
rm -rf -- "$folder"
exit 1
