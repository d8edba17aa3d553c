# shellcheck shell=sh
# Starts job @ID@ and follows its output. Runs in the login shell, which may be any POSIX sh; bash is quicker.
#
# Closing 3 makes sure that it is the lock which gets it. bash needs no process for the end of a pipeline, if asked. A pipeline
# and not `&`: what a script starts with `&` ignores SIGINT and SIGQUIT, and the job would inherit that. The first line from the
# supervisor is its pid, the second the exit status; a read whose time is up may have taken the first half of it. The size tells
# the reader when it has everything, so that the end is not held up by tail's polling. The folder is made while the supervisor
# starts, which makes it itself should it be first.

j=$HOME/.gibil/jobs/@ID@ l=$HOME/.gibil/jobs/.@ID@.lock
[ -d "$HOME/.gibil/jobs" ] || mkdir -p "$HOME/.gibil/jobs"
@RETURNS@
# shellcheck disable=SC3044  # where it is bash
shopt -s lastpipe 2>/dev/null
GIBIL_JOB=@ID@ setsid flock -nF "$l" sh 3>&- | {
# shellcheck disable=SC2174  # the folder above is for all jobs
[ -d "$j" ] || mkdir -p -m 700 "$j" 2>/dev/null
read -r s || {
    flock -n "$l" true
    if [ $? = 1 ] || [ -s "$j/pid" ]; then
        echo gibil:again >&2
    else
        echo 'gibil:failed its supervisor ended at once (is the disk full?)' >&2
    fi
    exit
}
r='' e='' t=''
# shellcheck disable=SC3045  # where the shell can't, it fails at once
read -r -t @QUICK_S@ r 2>/dev/null || {
    tail -c +1 -f -s @POLL_S@ --pid="$s" "$j/out" 2>/dev/null </dev/null & t=$!
    read -r e
    r=$r$e
}
case $r in *' cut') r=${r% cut}; echo gibil:cut >&2 ;; esac
case $r in
    '') echo gibil:lost >&2 ;;
    *)
        returns
        if ! [ -s "$j/out" ]; then
            echo "gibil:exit $r 0" >&2
        elif [ "$t" ]; then
            { printf 'gibil:exit %s ' "$r"; stat -c %s "$j/out"; } >&2
        else
            LC_ALL=C x=''
            # shellcheck disable=SC3045  # where the shell can't, head does it
            IFS= read -r -d '' -n @BUILTIN_BYTES@ x 2>/dev/null <"$j/out"
            if [ $? = 1 ] && [ "$x" ]; then
                echo "gibil:exit $r ${#x}" >&2
                printf %s "$x"
                exit
            fi
            echo "gibil:rest $r" >&2
            exec head -c @AT_ONCE_BYTES@ "$j/out"
        fi ;;
esac
wait
}
