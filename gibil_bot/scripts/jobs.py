"""Shell commands for detached jobs: start a job and follow it, follow it again, wait for it. No I/O.

A job's directory is `$HOME/.gibil/jobs/<id>/`:

    script.N  the script (0600)       out, err  its output (out has both streams when merged)
    pid       of its supervisor       rc        "..." while it runs, then the exit status, and "cut" if some of its output
                                                couldn't be stored; overwritten in place, so that a full disk can't hide
                                                the job's end
    returns   paths of files that are returned with the end, one per line; only if there are any
    copiers   pids of the processes that copy the output into out and err

The supervisor holds the lock `.<id>.lock`, next to the directory.

The supervisor is a small sh in its own session, so it survives the connection. It reads itself, including the job's script and
environment, from stdin (never argv; the environment is never written to the disk), holds the lock as long as it lives, waits
for the job and writes `rc`. Clients that attach later wait for the lock, which the kernel releases even if the supervisor was
killed. The client that started the job waits at a pipe from the supervisor, which is faster. Status lines go to stderr and
begin with `gibil:`.

A job writes to pipes that `tee` copies into the files, and never to the files themselves: a program that opens /dev/stderr by
name would open the file again, and truncate it or overwrite the output of others. `tee` and not `cat`, because `tee` continues
to read when the disk is full, so the job isn't stopped. The supervisor reports the end when everything that was in the pipes at
the job's end is in the files. If no other process holds the pipe open, that is when `tee` ends. Otherwise it is when `tee`
waits for more; what the other processes print later is stored, too, but the supervisor doesn't wait for it.

A process takes about a millisecond on a small machine, as much as a short task, so there are as few as possible: for a job that
ends quickly, the supervisor (setsid and flock turn into it by exec), a mkdir, a tee for each stream, and the job.
"""

from __future__ import annotations

import shlex

from gibil_bot.errors import UsageError
from gibil_bot.model import Job
from gibil_bot.scripts.commands import SHELLS, check_env, check_job_id, with_terminal
from gibil_bot.scripts.templates import script

RETURN_BYTES = 1024 * 1024
"""Maximum size of a returned file; longer files are truncated."""
MAX_RETURNS = 16
NO_FOLDER = "the working directory"
AT_ONCE_BYTES = 1024 * 1024
"""How many bytes of the output of a job that ended quickly are sent without a query for its size."""
_BUILTIN_BYTES = 16 * 1024
"""Output below this size and without NULs is sent by bash itself, without a process."""

_POLL_S = "0.005"
"""How often `tail` checks for the job's end and, on file systems without notification (overlayfs), for output."""
_QUICK_S = "0.03"
"""The output of a job that ends within this time is read without `tail`. Only in a login shell with `read -t`, such as bash."""


def check_job(job: Job) -> None:
    """Raise UsageError for a job that can't be started."""
    check_job_id(job.id)
    if "\0" in job.script or "\0" in job.working_directory:
        raise UsageError(f"job {job.id}: a script or a working directory can't contain a NUL byte")
    check_env(job.env)
    if job.tty and not job.merged:
        raise UsageError(f"job {job.id}: a terminal has only one output stream")
    if len(job.returns) > MAX_RETURNS:
        raise UsageError(f"job {job.id}: at most {MAX_RETURNS} files can be returned")
    for path in job.returns:
        if not path.startswith("/") or "\0" in path or "\n" in path:
            raise UsageError(f"job {job.id}: {path!r} is not an absolute path that can be returned")


def no_folder(job: Job) -> str:
    """Return why a job can't start in its working directory, on one line."""
    return f"{NO_FOLDER} {job.working_directory.replace(chr(10), ' ')} does not exist"


def start_command(job: Job) -> tuple[str, bytes]:
    """Return the command that starts a job and follows its `out` from the beginning, and the command's stdin."""
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
    """Return the command that waits for the end of a job, without its output."""
    check_job_id(job_id)
    return script("job_wait", ID=job_id, RETURNS=_returns())


def attach_command(job_id: str, stream: str, offset: int) -> str:
    """Return the command that follows `stdout` or `stderr` of a job from a byte offset."""
    check_job_id(job_id)
    file = "out" if stream == "stdout" else "err"
    return script("job_attach", ID=job_id, FILE=file, OFFSET=str(offset + 1), RETURNS=_returns(), POLL_S=_POLL_S)


def _pipes(job: Job) -> str:
    """Return shell text that creates, for each stream, a pipe and the process that copies it."""
    limit = f"ulimit -f {job.most_output_bytes // 512}" if job.most_output_bytes else ""
    text = "copiers=\n" + script("job_pipe", READ="5", WRITE="6", FILE="out", CLOSED="5<&- 6>&-", LIMIT=limit)
    if not job.merged:
        text += script("job_pipe", READ="7", WRITE="8", FILE="err", CLOSED="7<&- 6>&- 8>&-", LIMIT=limit)
    return text + 'echo $copiers >"$j/copiers" 2>/dev/null'


def _returns() -> str:
    return script("job_returns", RETURN_BYTES=str(RETURN_BYTES))


def _files(job: Job) -> str:
    """Return shell text, up to an `&&`, that creates the files that only some jobs have."""
    text = "" if job.merged else """printf '' >"$j/err" && """
    if job.returns:
        text += f"""printf '%s\\n' {shlex.join(job.returns)} >"$j/returns" &&"""
    return text


def shell_words(job: Job) -> list[str]:
    """Return the command that runs the script: the words of the template, `{0}` is the script's file. Raises UsageError."""
    template = SHELLS.get(job.shell, job.shell)
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"job {job.id}: shell {job.shell!r}: {error}") from None
    if not any("{0}" in word for word in words):
        known = ", ".join(SHELLS)
        raise UsageError(f"job {job.id}: shell {job.shell!r} is none of {known}, and has no {{0}} for the script's file")
    if any("\0" in word for word in words):
        raise UsageError(f"job {job.id}: shell {job.shell!r} contains a NUL byte")
    return with_terminal(words) if job.tty else words


def _quoted(words: list[str]) -> str:
    """Quote the words for a shell in which `$2` is the script's file."""
    return " ".join('"$2"'.join(shlex.quote(part) if part else "" for part in word.split("{0}")) or "''" for word in words)
