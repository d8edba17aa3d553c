# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned before it: p
# Where the file $p is to be written: behind links, its folder made, with the mode that it has.

case $p in */) exit 45 ;; esac
[ -d "$p" ] && exit 45
t=$(readlink -m -- "$p" && echo x) || exit 1
t=${t%x} t=${t%?}
new=
[ -e "$t" ] || new=new
[ "$new" ] || [ -f "$t" ] || exit 46
mkdir -p -- "${t%/*}/" || exit 1
printf '%s\0%s\0%s\0' "$t" "$(stat -c %a -- "$t" 2>/dev/null || echo 644)" "$new"
