"""Generator of the provisioning script: it prepares a new machine and runs the tasks of its `.gibil.yml`, detached. No I/O.

The script is one job on the machine, so its creator doesn't have to stay connected: clone, set up, marker, tasks, marker. Tasks
have the same semantics as in the bot's runs. The script's output is the log for people. `STATE` has the same for programs, one
line for each completed part: number, status, exit status, milliseconds and name, separated by tabs. Part 0 is the preparation.

Conditions (`if:`) that don't depend on what tasks write are evaluated here, once for each status that the earlier tasks could
have, and the script on the machine picks. Other conditions are translated to awk, because only the machine knows `env.NAME`: an
earlier task may have written it to GITHUB_ENV. Every machine has awk. The functions in scripts/provision.sh behave like
planning/expressions.py, except for upper and lower case beyond ASCII.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from gibil_bot.commits.identity import Identity
from gibil_bot.limits import ENVIRONMENT_VALUE_BYTES
from gibil_bot.machines.remote_layout import ENV_PREFIX, READY, STATE, TASKS_DONE, TASKS_FAILED, identity_line
from gibil_bot.machines.source import CodeSource
from gibil_bot.planning import expressions
from gibil_bot.planning.expressions import (
    STATUS_FUNCTIONS,
    STATUSES,
    Binary,
    Call,
    Expression,
    Literal,
    Name,
    Not,
    Value,
    parse,
)  # fmt: skip
from gibil_bot.planning.services import services_script
from gibil_bot.planning.workflow import Task
from gibil_bot.runs.returned_files import REASON_BYTES
from gibil_bot.scripts import clone
from gibil_bot.scripts.commands import ENVIRONMENT, SHELLS, kill_by_environment, with_terminal
from gibil_bot.scripts.outbox import outbox_line
from gibil_bot.scripts.task_script import MAX_ENV_ENTRIES, MAX_FOLDERS, set_up_script, terminal_type
from gibil_bot.scripts.templates import script, text

DEFAULT_TASK_S = 3600.0


_WITH_REMOTE = 'git -C /root/project remote add origin "$gibil_remote" 2>/dev/null || true\n'
_NO_GLOB = "set -f\n"  # split command words, without expanding globs


def provision_script(source: CodeSource, variables: tuple[str, ...] = (), author: Identity | None = None) -> str:
    """Return the job's script, for bash.

    `variables`: names of the user's `--env` variables in the job's environment. `author`: author of commits on the machine.
    """
    file = source.file
    file_env = file.env if file is not None else {}
    base = {"CI": "true", "TERM": terminal_type(tty=False), **file_env, **_github(source)}
    functions = script(
        "provision",
        STATE=STATE,
        ENVIRONMENT=ENVIRONMENT,
        TASKS_FAILED=TASKS_FAILED,
        KILL=kill_by_environment('"^GITHUB_ENV=$gibil_folder/env\\$"'),
        MAX_VALUE_BYTES=str(ENVIRONMENT_VALUE_BYTES),
        MAX_ENV_ENTRIES=str(MAX_ENV_ENTRIES),
        MAX_FOLDERS=str(MAX_FOLDERS),
        REASON_BYTES=str(REASON_BYTES),
    )
    parts = [functions, _NO_GLOB, "gibil_began=$(gibil_now)\n"]
    parts.append(f"gibil_base=({shlex.join(f'{name}={value}' for name, value in base.items())})\n")
    parts.append(f"gibil_file=({shlex.join(f'{name}={value}' for name, value in file_env.items())})\n")
    parts.append(identity_line(author))
    parts.append("gibil_given=(" + " ".join(f'{name}="${ENV_PREFIX}{name}"' for name in variables) + ")\n")
    parts += [f"unset {ENV_PREFIX}{name}\n" for name in variables]
    if source.clone_url is not None:
        clone_script = clone.branch_script(clone_url=source.clone_url, sha=source.sha, checkout=source.options)
        parts.append(f"echo '=== clone'\nsh -c {shlex.quote(clone_script)} </dev/null || gibil_give_up 'the clone' $?\n")
    if source.branch is not None:
        parts += [f"gibil_branch={shlex.quote(source.branch)}\n", text("provision_branch")]
    if source.remote_url is not None:
        parts += [f"gibil_remote={shlex.quote(source.remote_url)}\n", _WITH_REMOTE, outbox_line(clone.WORKSPACE, source.sha)]
    tasks: tuple[Task, ...] = ()
    if file is not None:
        tasks = file.tasks
        set_up = {"set up": set_up_script(file.runtime or {}, file.packages or ()), "services": services_script(file.services)}
        parts += [_set_up(name, part) for name, part in set_up.items() if part is not None]
    parts.append(script("provision_ready", READY=READY))
    parts += [_call(number, task) for number, task in enumerate(tasks, start=1)]
    parts.append(script("provision_end", TASKS_DONE=TASKS_DONE, TASKS_FAILED=TASKS_FAILED))
    return "".join(parts)


def _set_up(name: str, commands: str) -> str:
    return f"""echo '=== {name}'
