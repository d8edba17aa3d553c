# shellcheck shell=sh
# shellcheck disable=SC2154  # assigned by the including scripts: s, c
# The only search of /proc. The processes of a command or a job inherit its tag, GIBIL_JOB=ID, in their environment.
# find_tagged: sets k to the pids of the processes that have the tag, with a blank on both sides of each. @PATTERN@ is written
# so that it doesn't match the grep that searches for it.
# find_all: sets k to those processes, their descendants, and all processes in their sessions, except $s (the supervisor, which
# has to report the end), $c (the processes that copy the output) and this shell.

find_tagged() {
    k=' '
    # shellcheck disable=SC2013  # paths in /proc, without blanks
    for p in $(grep -lzs -e @PATTERN@ @FILES@); do
        p=${p#/proc/}; p=${p%%/*}
        case "$k" in *" $p "*) ;; *) k="$k$p " ;; esac
    done
}
find_all() {
    find_tagged
    [ "$k" = ' ' ] && { k=; return; }
    more=1
    while [ $more = 1 ]; do
        more=0
        for p in /proc/[0-9]*; do
            p=${p#/proc/}
            case "$k" in *" $p "*) continue ;; esac
            { IFS= read -r l <"/proc/$p/stat"; } 2>/dev/null || continue
            # shellcheck disable=SC2086  # the fields of the line
            set -- ${l##*) }
            [ "$1" = Z ] && continue
            case "$k" in *" $2 "* | *" $4 "*) k="$k$p "; more=1 ;; esac
        done
    done
    m=
    for p in $k; do
        case " $s $c $$ " in *" $p "*) ;; *) m="$m $p" ;; esac
    done
    k=$m
}
