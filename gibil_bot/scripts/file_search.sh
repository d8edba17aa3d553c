# shellcheck shell=sh
# shellcheck disable=SC2154  # in the environment: gibil_pattern; p is assigned before it
# Prints the lines that match $gibil_pattern in the file $p, or in files below the directory $p.

e=$(printf '' | grep -P -e "$gibil_pattern" 2>&1 >/dev/null)
[ $? -le 1 ] || { printf %s "$e" >&2; exit 49; }
[ -e "$p" ] || exit 44
grep -rnHIPs --null --exclude-dir=.git @INCLUDES@ -e "$gibil_pattern" -- "$p" | head -c @MATCHES_BYTES@
exit 0
