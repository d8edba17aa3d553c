# shellcheck shell=sh
# Starts job @ID@ and follows its output. Runs in the login shell, which may be any POSIX sh; bash is faster.
#
# Descriptor 3 is closed so that flock uses it for the lock. With lastpipe, bash needs no process for the end of a pipeline.
# This is a pipeline and not `&`, because a process started with `&` ignores SIGINT and SIGQUIT, and the job would inherit that.
# The supervisor's first line is its pid, the second the exit status; a read that timed out may have consumed a part of the
# second. The size tells the reader when it has everything, so the end isn't delayed by tail's polling. The directory is created
# here while the supervisor starts; if the supervisor is first, it creates the directory itself.

j=$HOME/.gibil/jobs/@ID@ l=$HOME/.gibil/jobs/.@ID@.lock
[ -d "$HOME/.gibil/jobs" ] || mkdir -p "$HOME/.gibil/jobs"
@RETURNS@
# shellcheck disable=SC3044  # only bash has it
shopt -s lastpipe 2>/dev/null
GIBIL_JOB=@ID@ setsid flock -nF "$l" sh 3>&- | {
# shellcheck disable=SC2174  # the folder above is for all jobs
[ -d "$j" ] || mkdir -p -m 700 "$j" 2>/dev/null
read -r s || {
    flock -n "$l" true
    if [ $? = 1 ] || [ -s "$j/pid" ]; then
        echo gibil:again >&2
    else
        echo 'gibil:failed the supervisor ended at once (is the disk full?)' >&2
    fi
    exit
}
r='' e='' t=''
# shellcheck disable=SC3045  # in a shell without -t, it fails at once
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
            # shellcheck disable=SC3045  # in a shell without -d and -n, head does it
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
