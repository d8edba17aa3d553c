# shellcheck shell=sh
# Processes that carry a tag: records of five fields, each ended by NUL: pid, job, command, leader, and the beginning of the
# command line.

# shellcheck disable=SC2013  # paths in /proc, without blanks
for p in $(grep -lzsE '^(GIBIL_JO[B]|@LEADER@)=' /proc/[0-9]*/environ); do
    p=${p#/proc/}; p=${p%/environ}
    j='' c='' l=''
    while IFS= read -r v; do
        case $v in
            GIBIL_JOB=*) j=${v#*=} ;;
            GIBIL_COMMAND=*) c=${v#*=} ;;
            @LEADER@=*) l=${v#*=} ;;
        esac
    done <<EOF
$(grep -zsaE '^(GIBIL_JOB|GIBIL_COMMAND|@LEADER@)=' "/proc/$p/environ" | tr '\000\n' '\n ')
EOF
    a=$(head -c 400 "/proc/$p/cmdline" 2>/dev/null | tr '\000' ' ')
    [ -z "$a" ] || printf '%s\0%s\0%s\0%s\0%s\0' "$p" "$j" "$c" "$l" "$a"
done
