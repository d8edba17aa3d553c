"""The environment of a task on a machine, the files through which a task passes results, and the script of the task "set up".

Values that users wrote (titles, branches, arguments) reach a script only as environment variables. The names are those of
GitHub Actions if there is one (https://docs.github.com/en/actions/reference/workflows-and-actions/variables), so that tools
find them. GITHUB_ACTIONS stays unset: with it, tools print `::error::` lines, which gibil doesn't read.

The task "set up", which installs the packages and runtimes of a `.gibil.yml`, installs only missing packages, so an image that
has them needs no network. A runtime comes with the image or from the machine's tool `gibil-runtime`; otherwise the task fails
with a message that names the available versions. A project that uses pnpm gets it with its Node.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gibil_bot.errors import GibilError
from gibil_bot.limits import ENVIRONMENT_VALUE_BYTES
from gibil_bot.model import Run, TaskPlan
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.templates import text

FILES_FOLDER = "/root/.gibil/files"
STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_ENV_ENTRIES = 1000
MAX_FOLDERS = 100
"""The maximum number of directories in the GITHUB_PATH of one task."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_PREFIXES = ("GITHUB_", "GIBIL_", "RUNNER_")


class InvalidTaskFile(GibilError, ValueError):
    """A task wrote an invalid GITHUB_ENV or GITHUB_PATH. A failure of the task, not an internal error."""

    code = "TASK_FILE_INVALID"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFiles:
    """Paths on the machine that one task writes to, separate from those of other tasks."""

    folder: str
    temp: str
    """Shared by all tasks of the run."""

    @property
    def env(self) -> str:
        return f"{self.folder}/env"

    @property
    def output(self) -> str:
        return f"{self.folder}/output"

    @property
    def path(self) -> str:
        return f"{self.folder}/path"

    @property
    def summary(self) -> str:
        return f"{self.folder}/summary"

    @property
    def neutral(self) -> str:
        """A task that has nothing to do writes the reason to this file and exits with 0; then it counts as skipped."""
        return f"{self.folder}/neutral"


def working_folder(task: TaskPlan) -> str:
    """Return the folder of the machine in which a task works."""
    return f"{WORKSPACE}/{task.working_directory}" if task.working_directory else WORKSPACE


def task_files(index: int, folder: str = FILES_FOLDER) -> TaskFiles:
    """Return the files of the task with that index."""
    return TaskFiles(folder=f"{folder}/{index}", temp=folder)


def prepare_script(tasks: int, folder: str = FILES_FOLDER) -> str:
    """Return POSIX sh that creates the files of that many tasks, empty unless they exist."""
    all_files = [task_files(index, folder) for index in range(tasks)]
    lines = ["set -eu", "umask 077", f"mkdir -p {' '.join(files.folder for files in all_files)}"]
    for files in all_files:
        lines.append(
            f": >>{files.env} >>{files.output} >>{files.path} >>{files.summary} >>{files.neutral}"
        )  # a builtin, no process
    return "\n".join(lines) + "\n"


IDENTITY = """[ -e ~/.gitconfig ] || printf '[user]\\n\\tname = gibil\\n\\temail = gibil@localhost\\n' >~/.gitconfig || true
"""
"""POSIX sh that configures an author for git, because tasks may commit, unless there is one. It isn't a person's identity."""


def terminal_type(*, tty: bool) -> str:
    """Return a task's TERM. Without one, `tput` fails; `dumb` tells programs that they have no terminal."""
    return "xterm-256color" if tty else "dumb"


def reserved_name(name: str) -> bool:
    """Return whether only gibil may set a variable of that name."""
    return name.upper().startswith(_RESERVED_PREFIXES)


def input_variable(name: str) -> str:
    """Return the environment variable of an input: `dry-run` is GIBIL_INPUT_DRY_RUN."""
    return "GIBIL_INPUT_" + name.upper().replace("-", "_")


