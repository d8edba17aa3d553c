r"""The shell text of detached jobs: start one and follow it, follow one again. Pure.

A job lives in `$HOME/.gibil/jobs/<id>/`:

    script.N  what runs (0600)       out, err  its output (out holds both when merged)
    pid       of its supervisor      rc        "..." while it runs, then the exit status, and "cut" when not all of its output
                                               could be stored; overwritten in place: a full disk cannot keep the end from
                                               being known
    returns   paths whose contents come back with the end, one a line; only where there are some
    copiers   pids of what copies the output into out and err

and beside it `.<id>.lock`, held by the supervisor.

The supervisor is a small sh in a session of its own, so it survives the connection. It reads itself, with the script and the
environment in it, from stdin (never argv; the environment never meets the disk), holds the lock for its whole life, waits for
the job and writes `rc`. Whoever attaches later waits for the lock: the kernel lets go of it even if the supervisor was killed.
The one who started it waits at a pipe from it, which is quicker. Lines for us go to stderr and begin with `gibil:`.

A job prints into pipes that `tee` copies into the files, and never into the files themselves: a program that opens /dev/stderr
by its name opens the file behind it again, and would cut it, or overwrite what others wrote to it. `tee` and not `cat`: when
the disk is full it goes on reading, so that the job is not stopped by that. The supervisor reports the end once everything
that was in the pipes at the job's end is in the files. Without others that hold the pipe open, that is when `tee` ends. With
them, it is when `tee` waits for more; what they print later still comes into the files, but is not waited for.

A process costs about a millisecond on a small machine, as much as a short task, so there are as few as can be: for a job that
ends quickly the supervisor (setsid and flock turn into it by exec), beside them a mkdir, a tee for each stream, and the job.
"""

from __future__ import annotations

import shlex

from gibil_bot.errors import UsageError
from gibil_bot.model import Job
from gibil_bot.scripts.commands import SHELLS, check_env, check_job_id, fill

RETURN_BYTES = 1024 * 1024
"""Where a returned file is cut."""
MAX_RETURNS = 16
NO_FOLDER = "the working directory"
AT_ONCE_BYTES = 1024 * 1024
"""So much of the output of a job that ended quickly comes without its size being asked for."""
_BUILTIN_BYTES = 16 * 1024
"""Less than this, without a NUL, bash sends by itself."""

_POLL_S = "0.005"
"""How often `tail` looks whether the job has ended, and, on file systems without notification (overlayfs), for output."""
_QUICK_S = "0.03"
"""A job that ends within it is not followed by a `tail`, its output is just read. (Where the login shell can wait so: bash.)"""

# What `sh` reads on its stdin, in braces: nothing of it happens before all of it has arrived. Descriptor 3 is the lock. Its
# stdout is a pipe to the one who started it, kept open (and away from the job) for its whole life. After the exports, only the
# positional parameters still are what they were. In braces redirections are made with printf and not with `:`, since one that
# fails there would end the shell. /usr/bin/setsid: a PATH of the job's own must not decide which one we use.
_SUPERVISOR = r"""{
trap : HUP INT QUIT TERM PIPE
j=$HOME/.gibil/jobs/@ID@
script=$j/script.$$
fail() { rm -f "$script"; echo "gibil:failed $1" >&2; exit 1; }
[ -s "$j/pid" ] && exit
u=
{ read -r u && read -r u u; } </proc/self/status
case $u in 0[0-7][0-7][0-7]) ;; *) u=$(umask) ;; esac
umask 077
[ -d @FOLDER@ ] || fail @NOFOLDER@
[ -d "$j" ] || mkdir -p -m 700 "$j" 2>/dev/null || fail 'its folder cannot be made (is the disk full?)'
printf %s @SCRIPT@ >"$script" || fail 'the script cannot be written (is the disk full?)'
{ printf '' >"$j/out" && @FILES@ echo '...    ' >"$j/rc" && echo $$ >"$j/pid"; } 2>/dev/null || {
    rm -f "$j/pid"; fail 'its folder cannot be written (is the disk full?)'; }
@PIPES@
umask "$u"
echo gibil:started >&2
echo $$
exec </dev/null 2>/dev/null
s=/usr/bin/setsid
[ -x $s ] || s=$(command -v setsid)
(
    exec 3>&- @OUTPUT@
    cd @FOLDER@ || exit 1
    set -- "$s" "$script"
    @EXPORTS@
    export GIBIL_JOB='@ID@'
    exec "$1" @COMMAND@
)
r=$?
exec 6>&- 8>&-
i=0 cut=
for c in $copiers; do
    n=0
    while { read -r x <"/proc/$c/stat"; } 2>/dev/null; do
        x=${x##*) }
        case $x in
            Z*) break ;;
            S*) n=$((n + 1)) ;;
            *) n=0 ;;
        esac
        i=$((i + 1))
        if [ $n = 3 ] || [ $i -gt 400 ]; then
            c=
            break
        fi
        { [ $i -lt 50 ] && [ $n = 0 ]; } || sleep 0.005
    done
    [ -z "$c" ] || wait $c || cut=' cut'
done
printf '%-7s\n' "$r$cut" 1<>"$j/rc"
echo "$r$cut"
exit
}
"""