gibil_files 0
(
    cd /root/project && export "${{gibil_base[@]}}" "${{gibil_given[@]}}"
    export RUNNER_TEMP=/root/.gibil/files GITHUB_PATH="$gibil_folder/path"
    exec sh -c {shlex.quote(commands)} </dev/null
) || gibil_give_up '{name}' $?
gibil_take || gibil_give_up '{name}' 1
"""


def _call(number: int, task: Task) -> str:
    assert task.run is not None, "only a workflow's task can use another file"
    arguments = [
        str(number),
        task.name,
        wanted_after("success", task.condition),
        wanted_after("failure", task.condition),
        "no" if task.continue_on_error else "yes",
        str(round((task.timeout_s or DEFAULT_TASK_S) * 1000)),
        task.working_directory or "",
        task.run,
        command_words(task.shell, tty=task.tty),
        *([f"TERM={terminal_type(tty=True)}"] if task.tty else []),
        *(f"{name}={value}" for name, value in task.env.items()),
    ]
    return f"gibil_task {shlex.join(arguments)}\n"


def command_words(shell: str, *, tty: bool = False) -> str:
    """Return the words of a shell's template, separated by spaces; spaces, tabs and percent signs in them are %20, %09, %25."""
    words = shlex.split(SHELLS.get(shell, shell))
    if tty:
        words = with_terminal(words)
    return " ".join(word.replace("%", "%25").replace(" ", "%20").replace("\t", "%09") for word in words)


def _github(source: CodeSource) -> Mapping[str, str]:
    """Return the GitHub Actions variables that are defined without an event."""
    slug = re.sub(r"^(?:[a-z+]+://[^/]+/|[^/@]+@[^:]+:)", "", source.repo).removesuffix(".git").strip("/")
    return {
        "GITHUB_REF_NAME": source.branch or "",
        "GITHUB_REPOSITORY": "/".join(slug.split("/")[-2:]),
        "GITHUB_SHA": source.sha,
        "GITHUB_WORKSPACE": clone.WORKSPACE,
    }


def wanted_after(status: str, condition: str) -> str:
    """Return whether a task with this condition runs after `success` or `failure`: yes, no, or an awk expression."""
    tree = parse(condition)
    if not _uses_environment(tree) or (status != "success" and not expressions.uses_status(tree)):
        return "yes" if expressions.evaluate(condition, status=status, inputs={}, github={}) else "no"
    return _awk(tree, status)


def _awk(tree: Expression, status: str) -> str:
    match tree:
        case Literal():
            return _value(tree.value)
        case Name():
            return f"env({_string(tree.name)})" if tree.context == "env" else _value(None)
        case Not():
            return f"not({_awk(tree.operand, status)})"
        case Call():
            if tree.function in STATUS_FUNCTIONS:
                return _value(tree.function == "always" or (tree.function in STATUSES and tree.function == status))
            return f"{tree.function}({', '.join(_awk(argument, status) for argument in tree.arguments)})"
        case Binary():
            left, right = _awk(tree.left, status), _awk(tree.right, status)
            if tree.operator in ("&&", "||"):
                return f"{'both' if tree.operator == '&&' else 'either'}({left}, {right})"
            return f"compare({_string(tree.operator)}, {left}, {right})"


def _value(value: Value) -> str:
    if value is None:
        return _string("z")
    if isinstance(value, bool):
        return _string(f"b{value:d}")
    return _string(f"s{value}" if isinstance(value, str) else f"n{value!r}")


def _string(text: str) -> str:
    """Quote any text as a string of awk."""
    plain = "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in text.encode())
    return f'"{plain}"'


def _uses_environment(tree: Expression) -> bool:
    return any(name.context == "env" for name in expressions.names(tree))