def task_environment(
    run: Run,
    task: TaskPlan,
    secrets: Mapping[str, str],
    files: TaskFiles,
    extra: Mapping[str, str],
    *,
    paths: Sequence[str] = (),
    workspace: str = WORKSPACE,
) -> dict[str, str]:
    """Return a task's environment.

    Later sources have precedence: `CI` and `TERM`; the workflow's `env`; what earlier tasks wrote to GITHUB_ENV (`extra`);
    the task's `env`; secrets; gibil's own variables. `paths` is what earlier tasks wrote to GITHUB_PATH, in the order of PATH,
    and precedes PATH. NULs, which an environment can't contain, are removed from values.
    """
    merged = {"CI": "true", "TERM": terminal_type(tty=task.tty)}
    for values in (run.plan.env, extra, task.env):
        merged |= {name: value for name, value in values.items() if not reserved_name(name)}
    merged |= {name: secrets[name] for name in run.plan.secrets if name in secrets}
    merged |= _run_variables(run, workspace) | {
        "GITHUB_ENV": files.env,
        "GITHUB_OUTPUT": files.output,
        "GITHUB_PATH": files.path,
        "GITHUB_STEP_SUMMARY": files.summary,
        "RUNNER_OS": "Linux",
        "RUNNER_TEMP": files.temp,
        "GIBIL_NEUTRAL": files.neutral,
    }
    if paths:
        merged["PATH"] = ":".join([*paths, merged.get("PATH") or STANDARD_PATH])
    return {name: value.replace("\0", "") for name, value in merged.items()}


def _run_variables(run: Run, workspace: str) -> dict[str, str]:
    source, plan = run.source, run.plan
    pull_request = source.pull_request
    github = {
        "GITHUB_ACTOR": source.actor,
        "GITHUB_BASE_REF": pull_request.base_ref,
        "GITHUB_EVENT_NAME": plan.github.get("event_name", ""),
        "GITHUB_HEAD_REF": pull_request.head_ref,
        "GITHUB_REF": f"refs/pull/{pull_request.number}/head",
        "GITHUB_REF_NAME": f"{pull_request.number}/head",
        "GITHUB_REPOSITORY": source.repository.full_name,
        "GITHUB_REPOSITORY_OWNER": source.repository.owner,
        "GITHUB_RUN_ID": run.id,
        "GITHUB_SHA": source.sha,
        "GITHUB_WORKFLOW": plan.title,
        "GITHUB_WORKSPACE": workspace,
    }
    gibil = {
        "GIBIL_ACTOR": source.actor,
        "GIBIL_PR_AUTHOR": pull_request.author.login,
        "GIBIL_PR_BASE_REF": pull_request.base_ref,
        "GIBIL_PR_BASE_SHA": pull_request.base_sha,
        "GIBIL_PR_DRAFT": "true" if pull_request.is_draft else "false",
        "GIBIL_PR_HEAD_REF": pull_request.head_ref,
        "GIBIL_PR_HEAD_REPOSITORY": pull_request.head_repository or "",
        "GIBIL_PR_HEAD_SHA": pull_request.head_sha,
        "GIBIL_PR_NUMBER": str(pull_request.number),
        "GIBIL_PR_TITLE": pull_request.title,
        "GIBIL_RUN_ID": run.id,
        "GIBIL_TRUST": source.trust.value,
        "GIBIL_WORKFLOW": plan.workflow,
    }
    return github | gibil | {input_variable(name): value for name, value in plan.inputs.items()}


def parse_env_file(data: bytes) -> dict[str, str]:
    """Parse a task's GITHUB_ENV: `NAME=value` lines, and `NAME<<WORD` … `WORD` for several lines.

    Rejects gibil's own names (GITHUB_, GIBIL_, RUNNER_) and NODE_OPTIONS, as GitHub Actions does
    (https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands#setting-an-environment-variable).
    Raises InvalidTaskFile with the line number.
    """
    lines = _lines("GITHUB_ENV", data)
    found: dict[str, str] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        position = number + 1
        number += 1
        if not line:
            continue
        name, sign, value = _split_entry(line)
        if sign == "<<":
            if not value:
                raise InvalidTaskFile(f"GITHUB_ENV, line {position}: << must be followed by the word that ends the value")
            try:
                end = lines.index(value, number)
            except ValueError:
                raise InvalidTaskFile(f"GITHUB_ENV, line {position}: the line that ends the value is missing") from None
            value, number = "\n".join(lines[number:end]), end + 1
        elif not sign:
            raise InvalidTaskFile(f"GITHUB_ENV, line {position}: expected NAME=value or NAME<<WORD")
        _check_entry(name, value, position)
        found[name] = value
        if len(found) > MAX_ENV_ENTRIES:
            raise InvalidTaskFile(f"GITHUB_ENV, line {position}: more than {MAX_ENV_ENTRIES} names")
    return found


