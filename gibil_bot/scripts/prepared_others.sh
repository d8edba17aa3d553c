# shellcheck shell=sh
# shellcheck disable=SC2154  # session_of is in prepared_leave.sh
# Prints the processes outside this session, except PID 1.
others() {
    own=$(session_of "$$")
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        test "$pid" -ne 1 && session=$(session_of "$pid") && test "$session" != "$own" && echo "$pid"
    done
    true
}
