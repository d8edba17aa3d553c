"""The shell text of detached jobs: start one and follow it, follow one again. Pure.

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
from gibil_bot.scripts.commands import SHELLS, check_env, check_job_id
from gibil_bot.scripts.templates import script

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
    supervisor = script(
        "job_supervisor",
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
    launch = script(
        "job_launch",
        ID=job.id,
        RETURNS=_returns(),
        QUICK_S=_QUICK_S,
        POLL_S=_POLL_S,
        BUILTIN_BYTES=str(_BUILTIN_BYTES),
        AT_ONCE_BYTES=str(AT_ONCE_BYTES),
    )
    return launch, supervisor.encode("utf-8", "surrogateescape")


def wait_command(job_id: str) -> str:
    """Wait for the end of a job without its output."""
    check_job_id(job_id)
    return script("job_wait", ID=job_id, RETURNS=_returns())


def attach_command(job_id: str, stream: str, offset: int) -> str:
    """Follow `stdout` or `stderr` of a job from a byte offset."""
    check_job_id(job_id)
    file = "out" if stream == "stdout" else "err"
    return script("job_attach", ID=job_id, FILE=file, PLACE=str(offset + 1), RETURNS=_returns(), POLL_S=_POLL_S)


def _pipes(job: Job) -> str:
    """Shell text that makes a pipe, and what empties it, for each stream."""
    limit = f"ulimit -f {job.most_output_bytes // 512}" if job.most_output_bytes else ""
    text = "copiers=\n" + script("job_pipe", READ="5", WRITE="6", FILE="out", CLOSED="5<&- 6>&-", LIMIT=limit)
    if not job.merged:
        text += script("job_pipe", READ="7", WRITE="8", FILE="err", CLOSED="7<&- 6>&- 8>&-", LIMIT=limit)
    return text + 'echo $copiers >"$j/copiers" 2>/dev/null'


def _returns() -> str:
    return script("job_returns", RETURN_BYTES=str(RETURN_BYTES))


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
