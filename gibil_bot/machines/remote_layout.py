"""Where things are on a machine, and how its environment gets there and is found again. Pure.

What `gibil run` and `gibil ssh` find in their environment (`--env`, the `env` of `.gibil.yml`, what tasks wrote to GITHUB_ENV)
is in /run, which is memory: a value that somebody passed is never written to a disk, and travels in no argv.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gibil_bot.commits.identity import Identity

PROJECT = "/root/project"
"""Where the code is, on a machine that has some."""
TO_PROJECT = f"cd {PROJECT} 2>/dev/null || cd /root"
JOB_ID = "provision"
"""The job that makes a machine ready and runs its tasks."""
READY = "/root/.gibil-ready"
TASKS_DONE = "/root/.gibil-tasks-done"
TASKS_FAILED = "/root/.gibil-tasks-failed"
STATE = "/root/.gibil/provision"
"""How each part of the provisioning ended; see provision_script.py."""
ENVIRONMENT = "/run/gibil/env"
LOAD_ENVIRONMENT = f"if [ -r {ENVIRONMENT} ]; then . {ENVIRONMENT}; fi"
GIVEN = "gibil_given_"
"""What a value of the person's `--env` is called on its way: its own name could change how our scripts run (PATH, IFS)."""


def enter(folder: str | None) -> str:
    """POSIX sh that goes to a folder, and ends where there is none; None: to the code, or where none is to /root. One line.

    What is not absolute is meant from there.
    """
    if folder is None:
        return f"{TO_PROJECT}; "
    first = "" if folder.startswith("/") else f"{TO_PROJECT}; "
    return f"{first}cd {shlex.quote(from_code(folder))} || exit 1; "


def from_code(path: str) -> str:
    """A path as people write it: `~` is /root, and nothing is an option or a variable's (CDPATH)."""
    if path == "~" or path.startswith("~/"):
        return f"/root{path[1:]}"
    return path if path.startswith("/") else f"./{path}"


def bare_script(names: tuple[str, ...] = (), who: Identity | None = None) -> str:
    """POSIX sh for a machine without code: the environment of those names is kept, and there is nothing to wait for."""
    return f"mkdir -p /root/.gibil\n{identity_line(who)}{keep_script(names)}: >{STATE} && : >{READY} && : >{TASKS_DONE}"


def identity_line(who: Identity | None) -> str:
    """POSIX sh that gives root's git that identity where it has none, so that `git commit` works. One line, no process."""
    if who is None:
        return ""
    name, email = (value.replace("\\", "\\\\").replace('"', '\\"') for value in (who.name, who.email))
    text = f'[user]\n\tname = "{name}"\n\temail = "{email}"\n'
    return f"[ -e /root/.gitconfig ] || printf %s {shlex.quote(text)} >/root/.gitconfig || true\n"


def keep_script(names: tuple[str, ...]) -> str:
    """POSIX sh that keeps what came under those names (see GIVEN) for the commands that follow."""
    if not names:
        return ""
    keep = f'for n in {shlex.join(names)}; do v={GIVEN}$n; printf \'export %s=%q\\n\' "$n" "${{!v}}"; done >{ENVIRONMENT}'
    return f"mkdir -p /run/gibil && (umask 077; bash -c {shlex.quote(keep)}) || exit 1\n"


def take_given(names: Iterable[str]) -> str:
    """POSIX sh: what came under those names (see GIVEN) is called by its own name now. One line."""
    return "".join(f'export {name}="${GIVEN}{name}"; unset {GIVEN}{name}; ' for name in names)


def as_given(env: Mapping[str, str]) -> dict[str, str]:
    return {f"{GIVEN}{name}": value for name, value in env.items()}
