# shellcheck shell=sh
# shellcheck disable=SC2154  # in the environment: gibil_first, gibil_lines; p from remote_layout
# Some lines of the file $p, after its size and kind. A NUL among the first bytes makes a file a binary one, as git sees it.

n=$(wc -l <"$p") || exit 1
a=$(head -c 8192 "$p" | wc -c) b=$(head -c 8192 "$p" | tr -d '\000' | wc -c) e=$(tail -c 1 "$p" | od -An -tx1)
printf '%s\0%s\0%s\0%s\0' "$n" "$(stat -Lc %s "$p")" "$([ "$a" = "$b" ] && echo text)" "$e"
[ "$a" = "$b" ] || exit 0
tail -n "+$gibil_first" "$p" 2>/dev/null | head -n "$gibil_lines" | head -c @PAGE_BYTES@
