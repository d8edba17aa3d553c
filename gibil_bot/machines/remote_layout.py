"""Paths on a machine, and the shell code that stores and loads its environment. No I/O.

The environment of `gibil run` and `gibil ssh` (`--env`, the `env` of `.gibil.yml`, what tasks wrote to GITHUB_ENV) is in /run,
which is in memory: a value that the user passed is never written to a disk and never part of an argv.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from gibil_bot.scripts.commands import ENVIRONMENT

if TYPE_CHECKING:
    from gibil_bot.commits.identity import Identity

PROJECT = "/root/project"
"""The directory of the code, on a machine that has code."""
TO_PROJECT = f"cd {PROJECT} 2>/dev/null || cd /root"
JOB_ID = "provision"
"""The job that prepares a machine and runs its tasks."""
READY = "/root/.gibil-ready"
TASKS_DONE = "/root/.gibil-tasks-done"
TASKS_FAILED = "/root/.gibil-tasks-failed"
STATE = "/root/.gibil/provision"
"""Result of each part of the provisioning; see provision_script.py."""
ENV_PREFIX = "gibil_given_"
"""Prefix of the user's `--env` variables on their way: without it, one could change how our scripts run (PATH, IFS)."""


def enter(folder: str | None) -> str:
    """Return POSIX sh, in one line, that changes to a directory and exits if it doesn't exist.

    None is the code's directory, or /root on a machine without code. A relative path starts there.
    """
    if folder is None:
        return f"{TO_PROJECT}; "
    first = "" if folder.startswith("/") else f"{TO_PROJECT}; "
    return f"{first}cd {shlex.quote(from_code(folder))} || exit 1; "


def from_code(path: str) -> str:
    """Convert a path that a user wrote: expand `~` to /root; prevent that it's read as an option or searched in CDPATH."""
    if path == "~" or path.startswith("~/"):
        return f"/root{path[1:]}"
    return path if path.startswith("/") else f"./{path}"


def bare_script(names: tuple[str, ...] = (), author: Identity | None = None) -> str:
    """Return POSIX sh for a machine without code: it stores the environment, and marks the machine as ready."""
    return f"mkdir -p /root/.gibil\n{identity_line(author)}{save_env_script(names)}: >{STATE} && : >{READY} && : >{TASKS_DONE}"


def clear_records_script() -> str:
    """Return POSIX sh that deletes what the machine of a template recorded about its own provisioning and jobs."""
    return (
        f"rm -rf /root/.gibil/jobs /root/.gibil/files /root/.gibil/outbox.git {PROJECT}/.git/gibil-commit "
        f"{READY} {TASKS_DONE} {TASKS_FAILED} {STATE}\n"
    )


def identity_line(author: Identity | None) -> str:
    """Return POSIX sh, in one line and without a process, that sets the author for root's git if there is no .gitconfig."""
    if author is None:
        return ""
    name, email = (value.replace("\\", "\\\\").replace('"', '\\"') for value in (author.name, author.email))
    text = f'[user]\n\tname = "{name}"\n\temail = "{email}"\n'
    return f"[ -e /root/.gitconfig ] || printf %s {shlex.quote(text)} >/root/.gitconfig || true\n"


def save_env_script(names: tuple[str, ...]) -> str:
    """Return POSIX sh that stores the variables of these names (see ENV_PREFIX) for later commands."""
    if not names:
        return ""
    store = f'for n in {shlex.join(names)}; do v={ENV_PREFIX}$n; printf \'export %s=%q\\n\' "$n" "${{!v}}"; done >{ENVIRONMENT}'
    return f"mkdir -p /run/gibil && (umask 077; bash -c {shlex.quote(store)}) || exit 1\n"


def unprefix_line(names: Iterable[str]) -> str:
    """Return POSIX sh, in one line, that renames the variables (see ENV_PREFIX) to their own names."""
    return "".join(f'export {name}="${ENV_PREFIX}{name}"; unset {ENV_PREFIX}{name}; ' for name in names)


def with_prefix(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables under their names on the way (see ENV_PREFIX)."""
    return {f"{ENV_PREFIX}{name}": value for name, value in env.items()}