# A pipe without a name, and without a process to make one: the shell makes it for the text of `<<`, and it is opened again
# for writing. A shell that makes a file of that text instead (bash before 5.1) has a FIFO made for it. `tee` is in no job: its
# environment does not say so, and killing the job leaves it alone, so that the last output of killed processes arrives.
# When the job has ended, `tee` is awake until it has copied everything (a write to a pipe wakes its reader before it returns):
# `S` says that it waits, at an empty pipe. Three times, since a process may be stopped by the scheduler on its way there.
_PIPE = r"""exec @READ@<<E
.
E
if [ -p /proc/self/fd/@READ@ ]; then
    read -r x <&@READ@
    exec @WRITE@>/proc/self/fd/@READ@
else
    mkfifo -m 600 "$j/pipe" || fail 'a pipe cannot be made (is the disk full?)'
    exec @WRITE@<>"$j/pipe" @READ@<"$j/pipe" 9>"$j/pipe"
    exec @WRITE@>&9 9>&-
    rm -f "$j/pipe"
fi
(@LIMIT@ GIBIL_JOB= exec tee -a "$j/@FILE@") <&@READ@ >/dev/null 2>&1 3>&- @READ@<&- @CLOSED@ &
copiers="$copiers $!"
exec @READ@<&-
"""

# What goes back at the end of a job whose status is `$r`, before the line that says so. A path may be anything by now: only a
# regular file is read.
_RETURNS = rf"""returns() {{
    [ -s "$j/returns" ] && while IFS= read -r p; do
        printf 'gibil:file '
        [ -f "$p" ] && [ -s "$p" ] && head -c {RETURN_BYTES} "$p" 2>/dev/null | base64 -w 0
        printf ' %s\n' "$p"
    done <"$j/returns" >&2
}}
"""

# Closing 3 makes sure that it is the lock which gets it. bash needs no process for the end of a pipeline, if asked. A pipeline
# and not `&`: what a script starts with `&` ignores SIGINT and SIGQUIT, and the job would inherit that. The first line from the
# supervisor is its pid, the second the exit status; a read whose time is up may have taken the first half of it. The size tells
# the reader when it has everything, so that the end is not held up by tail's polling. The folder is made while the supervisor
# comes up, which makes it itself should it be first.
_LAUNCH = rf"""j=$HOME/.gibil/jobs/@ID@ l=$HOME/.gibil/jobs/.@ID@.lock
[ -d "$HOME/.gibil/jobs" ] || mkdir -p "$HOME/.gibil/jobs"
{_RETURNS}shopt -s lastpipe 2>/dev/null
GIBIL_JOB=@ID@ setsid flock -nF "$l" sh 3>&- | {{
[ -d "$j" ] || mkdir -p -m 700 "$j" 2>/dev/null
read -r s || {{
    flock -n "$l" true
    if [ $? = 1 ] || [ -s "$j/pid" ]; then
        echo gibil:again >&2
    else
        echo 'gibil:failed its supervisor ended at once (is the disk full?)' >&2
    fi
    exit
}}
r= e= t=
read -r -t {_QUICK_S} r 2>/dev/null || {{
    tail -c +1 -f -s {_POLL_S} --pid=$s "$j/out" 2>/dev/null </dev/null & t=$!
    read -r e
    r=$r$e
}}
case $r in *' cut') r=${{r% cut}}; echo gibil:cut >&2 ;; esac
case $r in
    '') echo gibil:lost >&2 ;;
    *)
        returns
        if ! [ -s "$j/out" ]; then
            echo "gibil:exit $r 0" >&2
        elif [ "$t" ]; then
            {{ printf 'gibil:exit %s ' $r; stat -c %s "$j/out"; }} >&2
        else
            LC_ALL=C x=
            IFS= read -r -d '' -n {_BUILTIN_BYTES} x 2>/dev/null <"$j/out"
            if [ $? = 1 ] && [ "$x" ]; then
                echo "gibil:exit $r ${{#x}}" >&2
                printf %s "$x"
                exit
            fi
            echo "gibil:rest $r" >&2
            exec head -c {AT_ONCE_BYTES} "$j/out"
        fi ;;
esac
wait
}}
"""

_ATTACH = rf"""j=$HOME/.gibil/jobs/@ID@
[ -s "$j/pid" ] || {{ echo gibil:unknown >&2; exit 1; }}
[ -e "$j/err" ] && echo gibil:separate >&2
{_RETURNS}exec </dev/null
r= x=
read -r r x <"$j/rc"
case $r in
    [0-9]*) ;;
    *)
        flock -s "$HOME/.gibil/jobs/.@ID@.lock" true & w=$!
        tail -c +@PLACE@ -f -s {_POLL_S} --pid=$w "$j/@FILE@" 2>/dev/null & t=$!
        wait $w
        read -r r x <"$j/rc" ;;
esac
case $r in
    [0-9]*)
        [ "$x" ] && echo gibil:cut >&2
        [ @FILE@ = out ] && returns
        {{ printf 'gibil:exit %s ' $r; stat -c %s "$j/@FILE@"; }} >&2
        [ "$w" ] || exec tail -c +@PLACE@ "$j/@FILE@" ;;
    *) echo gibil:lost >&2 ;;
esac
wait $t
"""


