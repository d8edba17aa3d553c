"""The shell text that runs on a machine: start, follow and kill a detached job, store a file. Pure.

The far side needs a POSIX sh, coreutils, util-linux (setsid, flock) and GNU grep: every Debian has them, no agent of ours is
installed. A job lives in `$HOME/.gibil/jobs/<id>/`:

    script.N  what runs (0600)       out, err  its output (out holds both when merged)
    pid       of its supervisor      rc        "..." while it runs, then the exit status, overwritten in place: a full disk
    lock      held by the supervisor           cannot keep the end from being known

The supervisor is a small sh in a session of its own, so it survives the connection. It gets the script and the environment on
stdin (never argv, never the disk), holds `lock` for its whole life, waits for the job and writes `rc`. Followers wait for
the lock: the kernel lets go of it even when the supervisor was killed. Lines for us go to stderr and begin with `gibil:`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from gibil_bot.errors import UsageError
from gibil_bot.model import Job

SHELLS = {
    "bash": "bash --noprofile --norc -eo pipefail {0}",  # as GitHub Actions starts them
    "sh": "sh -e {0}",
    "python": "python3 {0}",
}
_JOB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_POLL_S = "0.01"
"""How often `tail` looks whether the job has ended, and, on file systems without notification (overlayfs), for output."""

# Arguments: 0 the job's folder, 1 length of the script in bytes, 2 working directory, 3 `setsid`'s path. Its stdout is a pipe
# to the one who started it, kept open (and away from the job) for its whole life. Names that the job's environment could
# take are not used after the eval: only gibil_… and the positional parameters.
_SUPERVISOR = r"""
trap : HUP INT QUIT TERM
j=$0 script=$0/script.$$
fail() { rm -f "$script"; echo "gibil:failed $1" >&2; exit 1; }
exec 9>>"$j/lock" || fail 'its folder cannot be written'
{ flock -n 9 && ! [ -s "$j/pid" ]; } || { echo gibil:again >&2; exit 0; }
(umask 077; exec head -c "$1" >"$script") || fail 'the script cannot be written (is the disk full?)'
IFS= read -r gibil_env || fail 'the connection ended before all of it had arrived'
{ : >"$j/out" && @SEPARATE@ echo ... >"$j/rc" && echo $$ >"$j/pid"; } 2>/dev/null || {
    rm -f "$j/pid"; fail 'its folder cannot be written (is the disk full?)'; }
echo gibil:started >&2
exec </dev/null 2>/dev/null
gibil_newline='
'
(
    exec 9>&- @OUTPUT@
    cd "$2" || exit 1
    set -- "$3" "$script"
    eval "$gibil_env"
    unset gibil_env gibil_newline
    export GIBIL_JOB='@ID@'
    exec "$1" @COMMAND@
)
r=$?
printf '%-3s\n' $r 1<>"$j/rc"
"""

# A pipeline and not `&`: what a script starts with `&` ignores SIGINT and SIGQUIT, and the job would inherit that.
_LAUNCH = r"""j=$HOME/.gibil/jobs/@ID@
{ mkdir -p -m 700 "$j" && : >>"$j/out"; } 2>/dev/null || {
    echo 'gibil:failed its folder cannot be made (is the disk full?)' >&2; exit 1; }
GIBIL_JOB=@ID@ setsid sh -c @SUPERVISOR@ "$j" @ARGUMENTS@ | {
exec 7<&0 </dev/null
(read -r end <&7) & w=$!
exec 7<&-
f=out o=1
@FOLLOW@}
"""

_ATTACH = r"""j=$HOME/.gibil/jobs/@ID@
[ -s "$j/pid" ] || { echo gibil:unknown >&2; exit 1; }
[ -e "$j/err" ] && echo gibil:separate >&2
exec </dev/null
flock -s "$j/lock" true & w=$!
f=@FILE@ o=@OFFSET@
@FOLLOW@"""

# w: a child that lives as long as the supervisor. The size tells the reader when it has everything, so that the end is
# not held up by tail's polling.
_FOLLOW = rf"""tail -c +$o -f -s {_POLL_S} --pid=$w "$j/$f" 2>/dev/null & t=$!
wait $w
r=
IFS= read -r r <"$j/rc" 2>/dev/null
case $r in
    [0-9]*) {{ printf 'gibil:exit %s ' $r; stat -c %s "$j/$f"; }} >&2 ;;
    *) echo gibil:lost >&2 ;;
