# shellcheck shell=sh
# shellcheck disable=SC2093  # @READ@ and @WRITE@ are descriptors, so exec opens files
# shellcheck disable=SC2094  # a FIFO
# shellcheck disable=SC2154  # assigned by job_supervisor.sh: j
# A pipe without a name, and without a process to make one: the shell makes it for the text of `<<`, and it is opened again
# for writing. A shell that makes a file of that text instead (bash before 5.1) has a FIFO made for it. `tee` is in no job: its
# environment doesn't say so, and killing the job leaves it alone, so that the last output of killed processes arrives.
# When the job has ended, `tee` is awake until it has copied everything (a write to a pipe wakes its reader before it returns):
# `S` says that it waits, at an empty pipe. Three times, since a process may be stopped by the scheduler on its way there.

exec @READ@<<E
.
E
if [ -p /proc/self/fd/@READ@ ]; then
    # shellcheck disable=SC2034  # read away
    read -r x <&@READ@
    exec @WRITE@>/proc/self/fd/@READ@
else
    mkfifo -m 600 "$j/pipe" || fail 'a pipe cannot be made (is the disk full?)'
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
