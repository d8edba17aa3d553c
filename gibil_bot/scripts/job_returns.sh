# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by the including scripts: j
# returns: sends the files that a job returns, before the line that reports its end. The job may have replaced a path by
# anything, so only regular files are read.

returns() {
    [ -s "$j/returns" ] && while IFS= read -r p; do
        printf 'gibil:file '
        [ -f "$p" ] && [ -s "$p" ] && head -c @RETURN_BYTES@ "$p" 2>/dev/null | base64 -w 0
        printf ' %s\n' "$p"
    done <"$j/returns" >&2
}
