"""Schemas of the two file kinds, workflows and `.gibil.yml`, as tables: every key, its type, its meaning.

Keys and meanings are those of GitHub Actions wherever it has them. `schema.py` parses files by these tables and
`json_schema.py` exports them as JSON Schema, so no other key exists.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Mapping

from gibil_bot.limits import MACHINE_SIZES, MOST_GLOB, REPOSITORY_FILE
from gibil_bot.planning import actions, expressions, patterns
from gibil_bot.planning.schema_types import (
    Choice,
    Duration,
    Field,
    Flag,
    ListOf,
    Money,
    Number,
    Record,
    Shapes,
    Size,
    Table,
    Text,
)
from gibil_bot.planning.workflow import PULL_REQUEST_ACTIONS
from gibil_bot.registries import MOST_ENTRIES, REGISTRIES, problem_with
from gibil_bot.scripts.task_script import RUNTIMES, reserved_name

RESERVED_COMMANDS = ("help", "cancel", "retest", "approve")

ONE_LINE = r"[^\x00-\x1f\x7f]+"


def _name_problem(name: str) -> str | None:
    return (
        f"{name!r} is reserved: names that start with GITHUB_, GIBIL_ or RUNNER_ are set by gibil"
        if reserved_name(name)
        else None
    )


def _command_problem(word: str) -> str | None:
    return f"/gibil {word} is a built-in command; choose another word" if word in RESERVED_COMMANDS else None


def _port_problem(ports: str) -> str | None:
    return None if all(int(port) <= 65535 for port in ports.split(":")) else f"{ports!r}: the highest port is 65535"


def _folder_problem(path: str) -> str | None:
    if path.startswith(("/", "~")) or posixpath.normpath(path).split("/")[0] == "..":
        return f"{path!r} is outside the checkout; write a folder inside it"
    return None


def _cache_path_problem(paths: str) -> str | None:
    for path in paths.splitlines():
        if ".." in path.strip().lstrip("!").split("/"):
            return f"{path.strip()!r} contains '..'; write the folder itself"
    return None if paths.strip() else "a path can't be empty"


def _shell_problem(shell: str) -> str | None:
    if shell in ("bash", "sh", "python"):
        return None
    try:
        words = shlex.split(shell)
    except ValueError:
        words = []
    if not words or "{0}" not in shell:
        return f"{shell!r} is not a shell: expected bash, sh, python, or a command with {{0}} for the script's file"
    return None


def _pattern_problem(pattern: str) -> str | None:
    try:
        patterns.compile_pattern(pattern)
    except patterns.InvalidPattern as error:
        return f"this pattern can't be used: {error}"
    return None


def _commit_paths_problem(paths: str) -> str | None:
    for path in paths.splitlines():
        pattern = path.strip().removeprefix("!")
        if pattern.startswith(("/", "~")) or ".." in pattern.split("/"):
            return f"{path.strip()!r} is outside the checkout; write a path relative to it"
        if path.strip() and not 1 <= len(pattern) <= MOST_GLOB:
            return f"{path.strip()[:40]!r} can't be used: a path has 1 to {MOST_GLOB} characters"
    return None if paths.strip() else "a path can't be empty"


def _allow_problem(entry: str) -> str | None:
    hint = actions.allow_hint(entry)
    problem = "" if hint else problem_with(entry)
    return hint or (f"{entry[:80]!r} {problem}" if problem else None)


_ENV_NAME = Text(what="a name of letters, digits and _", pattern="[A-Za-z_][A-Za-z0-9_]*", longest=200, check=_name_problem)
_ENV = Table(key=_ENV_NAME, value=Text(what="text", shortest=0, longest=32768, any_scalar=True))
_TITLE = Text(what="one line of text", pattern=ONE_LINE, longest=100, any_scalar=True)
_MINUTES = Number(lowest=0.05, highest=10080, whole=False)
_CONDITION = Text(what="a condition", longest=expressions.MAX_LENGTH, any_scalar=True)
_IMAGE_NAME = Text(what="a name", pattern=r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", longest=200, any_scalar=True)
_GROUP = Text(what="a group's name", pattern=ONE_LINE, longest=200, any_scalar=True)

MACHINE = Record(
    what="machine",
    fields=(
        Field(name="size", kind=Choice(words=MACHINE_SIZES), description="The size of the machine."),
        Field(name="image", kind=_IMAGE_NAME, description="The image of the machine, by the provider's name."),
        Field(name="server-type", kind=_IMAGE_NAME, description="The provider's name of a machine type; overrides size."),
        Field(name="location", kind=_IMAGE_NAME, description="The location of the machine, by the provider's name."),
        Field(
            name="ttl",
            kind=Duration(),
            description="Time to live, after which the machine is destroyed: 90s, 30m, 2h. A bare number is minutes.",
        ),
        Field(name="memory", kind=Size(lowest_mb=64), description="Memory: 512m, 2g. A bare number is megabytes."),
        Field(name="disk", kind=Size(lowest_mb=64), description="Disk: 512m, 20g. A bare number is megabytes."),
        Field(name="pids", kind=Number(lowest=16, highest=4194304), description="Maximum number of concurrent processes."),
    ),
)

_TASK_FIELDS = (
    Field(name="name", kind=_TITLE, description="The name in reports. Default: the first line of run."),
    Field(name="run", kind=Text(what="a script", longest=65536), description="The script, which runs in the checkout."),
    Field(
        name="if",
        kind=_CONDITION,
        description="When it runs: an expression over success(), failure(), always(), cancelled(), inputs, github. "
        "Default: success().",
    ),
    Field(name="env", kind=_ENV, description="Environment of this task; overrides the workflow's."),
    Field(
        name="working-directory",
        kind=Text(what="a folder inside the checkout", pattern=ONE_LINE, longest=500, check=_folder_problem),
        description="A folder of the checkout. Default: the checkout itself.",
    ),
    Field(name="timeout-minutes", kind=_MINUTES, description="After this time the task is stopped and fails."),
    Field(name="continue-on-error", kind=Flag(), description="A failure of this task doesn't fail the run."),
    Field(
        name="shell",
        kind=Text(what="a shell", pattern=ONE_LINE, longest=200, check=_shell_problem),
        description="bash (default), sh, python, or a command with {0} for the script's file.",
    ),
    Field(name="tty", kind=Flag(), description="Runs it with a terminal. Default: false."),
    Field(
        name="prepare",
        kind=Flag(),
        description="It installs what the other tasks need: if it fails, the report says that the preparation failed.",
    ),
)


def _rejected(messages: Mapping[str, str]) -> tuple[Field, ...]:
    return tuple(Field(name=name, description="", rejection=message) for name, message in messages.items())


_TASK_HINTS = _rejected(actions.TASK_KEYS)

PROMPT_LIMIT = 20_000
"""Characters of a prompt, as written and with the values of its expressions."""
HIGHEST_BUDGET_USD = 1000
_PROMPT = Text(what="a prompt", longest=PROMPT_LIMIT)
AGENT = Shapes(
    what="a prompt, or prompt: and options",
    kinds={
        "scalar": _PROMPT,
        "mapping": Record(
            what="agent",
            fields=(
                Field(
                    name="prompt",
                    kind=_PROMPT,
                    required=True,
                    description="What it should do. May contain ${{ inputs.NAME }} and ${{ github.NAME }}.",
                ),
                Field(
                    name="engine",
                    kind=Text(what="the name of an engine", pattern="[a-z][a-z0-9-]*", longest=40),
                    description="The program that works: claude, codex, gemini, opencode, command, or one of the operator's. "
                    "Default: the first for which the bot has a key.",
                ),
                Field(
                    name="model",
                    kind=Text(what="the name of a model", pattern=r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", longest=200),
                    description="The model. Default: the engine's.",
                ),
                Field(name="max-turns", kind=Number(lowest=1, highest=1000), description="How often it may act. Default: 40."),
                Field(
                    name="budget",
                    kind=Money(highest=HIGHEST_BUDGET_USD),
                    description="What its calls of the model may cost, in US dollars. The operator's limits apply too.",
                ),
                Field(
                    name="max-tokens",
                    kind=Number(lowest=1000, highest=1_000_000_000),
                    description="How many tokens its calls of the model may use, input and output together.",
                ),
                Field(
                    name="allow",
                    kind=ListOf(
                        item=Text(what="a host or a registry", pattern=ONE_LINE, longest=300, check=_allow_problem),
                        one_too=True,
                        fewest=0,
                        most=MOST_ENTRIES,
                    ),
                    description="What its machine may reach in addition to what the operator allows: hosts, *.DOMAIN, and "
                    f"registries by name: {', '.join(REGISTRIES)}. Default: nothing.",
                ),
                Field(
                    name="until",
                    kind=_TITLE,
                    description="The name of an earlier task. The agent works only if that task failed; the task runs again "
                    "after each round.",
                ),
                Field(
                    name="rounds",
                    kind=Number(lowest=1, highest=10),
                    description="With until: how often it works while that task fails. Default: 3.",
                ),
                Field(
                    name="attempts",
                    kind=Number(lowest=1, highest=8),
                    description="How many machines work on it side by side, within one budget. Default: 1.",
                ),
                Field(
                    name="choose",
                    kind=Text(what="a command", longest=4000),
                    description="With attempts: a command that an attempt has to pass. The one with the smallest diff is used.",
                ),
                Field(
                    name="command",
                    kind=Text(what="a command", longest=4000),
                    description="With engine: command: the program, which reads the prompt on its standard input.",
                ),
                Field(
                    name="output",
                    kind=Choice(words=("changes", "review", "answer")),
                    description="What is expected: changes (of files), review (comments on lines), answer (its last message). "
                    "Default: changes.",
                ),
                Field(
                    name="context",
                    kind=ListOf(item=Choice(words=("last-failure",)), one_too=True, fewest=0, most=5),
                    description="What it gets besides the pull request. last-failure: the output of its newest failed run.",
                ),
                *_rejected(actions.AGENT_KEYS),
            ),
        ),
    },
)

TASK = Record(
    what="a task",
    fields=(
        *_TASK_FIELDS,
        Field(
            name="uses",
            kind=Choice(words=(REPOSITORY_FILE,), hint=actions.uses_hint),
            description="`.gibil.yml`: the tasks of the repository's own file replace this task if it has any; "
            "otherwise detect or the script under run is used.",
        ),
        Field(
            name="detect",
            kind=Choice(words=("test", "lint", "format")),
            description="Instead of run: prepares the project and tests, lints or formats it as its files suggest.",
        ),
        Field(name="agent", kind=AGENT, description="Instead of run: an agent works. A prompt, or prompt: and options."),
        *_TASK_HINTS,
    ),
)
REPOSITORY_TASK = Record(
    what="a task",
    fields=(
        *_TASK_FIELDS,
        Field(name="uses", description="Other tasks.", rejection="only a workflow can use another file"),
        Field(
            name="detect",
            description="Detected tasks.",
            rejection=f"only a workflow's task can detect; without tasks, {REPOSITORY_FILE} leaves that to /gibil test",
        ),
        Field(
            name="agent",
            description="An agent.",
            rejection="only a workflow's task can be an agent's: these tasks also run where there is no agent",
        ),
        *_TASK_HINTS,
    ),
)

INPUT = Record(
    what="an input",
    null_too=True,
    fields=(
        Field(name="description", kind=Text(what="text", longest=500, any_scalar=True), description="For users."),
        Field(
            name="default",
            kind=Text(what="a value", shortest=0, longest=patterns.MAX_VALUE, any_scalar=True),
            description="The value if none is given.",
        ),
        Field(name="required", kind=Flag(), description="Whether the command is rejected if it has no value and no default."),
        Field(
            name="type",
            kind=Choice(words=("string", "boolean", "number", "choice", "text")),
            description="text: what follows the command, also on the next lines of the comment. Default: string.",
        ),
        Field(
            name="options",
            kind=ListOf(item=Text(what="an option", pattern=ONE_LINE, longest=100, any_scalar=True)),
            description="The values of type choice.",
        ),
        Field(
            name="pattern",
            kind=Text(what="a pattern", longest=patterns.MAX_PATTERN, check=_pattern_problem),
            description="A regular expression that the whole value must match. No backreferences, no look-around.",
        ),
    ),
)
_ACTIONS = ListOf(item=Choice(words=PULL_REQUEST_ACTIONS, hint=actions.activity_hint), one_too=True, most=20)
_EVENT = Choice(words=("pull_request",), hint=actions.event_hint)
ON = Shapes(
    what="command: WORD or pull_request",
    kinds={
        "scalar": _EVENT,
        "list": ListOf(item=_EVENT, most=20),
        "mapping": Record(
            what="on",
            fields=(
                Field(
                    name="command",
                    kind=Text(
                        what="a word of a-z, 0-9 and -",
                        pattern="[a-z][a-z0-9-]*",
                        longest=50,
                        check=_command_problem,
                    ),
                    description="The word of `/gibil WORD` in a comment.",
                ),
                Field(
                    name="pull_request",
                    kind=Shapes(
                        what="a list of actions, or types:",
                        kinds={
                            "scalar": _ACTIONS,
                            "list": _ACTIONS,
                            "mapping": Record(
                                what="pull_request",
                                fields=(
                                    Field(name="types", kind=_ACTIONS, description="Which actions start it."),
                                    *_rejected(actions.PULL_REQUEST_KEYS),
                                ),
                            ),
                        },
                    ),
                    description="Runs when a pull request is opened, pushed to (synchronize) or reopened.",
                ),
                Field(
                    name="own-push",
                    kind=Record(
                        what="own-push",
                        null_too=True,
                        fields=(
                            Field(
                                name="max-attempts",
                                kind=Number(lowest=1, highest=20),
                                description="How often, per pull request and hour. Default: 3.",
                            ),
                        ),
                    ),
                    description="Runs when a workflow's commit: has changed the pull request.",
                ),
                *_rejected(actions.EVENTS),
            ),
        ),
    },
)
CONCURRENCY = Shapes(
    what="a group's name, or group:",
    kinds={
        "scalar": _GROUP,
        "mapping": Record(
            what="concurrency",
            fields=(
                Field(name="group", kind=_GROUP, required=True, description="One run of a group at a time, per repository."),
                Field(name="cancel-in-progress", kind=Flag(), description="New runs cancel the previous one. Default: false."),
            ),
        ),
    },
)

_MESSAGE = Text(what="a message", longest=expressions.MAX_LENGTH)
COMMIT = Shapes(
    what="a message, or message:",
    kinds={
        "scalar": _MESSAGE,
        "mapping": Record(
            what="commit",
            fields=(
                Field(
                    name="message",
                    kind=_MESSAGE,
                    required=True,
                    description="The message of the commit with changes that no task committed. May contain ${{ }}.",
                ),
                Field(
                    name="paths",
                    kind=ListOf(item=Text(what="a path", longest=1000, check=_commit_paths_problem), one_too=True, most=50),
                    description="Files that may change. * matches in names, ** any folders, and ! in front leaves out. "
                    "Default: all.",
                ),
                Field(
                    name="when",
                    kind=Choice(words=("changed",), hint=actions.commit_when_hint),
                    description="changed: when the tasks succeeded and a file changed. Default.",
                ),
                Field(
                    name="to",
                    kind=Choice(words=("head", "branch", "patch")),
                    description="head: the pull request's branch. branch: another branch. patch: a file with the changes. "
                    "Default: head.",
                ),
                Field(
                    name="branch",
                    kind=Text(what="a branch's name", pattern=ONE_LINE, longest=200),
                    description="The branch for to: branch, which is created if it doesn't exist. May contain ${{ }}. "
                    "Default: gibil/WORKFLOW-NUMBER.",
                ),
                Field(
                    name="pull-request",
                    kind=Record(
                        what="pull-request",
                        fields=(
                            Field(
                                name="title",
                                kind=Text(what="one line of text", pattern=ONE_LINE, longest=250),
                                required=True,
                                description="Its title. May contain ${{ }}.",
                            ),
                            Field(name="draft", kind=Flag(), description="Whether it is a draft. Default: false."),
                            Field(
                                name="body",
                                kind=Text(what="text", longest=expressions.MAX_LENGTH),
                                description="Its description. May contain ${{ }}.",
                            ),
                        ),
                    ),
                    description="For to: branch: opens a pull request into the pull request's branch.",
                ),
                Field(
                    name="on-conflict",
                    kind=Choice(words=("rebase", "fail")),
                    description="If the branch moved meanwhile: rebase onto it, or only store a patch. Default: rebase.",
                ),
                Field(
                    name="strict",
                    kind=Flag(),
                    description="Changes outside paths reject the commits, instead of being dropped. Default: false.",
                ),
                *_rejected(actions.COMMIT_KEYS),
            ),
        ),
    },
)

_VERSION = Text(what="a version such as 3.12", pattern=r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}", any_scalar=True, longest=20)
SERVICE = Record(
    what="a service",
    fields=(
        Field(
            name="image",
            kind=Text(what="an image such as postgres:16", pattern=r"[a-z0-9][A-Za-z0-9._:/@-]*", longest=200),
            required=True,
            description="The container's image. On local machines postgres, redis, mariadb and mysql are the distribution's.",
        ),
        Field(name="env", kind=_ENV, description="Its environment, as documented by the image."),
        Field(
            name="ports",
            kind=ListOf(
                item=Text(
                    what="a port such as 5432 or 15432:5432",
                    pattern=r"[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?",
                    longest=11,
                    any_scalar=True,
                    check=_port_problem,
                ),
                most=10,
            ),
            description="PORT, or PORT_OF_THE_MACHINE:PORT_OF_THE_SERVICE. Default: the service's usual port.",
        ),
    ),
)
CHECKOUT = Record(
    what="checkout",
    fields=(
        Field(
            name="depth",
            kind=Number(lowest=0, highest=1_000_000),
            description="How many commits of the history; 0 is all of it. Default: 0, and 1 for submodules.",
        ),
        Field(
            name="submodules",
            kind=Choice(words=("false", "true", "recursive"), booleans_too=True),
            description="Whether submodules are checked out too, and with recursive their own as well. Default: as "
            "detected, or false.",
        ),
        Field(name="lfs", kind=Flag(), description="Whether the files of Git LFS are downloaded. Default: false."),
        Field(name="tags", kind=Flag(), description="Whether the tags that the commit can reach exist. Default: true."),
        *_rejected(actions.CHECKOUT_KEYS),
    ),
)
_CACHE_KEY = Text(what="a key", pattern=ONE_LINE, longest=500, any_scalar=True)
CACHE = Record(
    what="a cache",
    fields=(
        Field(
            name="path",
            kind=ListOf(item=Text(what="a path", longest=4000, check=_cache_path_problem), one_too=True, most=50),
            required=True,
            description="Files and folders, one on a line or a list; relative to the checkout, absolute or below ~. * matches "
            "in names, ** any folders, and ! in front leaves out.",
        ),
        Field(
            name="key",
            kind=_CACHE_KEY,
            required=True,
            description="Names the contents. It may contain ${{ hashFiles('package-lock.json') }}, ${{ runner.os }}, inputs.",
        ),
        Field(
            name="restore-keys",
            kind=ListOf(item=Text(what="a key", longest=4000, any_scalar=True), one_too=True, most=20),
            description="Beginnings of other keys that are used if the key doesn't exist, one on a line or a list.",
        ),
        *_rejected(actions.CACHE_KEYS),
    ),
)

SET_UP = (
    Field(
        name="runtime",
        kind=Shapes(
            what="runtimes with their versions, or none",
            kinds={
                "scalar": Choice(words=("none",)),
                "mapping": Record(
                    what="runtime",
                    fields=tuple(
                        Field(name=name, kind=_VERSION, description=f"The required version of {name}.") for name in RUNTIMES
                    ),
                ),
            },
        ),
        description="Required runtimes. If the image lacks one, it is installed, or the run fails with a message.",
    ),
    Field(
        name="packages",
        kind=ListOf(
            item=Text(what="a package's name", pattern=r"[A-Za-z0-9][A-Za-z0-9+._:@-]*", longest=200), fewest=0, most=200
        ),
        description="Packages of the image's package manager, installed if missing.",
    ),
    Field(
        name="services",
        kind=Table(key=Text(what="a name of a-z, 0-9 and -", pattern="[a-z][a-z0-9-]*", longest=40), value=SERVICE, most=10),
        description="Services such as databases, started on the machine's 127.0.0.1 before the tasks and deleted with it.",
    ),
    Field(name="checkout", kind=CHECKOUT, description="What of the repository is on the machine, as in actions/checkout."),
    Field(
        name="cache",
        kind=ListOf(item=CACHE, fewest=0, most=20),
        description="Files that later runs of the repository may read, as in actions/cache.",
    ),
)
"""The keys that mean the same in both files."""

WORKFLOW = Record(
    what="a workflow",
    fields=(
        Field(name="name", kind=_TITLE, description="The name in reports and check runs. Default: the file's name."),
        Field(name="description", kind=Text(what="text", longest=1000), description="For `/gibil help`."),
        Field(name="on", kind=ON, required=True, description="When it runs: a command, and pull requests' actions."),
        Field(
            name="inputs",
            kind=Table(
                key=Text(what="a name of letters, digits, _ and -", pattern="[A-Za-z_][A-Za-z0-9_-]*", longest=100),
                value=INPUT,
                most=25,
            ),
            description="The command's arguments, as NAME=value. Scripts get them as GIBIL_INPUT_NAME.",
        ),
        Field(name="env", kind=_ENV, description="Environment of every task."),
        Field(
            name="secrets",
            kind=ListOf(item=_ENV_NAME, fewest=0),
            description="Names of secrets that the operator has set; trusted runs have them in their environment.",
        ),
        Field(name="tasks", kind=ListOf(item=TASK), required=True, description="The scripts, in order."),
        Field(name="timeout-minutes", kind=_MINUTES, description="For all tasks together. Default: machine.ttl, or 60."),
        Field(name="concurrency", kind=CONCURRENCY, description="Runs that must not overlap."),
        *SET_UP,
        Field(name="machine", kind=MACHINE, description="The machine it runs on."),
        Field(name="commit", kind=COMMIT, description="Commits what the tasks changed: a message, or message: and options."),
        Field(
            name="comment",
            kind=Choice(words=("always", "on-failure", "never")),
            description="Whether a comment reports the result.",
        ),
        *_rejected(actions.WORKFLOW_KEYS),
    ),
)
REPOSITORY = Record(
    what=REPOSITORY_FILE,
    fields=(
        *SET_UP,
        Field(name="env", kind=_ENV, description="Environment of every task."),
        Field(name="tasks", kind=ListOf(item=REPOSITORY_TASK), description="The project's test scripts, in order."),
        Field(name="machine", kind=MACHINE, description="The machine it runs on."),
        *_rejected(actions.REPOSITORY_KEYS),
    ),
)