esac
wait $t
"""

# Tagged processes, their descendants, and everything in the session of one of them; not the supervisor `$s`, which has to
# report the end, and not ourselves. The pattern is written so that it does not match the grep that looks for it.
_FIND = r"""
find_all() {
    k=' '
    for p in $(grep -lzs -e @PATTERN@ @FILES@); do
        p=${p#/proc/}; p=${p%%/*}
        case "$k" in *" $p "*) ;; *) k="$k$p " ;; esac
    done
    [ "$k" = ' ' ] && { k=; return; }
    more=1
    while [ $more = 1 ]; do
        more=0
        for p in /proc/[0-9]*; do
            p=${p#/proc/}
            case "$k" in *" $p "*) continue ;; esac
            { IFS= read -r l <"/proc/$p/stat"; } 2>/dev/null || continue
            set -- ${l##*) }
            [ "$1" = Z ] && continue
            case "$k" in *" $2 "* | *" $4 "*) k="$k$p "; more=1 ;; esac
        done
    done
    m=
    for p in $k; do
        [ "$p" = "$s" ] || [ "$p" = $$ ] || m="$m $p"
    done
    k=$m
}
"""

_KILL_JOB = r"""j=$HOME/.gibil/jobs/@ID@
s=
[ -s "$j/pid" ] && read -r s <"$j/pid"
@FIND@
find_all
if [ -n "$k" ]; then
    kill -TERM $k 2>/dev/null
    i=0
    while [ $i -lt @TURNS@ ]; do
        sleep 0.05
        find_all
        [ -z "$k" ] && break
        i=$((i + 1))
    done
    i=0
    while [ -n "$k" ] && [ $i -lt 100 ]; do
        kill -STOP $k 2>/dev/null
        kill -KILL $k 2>/dev/null
        sleep 0.01
        find_all
        i=$((i + 1))
    done
fi
[ -n "$s" ] && flock -w 2 -s "$j/lock" true
[ -z "$k" ]
"""

_MOVE = 'chmod {mode:o} "$t" && mv -fT "$t" "$p" || {{ rm -f "$t"; exit 1; }}'

_KILL_RUN = r"""s=
@FIND@
i=0 seen=
while [ $i -lt 100 ]; do
    find_all
    if [ -n "$k" ]; then
        seen=1
        kill -STOP $k 2>/dev/null
        kill -KILL $k 2>/dev/null
        sleep 0.01
    else
        # The server may not have executed the command yet when we are asked to kill it.
        { [ -n "$seen" ] || [ $i -ge 8 ]; } && break
        sleep 0.03
    fi
    i=$((i + 1))
