# shellcheck shell=sh
# shellcheck disable=SC2093  # @READ@ and @WRITE@ are descriptors, so exec opens files
# shellcheck disable=SC2094  # a FIFO
# shellcheck disable=SC2154  # assigned by job_supervisor.sh: j
# An anonymous pipe, created without a process: the shell creates it for a here-document, and it is opened again for writing. If
# the shell uses a file for here-documents instead (bash before 5.1), mkfifo creates a FIFO. `tee` doesn't belong to a job: its
# environment has no tag, so killing the job doesn't kill it, and the last output of killed processes arrives. When the job has
# ended, `tee` isn't asleep until it has copied everything (a write to a pipe wakes its reader before it returns): state `S`
# means that it waits at an empty pipe. It is checked three times, since the scheduler may stop a process before that.

exec @READ@<<E
.
E
if [ -p /proc/self/fd/@READ@ ]; then
    # shellcheck disable=SC2034  # discards the line
    read -r x <&@READ@
    exec @WRITE@>/proc/self/fd/@READ@
else
    mkfifo -m 600 "$j/pipe" || fail 'cannot create a pipe (is the disk full?)'
    exec @WRITE@<>"$j/pipe" @READ@<"$j/pipe" 9>"$j/pipe"
    exec @WRITE@>&9 9>&-
    rm -f "$j/pipe"
fi
(
    exec <&@READ@ >/dev/null 2>&1 3>&- @CLOSED@
    @LIMIT@
    GIBIL_JOB='' exec tee -a "$j/@FILE@"
) &
copiers="$copiers $!"
exec @READ@<&-
