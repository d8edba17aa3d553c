"""Shell commands for a machine: run and kill a command, kill a job, store a file. No I/O.

The machine needs a POSIX sh, coreutils, util-linux (setsid, flock) and GNU grep, which every Debian has; no agent is installed.
scripts/jobs.py has the commands for detached jobs, and describes their directories.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from gibil_bot.errors import UsageError
from gibil_bot.scripts.templates import script as script_text

SHELLS = {
    "bash": "bash --noprofile --norc -eo pipefail {0}",  # as GitHub Actions starts them
    "sh": "sh -e {0}",
    "python": "python3 {0}",
}
COLUMNS, ROWS = 160, 50
"""Size of the terminal of tasks with `tty`."""
LEADER = "GIBIL_LEADER"
"""Variable in the environment of all processes of a user's command: the pid of its first process."""
ENVIRONMENT = "/run/gibil/env"
"""Shell code that sets the machine's environment; it doesn't exist if there is none."""
LOAD_ENVIRONMENT = f"if [ -r {ENVIRONMENT} ]; then . {ENVIRONMENT}; fi"
_JOB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_MOVE = 'chmod {mode:o} "$t" && mv -fT "$t" "$p" || {{ rm -f "$t"; exit 1; }}'


def check_job_id(job_id: str) -> None:
    """Raise UsageError for an id that isn't a plain file name."""
    if not _JOB_ID.fullmatch(job_id):
        raise UsageError(f"{job_id!r} is not a valid job id: use letters, digits, '-', '_' and '.', at most 128 characters")


def check_env(env: Mapping[str, str]) -> None:
    """Raise UsageError for an invalid environment."""
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(f"{name!r} can't be the name of an environment variable")
        if "\0" in value:
            raise UsageError(f"the value of the environment variable {name} contains a NUL byte")


def export_line(env: Mapping[str, str]) -> bytes:
    """Return one line that exports all variables when a POSIX sh `eval`s it; newlines in values are `$gibil_newline`."""
    check_env(env)
    words = ["export"]
    for name, value in env.items():
        quoted = "'" + value.replace("'", "'\\''").replace("\n", "'\"$gibil_newline\"'") + "'"
        words.append(f"{name}={quoted}")
    text = " ".join(words) if env else ":"
    return text.encode("utf-8", "surrogateescape") + b"\n"


def run_command(tag: str, script: str, *, with_env: bool) -> str:
    """Return `script` with a tag by which `kill_run_command` finds its processes. With env: `export_line` precedes stdin."""
    if "\0" in script:
        raise UsageError("a script can't contain a NUL byte")
    if with_env:
        load = 'IFS= read -r gibil_env && eval "$gibil_env"; unset gibil_env gibil_newline'
        return f"export GIBIL_JOB={tag};gibil_newline='\n'; {load};{script}"
    return f"export GIBIL_JOB={tag};{script}"


def user_command(command: str, *, enter: str, variables: str = "") -> str:
    """Return POSIX sh that loads the machine's environment and runs a user's command. `variables`, `enter`: sh before it."""
    return f'{LOAD_ENVIRONMENT}; {variables}{enter}export {LEADER}=$$; exec "${{BASH:-sh}}" -c {shlex.quote(command)}'


def enter_home(command: str) -> str:
    """Return POSIX sh that loads the machine's environment and runs a user's command in /root."""
    return user_command(command, enter="cd /root || exit 1; ")


def read_plain_command(command: str) -> tuple[str, str] | None:
    """Return the tag and the user's command if this is `run_command(tag, enter_home(…))`, and None otherwise.

    PID 1 of a local machine does what precedes the user's command itself, without a shell, which takes a millisecond.
    """
    tag, _, script = command.removeprefix("export GIBIL_JOB=").partition(";")
    before = enter_home("x").removesuffix("x")
    if not (script.startswith(before) and command.startswith("export GIBIL_JOB=") and _JOB_ID.fullmatch(tag)):
        return None
    try:
        words = shlex.split(script[len(before) :])
    except ValueError:
        return None
    return (tag, words[0]) if len(words) == 1 and command == run_command(tag, enter_home(words[0]), with_env=False) else None


