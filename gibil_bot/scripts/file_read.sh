# shellcheck shell=sh
# shellcheck disable=SC2154  # in the environment: gibil_first, gibil_lines; p from remote_layout
# Prints the size and kind of the file $p, then some of its lines. Like git, takes a file with a NUL in its first bytes as
# binary.

n=$(wc -l <"$p") || exit 1
a=$(head -c 8192 "$p" | wc -c) b=$(head -c 8192 "$p" | tr -d '\000' | wc -c) e=$(tail -c 1 "$p" | od -An -tx1)
printf '%s\0%s\0%s\0%s\0' "$n" "$(stat -Lc %s "$p")" "$([ "$a" = "$b" ] && echo text)" "$e"
[ "$a" = "$b" ] || exit 0
tail -n "+$gibil_first" "$p" 2>/dev/null | head -n "$gibil_lines" | head -c @PAGE_BYTES@
