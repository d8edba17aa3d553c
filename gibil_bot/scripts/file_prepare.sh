# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned before it: p
# Prepares writing the file $p: resolves links, creates its directory, and prints the path, the file's mode, and `new` if it's
# new.

case $p in */) exit 45 ;; esac
[ -d "$p" ] && exit 45
t=$(readlink -m -- "$p" && echo x) || exit 1
t=${t%x} t=${t%?}
new=
[ -e "$t" ] || new=new
[ "$new" ] || [ -f "$t" ] || exit 46
mkdir -p -- "${t%/*}/" || exit 1
printf '%s\0%s\0%s\0' "$t" "$(stat -c %a -- "$t" 2>/dev/null || echo 644)" "$new"