_WAIT = rf"""j=$HOME/.gibil/jobs/@ID@
[ -s "$j/pid" ] || {{ echo gibil:unknown >&2; exit 1; }}
{_RETURNS}exec </dev/null
flock -s "$HOME/.gibil/jobs/.@ID@.lock" true
r= x=
read -r r x <"$j/rc"
case $r in
    [0-9]*)
        [ "$x" ] && echo gibil:cut >&2
        returns
        echo "gibil:rest $r" >&2 ;;
    *) echo gibil:lost >&2 ;;
esac
"""


def check_job(job: Job) -> None:
    """Raises UsageError."""
    check_job_id(job.id)
    if "\0" in job.script or "\0" in job.working_directory:
        raise UsageError(f"job {job.id}: a script or a working directory cannot hold a NUL byte")
    check_env(job.env)
    if len(job.returns) > MAX_RETURNS:
        raise UsageError(f"job {job.id}: at most {MAX_RETURNS} files can be returned")
    for path in job.returns:
        if not path.startswith("/") or "\0" in path or "\n" in path:
            raise UsageError(f"job {job.id}: {path!r} is not an absolute path that can be returned")


def no_folder(job: Job) -> str:
    """Why a job can't start in its working directory, on one line."""
    return f"{NO_FOLDER} {job.working_directory.replace(chr(10), ' ')} does not exist"


def start_command(job: Job) -> tuple[str, bytes]:
    """Start a job and follow its `out` from the beginning: the command, and what it reads on stdin."""
    check_job(job)
    exports = " ".join(f"{name}={shlex.quote(value)}" for name, value in job.env.items())
    supervisor = fill(
        _SUPERVISOR,
        ID=job.id,
        SCRIPT=shlex.quote(job.script),
        FILES=_files(job),
        PIPES=_pipes(job),
        OUTPUT=">&6 2>&6 6>&-" if job.merged else ">&6 2>&8 6>&- 8>&-",
        FOLDER=shlex.quote(job.working_directory),
        NOFOLDER=shlex.quote(no_folder(job)),
        EXPORTS=f"export {exports}" if exports else ":",
        COMMAND=_quoted(shell_words(job)),
    )
    return fill(_LAUNCH, ID=job.id), supervisor.encode("utf-8", "surrogateescape")


def wait_command(job_id: str) -> str:
    """Wait for the end of a job without its output."""
    check_job_id(job_id)
    return fill(_WAIT, ID=job_id)


def attach_command(job_id: str, stream: str, offset: int) -> str:
    """Follow `stdout` or `stderr` of a job from a byte offset."""
    check_job_id(job_id)
    return fill(_ATTACH, ID=job_id, FILE="out" if stream == "stdout" else "err", PLACE=str(offset + 1))


def _pipes(job: Job) -> str:
    """Shell text that makes a pipe, and what empties it, for each stream."""
    limit = f"ulimit -f {job.most_output_bytes // 512};" if job.most_output_bytes else ""
    text = "copiers=\n" + fill(_PIPE, READ="5", WRITE="6", FILE="out", CLOSED="6>&-", LIMIT=limit)
    if not job.merged:
        text += fill(_PIPE, READ="7", WRITE="8", FILE="err", CLOSED="6>&- 8>&-", LIMIT=limit)
    return text + 'echo $copiers >"$j/copiers" 2>/dev/null'


def _files(job: Job) -> str:
    """Shell text, up to an `&&`, that makes the files that only some jobs have."""
    text = "" if job.merged else """printf '' >"$j/err" && """
    if job.returns:
        text += f"""printf '%s\\n' {shlex.join(job.returns)} >"$j/returns" &&"""
    return text


def shell_words(job: Job) -> list[str]:
    """The command that runs the script: the words of the template, `{0}` the script's file. Raises UsageError."""
    template = SHELLS.get(job.shell, job.shell)
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"job {job.id}: shell {job.shell!r}: {error}") from None
    if not any("{0}" in word for word in words):
        known = ", ".join(SHELLS)
        raise UsageError(f"job {job.id}: shell {job.shell!r} is none of {known}, and has no {{0}} for the script's file")
    if any("\0" in word for word in words):
        raise UsageError(f"job {job.id}: shell: a NUL byte")
    return words


def _quoted(words: list[str]) -> str:
    """For a shell in which `$2` is the script's file."""
    return " ".join('"$2"'.join(shlex.quote(part) if part else "" for part in word.split("{0}")) or "''" for word in words)
