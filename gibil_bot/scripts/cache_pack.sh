# shellcheck shell=bash
# shellcheck disable=SC2154  # assigned by caches.py: folder, mode, most_bytes, most_packed, compressed, patterns
# Packs the files that match the patterns into $folder.packed. Prints its size in bytes; or `nothing` if no file matches,
# `unchanged` if mode is `changed` and no file is newer than what was unpacked, `large` if a limit is exceeded.

packed=$folder.packed
matches '' "${patterns[@]}"
filled=()
for path in "${found[@]}"; do
    is_filled "$path" && filled+=("$path")
done
test ${#filled[@]} -gt 0 || { echo nothing; exit 0; }
if test "$mode" = changed && test -e "$folder.placed"; then
    test -n "$(find "${filled[@]}" -newer "$folder.placed" ! -type d -print -quit)" || { echo unchanged; exit 0; }
fi
mkdir -p -- "${folder%/*}" || exit 1
{ test ${#left_out[@]} -eq 0 || printf '%s\n' "${left_out[@]#/}"; } >"$packed.without" || exit 1
compress() { if test -n "$compressed"; then zstd -q -1 -T0; else cat; fi; }
# 1: a file changed while it was read.
pack() {
    printf '%s\0' "${filled[@]#/}" | tar -C / -c -f - --numeric-owner --warning=none --anchored --no-wildcards \
        --exclude-from="$packed.without" --null --verbatim-files-from -T -
    test $? -le 1
}
# Reads one byte more than is allowed, so that an archive which is cut off is noticed.
bounded() { head -c "$most_bytes"; head -c 1 >"$packed.more"; }
set -o pipefail
pack | bounded | compress | head -c $((most_packed + 1)) >"$packed"
status=$?
if test -s "$packed.more" || test "$(stat -c %s "$packed")" -gt "$most_packed"; then
    rm -f -- "$packed"
    echo large
    exit 0
fi
test $status -eq 0 || { rm -f -- "$packed"; exit 1; }
stat -c %s "$packed"