def with_terminal(words: list[str]) -> list[str]:
    """Return a command that runs the command `words` in a new terminal, copies its output and ends with its exit status.

    `script` is in util-linux's bsdutils, which every Debian has. Lines end with LF only, as those of other tasks. `script` ends
    with 0 after SIGTERM, so a shell waits for it, which the same signal ends with the right status.
    """
    inside = f"stty cols {COLUMNS} rows {ROWS} -onlcr; exec {shlex.join(words)}"
    return ["sh", "-c", 'script -qefc "$1" /dev/null; exit $?', "sh", inside]


def kill_job_command(job_id: str, grace_s: float) -> str:
    """Return a command that sends TERM, then after the grace KILL. Exit status 0: none of the job's processes is left."""
    check_job_id(job_id)
    return script_text(
        "kill_job",
        ID=job_id,
        FIND=_find(job_id, in_argv=False),
        KILL=script_text("kill_gently", GRACE_CS=str(max(0, round(grace_s * 100)))),
    )


def kill_run_command(tag: str) -> str:
    """Return a command that kills everything that `run_command(tag, …)` started. Exit status 0: none of it is left."""
    return script_text("kill_command", FIND=_find(tag, in_argv=True))


def signal_run_command(tag: str, signal: str) -> str:
    """Return a command that sends a signal (INT, TERM …) to everything that `run_command(tag, …)` started."""
    return script_text("signal_command", SIGNAL=signal, FIND=_find(tag, in_argv=True))


def list_tagged_command() -> str:
    """Return a command that prints all processes with a tag: pid, tag, LEADER and command line, each ended by NUL."""
    find = script_text("find_processes", PATTERN="'^GIBIL_JO[B]=.'", FILES="/proc/[0-9]*/environ")
    return script_text("stray_list", FIND=find, LEADER=LEADER)


def release_port_script(port: int) -> str:
    """Return a script that ends the server's process of a cut connection which still listens on a forwarded port."""
    return script_text("forward_release", PORT=str(int(port)))


def put_command(path: str, mode: int, tag: str, size: int | None) -> str:
    """Return a command that writes stdin to a file next to `path`, and with a known size also renames a complete file.

    Without a size, it prints the size: on the machine, the end of the input and the end of the connection look the same.
    """
    store = f'export GIBIL_JOB={tag};p={shlex.quote(path)} t={shlex.quote(path)}.{tag}; (umask 077; exec cat >"$t")'
    if size is None:
        return f'{store} || {{ rm -f "$t"; exit 1; }}; stat -c %s "$t"'
    return f'{store} && [ "$(stat -c %s "$t")" = {size} ] && {_MOVE.format(mode=mode)}'


def put_commit_command(path: str, mode: int, tag: str) -> str:
    return f"p={shlex.quote(path)} t={shlex.quote(path)}.{tag}; {_MOVE.format(mode=mode)}"


def put_abandon_command(path: str, tag: str) -> str:
    """Return a command that ends an upload and deletes what it has written."""
    return f"{kill_run_command(tag)}rm -f {shlex.quote(path)}.{tag}"


def kill_by_environment(pattern: str) -> str:
    """Return a command that ends all processes whose environment has a line that matches `pattern`, and their descendants.

    It sends TERM, then after five seconds KILL. `pattern` is a word of the shell that runs this text.
    """
    find = script_text("find_processes", PATTERN=pattern, FILES="/proc/[0-9]*/environ")
    return f"s='' c=''\n{find}{script_text('kill_gently', GRACE_CS='500')}"


def _find(tag: str, *, in_argv: bool) -> str:
    """Return the search for a tag, which has to match completely: `task-1` isn't `task-10`, and dots are literal."""
    pattern = tag.replace(".", "[.]")
    if in_argv:  # also finds the login shell, which has the tag in its command and not in its environment
        files = "/proc/[0-9]*/environ /proc/[0-9]*/cmdline"
        either = f"'^GIBIL_JO[B]={pattern}$' -e '^export GIBIL_JO[B]={pattern};'"
        return script_text("find_processes", PATTERN=either, FILES=files)
    return script_text("find_processes", PATTERN=f"'^GIBIL_JO[B]={pattern}$'", FILES="/proc/[0-9]*/environ")
