# shellcheck shell=sh
# shellcheck disable=SC2154  # find_tagged assigns it: k
# Prints the processes that have a tag: records of pid, tag, leader, and the beginning of the command line, each ended by NUL.

@FIND@
find_tagged
for p in $k; do
    j='' l=''
    while IFS= read -r v; do
        case $v in
            GIBIL_JOB=*) j=${v#*=} ;;
            @LEADER@=*) l=${v#*=} ;;
        esac
    done <<EOF
$(grep -zsaE '^(GIBIL_JOB|@LEADER@)=' "/proc/$p/environ" | tr '\000\n' '\n ')
EOF
    a=$(head -c 400 "/proc/$p/cmdline" 2>/dev/null | tr '\000' ' ')
    [ -z "$a" ] || printf '%s\0%s\0%s\0%s\0' "$p" "$j" "$l" "$a"
done
