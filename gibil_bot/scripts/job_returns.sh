# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by its users: j
# returns: sends the files that a job returns, before the line that reports its end. A path may be anything by now: only a
# regular file is read.

returns() {
    [ -s "$j/returns" ] && while IFS= read -r p; do
        printf 'gibil:file '
        [ -f "$p" ] && [ -s "$p" ] && head -c @RETURN_BYTES@ "$p" 2>/dev/null | base64 -w 0
        printf ' %s\n' "$p"
    done <"$j/returns" >&2
}