done
[ -z "$k" ]
"""


def check_job_id(job_id: str) -> None:
    """Raises UsageError for an id that is not a plain file name."""
    if not _JOB_ID.fullmatch(job_id):
        raise UsageError(f"{job_id!r} is not a job id: letters, digits, '-', '_' and '.', at most 128")


def export_line(env: Mapping[str, str]) -> bytes:
    """One line that a POSIX sh `eval`s to export all of it; newlines in values are `$gibil_newline`. Ends with a newline."""
    words = ["export"]
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be the name of an environment variable")
        if "\0" in value:
            raise UsageError(f"the value of the environment variable {name} holds a NUL byte")
        quoted = "'" + value.replace("'", "'\\''").replace("\n", "'\"$gibil_newline\"'") + "'"
        words.append(f"{name}={quoted}")
    text = " ".join(words) if env else ":"
    return text.encode("utf-8", "surrogateescape") + b"\n"


def run_command(tag: str, script: str, *, with_env: bool) -> str:
    """`script`, tagged so that `kill_run_command(tag)` finds all of it. With env: `export_line` comes first on stdin."""
    if "\0" in script:
        raise UsageError("a script cannot hold a NUL byte")
    if with_env:
        load = 'IFS= read -r gibil_env && eval "$gibil_env"; unset gibil_env gibil_newline'
        return f"export GIBIL_JOB={tag};gibil_newline='\n'; {load};{script}"
    return f"export GIBIL_JOB={tag};{script}"


def start_command(job: Job) -> tuple[str, bytes]:
    """Start a job and follow its `out` from the beginning: the command, and what it reads on stdin."""
    check_job_id(job.id)
    if "\0" in job.script or "\0" in job.working_directory:
        raise UsageError(f"job {job.id}: a script or a working directory cannot hold a NUL byte")
    script = job.script.encode("utf-8", "surrogateescape")
    redirect = '>>"$j/out" 2>&1' if job.merged else '>>"$j/out" 2>>"$j/err"'
    separate = "" if job.merged else ': >"$j/err" &&'
    supervisor = _fill(_SUPERVISOR, ID=job.id, OUTPUT=redirect, SEPARATE=separate, COMMAND=_shell_words(job))
    # A PATH of the job's own must not decide which setsid we use.
    setsid = '"$(command -v setsid)"' if "PATH" in job.env else "setsid"
    arguments = f"{len(script)} {shlex.quote(job.working_directory)} {setsid}"
    command = _fill(_LAUNCH, ID=job.id, SUPERVISOR=shlex.quote(supervisor), ARGUMENTS=arguments, FOLLOW=_FOLLOW)
    return command, script + export_line(job.env)


def attach_command(job_id: str, stream: str, offset: int) -> str:
    """Follow `stdout` or `stderr` of a job from a byte offset."""
    check_job_id(job_id)
    file = "out" if stream == "stdout" else "err"
    return _fill(_ATTACH, ID=job_id, FILE=file, OFFSET=str(offset + 1), FOLLOW=_FOLLOW)


def kill_job_command(job_id: str, grace_s: float) -> str:
    """TERM, grace, KILL. Exit status 0: nothing of it is alive."""
    check_job_id(job_id)
    turns = max(0, round(grace_s / 0.05))
    return _fill(_KILL_JOB, ID=job_id, TURNS=str(turns), FIND=_find(job_id, in_argv=False))


def kill_run_command(tag: str) -> str:
    """KILL everything that `run_command(tag, …)` started. Exit status 0: nothing of it is alive."""
    return _fill(_KILL_RUN, FIND=_find(tag, in_argv=True))


def put_command(path: str, mode: int, tag: str, size: int | None) -> str:
    """Write stdin to a file beside `path`; with a known size also move it into place when all has arrived.

    Without, the size is printed: the end of the input and the end of the connection look the same from over there.
    """
    store = f'export GIBIL_JOB={tag};p={shlex.quote(path)} t={shlex.quote(path)}.{tag}; (umask 077; exec cat >"$t")'
    if size is None:
        return f'{store} || {{ rm -f "$t"; exit 1; }}; stat -c %s "$t"'
    return f'{store} && [ "$(stat -c %s "$t")" = {size} ] && {_MOVE.format(mode=mode)}'


def put_commit_command(path: str, mode: int, tag: str) -> str:
    return f"p={shlex.quote(path)} t={shlex.quote(path)}.{tag}; {_MOVE.format(mode=mode)}"


def put_abandon_command(path: str, tag: str) -> str:
    """After this nothing of the upload is left, and nothing of it comes any more."""
    return f"{kill_run_command(tag)}rm -f {shlex.quote(path)}.{tag}"


def _shell_words(job: Job) -> str:
    """The command that runs the script: the words of the template, each quoted, `{0}` the script's file."""
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
    return " ".join('"$2"'.join(shlex.quote(part) if part else "" for part in word.split("{0}")) or "''" for word in words)


def _find(tag: str, *, in_argv: bool) -> str:
    """`tag` has to match whole: `task-1` is not `task-10`, and its dots are dots."""
    pattern = tag.replace(".", "[.]")
    if in_argv:  # the login shell that got the tag as the first words of its command, and has it in no environment
        files = "/proc/[0-9]*/environ /proc/[0-9]*/cmdline"
        return _fill(_FIND, PATTERN=f"'^GIBIL_JO[B]={pattern}$' -e '^export GIBIL_JO[B]={pattern};'", FILES=files)
    return _fill(_FIND, PATTERN=f"'^GIBIL_JO[B]={pattern}$'", FILES="/proc/[0-9]*/environ")


def _fill(template: str, **values: str) -> str:
    """Put values for `@NAME@`, in one pass: a value that looks like a placeholder stays what it is."""
    return re.sub(r"@([A-Z]+)@", lambda match: values.get(match[1], match[0]), template)