def parse_path_file(data: bytes) -> tuple[str, ...]:
    """Parse a task's GITHUB_PATH, one absolute directory per line. Raises InvalidTaskFile with the line number."""
    found = []
    for position, line in enumerate(_lines("GITHUB_PATH", data), start=1):
        folder = line.strip()
        if not folder:
            continue
        if not folder.startswith("/") or ":" in folder or len(folder) > 4096:
            raise InvalidTaskFile(f"GITHUB_PATH, line {position}: expected one absolute directory")
        found.append(folder)
    if len(found) > MAX_FOLDERS:
        raise InvalidTaskFile(f"GITHUB_PATH: more than {MAX_FOLDERS} directories")
    return tuple(found)


def _lines(what: str, data: bytes) -> list[str]:
    if b"\0" in data:
        raise InvalidTaskFile(f"{what}, line {data[: data.index(0)].count(10) + 1}: contains a NUL byte")
    text = data.decode("utf-8", "replace").replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n") if text else []


def _split_entry(line: str) -> tuple[str, str, str]:
    """Split a line into its name, `=` or `<<` (whichever comes first) or nothing, and the rest."""
    equal, heredoc = line.find("="), line.find("<<")
    if heredoc >= 0 and (equal < 0 or heredoc < equal):
        return line[:heredoc], "<<", line[heredoc + 2 :]
    name, sign, value = line.partition("=")
    return name, sign, value


def _check_entry(name: str, value: str, position: int) -> None:
    # An invalid name may be a part of a secret that was written without NAME<<WORD, so the message doesn't repeat it.
    if not _NAME.fullmatch(name) or len(name) > 200:
        raise InvalidTaskFile(f"GITHUB_ENV, line {position}: the line must begin with a name of letters, digits and _")
    shown = repr(name)
    if reserved_name(name) or name.upper() == "NODE_OPTIONS":
        raise InvalidTaskFile(f"GITHUB_ENV, line {position}: a task can't set {shown}")
    if len(value.encode()) > ENVIRONMENT_VALUE_BYTES:
        raise InvalidTaskFile(
            f"GITHUB_ENV, line {position}: the value of {shown} is larger than {ENVIRONMENT_VALUE_BYTES // 1024} KiB"
        )


_COMMANDS = {
    "python": ("python3", "python"),
    "node": ("node", "nodejs"),
    "go": ("go",),
    "rust": ("rustc",),
    "ruby": ("ruby",),
    "java": ("java",),
    "php": ("php",),
}
RUNTIMES = tuple(_COMMANDS)
"""The names under `runtime`."""


def set_up_script(runtime: Mapping[str, str], packages: Sequence[str]) -> str | None:
    """Return POSIX sh that sets up these checked runtimes and packages, or None when there is nothing to set up."""
    if not runtime and not packages:
        return None
    parts = [text("setup_begin")]
    if runtime:
        parts.append(text("setup_runtimes"))
    for name, version in runtime.items():
        # The plain name first; then `python3.12`, which is what distributions call a second Python.
        commands = (*_COMMANDS[name], f"{name}{version}")
        parts.append(f"want {shlex.join((name, version, *commands))}\n")
    if "node" in runtime:
        parts.append(text("setup_pnpm"))
    if packages:
        parts += [f"\npackages={shlex.quote(' '.join(packages))}\n", text("setup_packages")]
    return "".join(parts)
