"""The two languages, workflows and `.gibil.yml`: their tables, and bytes to checked values by them.

The keys and their meanings are GitHub Actions' wherever Actions has them. `language.py` prints the same tables as JSON
Schema, so what is not in a table exists nowhere.
"""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Collection
from typing import Any

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.planning import expressions, patterns
from gibil_bot.planning.expressions import InvalidExpression
from gibil_bot.planning.fields import Choice, Duration, Field, Flag, ListOf, Number, Record, Shapes, Size, Table, Text
from gibil_bot.planning.inputs import value_problem
from gibil_bot.planning.script import input_variable, reserved_name
from gibil_bot.planning.workflow import REPOSITORY_FILE, Concurrency, Input, MachineWish, RepositoryFile, Task, Workflow
from gibil_bot.planning.yamldoc import Node, read_yaml

PULL_REQUEST_ACTIONS = ("opened", "synchronize", "reopened")
RESERVED_COMMANDS = ("help", "cancel", "retest", "approve")
SIZES = ("small", "medium", "large")

ONE_LINE = r"[^\x00-\x1f\x7f]+"


def _name_problem(name: str) -> str | None:
    return f"{name!r} is reserved: GITHUB_, GIBIL_ and RUNNER_ names are gibil's own" if reserved_name(name) else None


def _command_problem(word: str) -> str | None:
    return f"/gibil {word} is gibil's own; choose another word" if word in RESERVED_COMMANDS else None


def _folder_problem(path: str) -> str | None:
    if path.startswith(("/", "~")) or posixpath.normpath(path).split("/")[0] == "..":
        return f"{path!r} leaves the checkout; write a folder inside it"
    return None


def _shell_problem(shell: str) -> str | None:
    if shell in ("bash", "sh", "python"):
        return None
    try:
        words = shlex.split(shell)
    except ValueError:
        words = []
    if not words or "{0}" not in shell:
        return f"{shell!r} is neither bash, sh, python nor a command with {{0}} where the script's file belongs"
    return None


def _pattern_problem(pattern: str) -> str | None:
    try:
        patterns.compile_pattern(pattern)
    except patterns.InvalidPattern as error:
        return f"this pattern cannot be used: {error}"
    return None


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
        Field(name="size", kind=Choice(words=SIZES), description="How large a machine."),
        Field(name="image", kind=_IMAGE_NAME, description="The image it starts from, by the provider's name."),
        Field(name="server-type", kind=_IMAGE_NAME, description="The provider's own name of a machine type; beats size."),
        Field(name="location", kind=_IMAGE_NAME, description="Where it stands, by the provider's name."),
        Field(
            name="ttl",
            kind=Duration(),
            description="When it is burned whatever happens: 90s, 30m, 2h. A bare number is minutes.",
        ),
        Field(name="memory", kind=Size(lowest_mb=64), description="Memory: 512m, 2g. A bare number is megabytes."),
        Field(name="disk", kind=Size(lowest_mb=64), description="Disk: 512m, 20g. A bare number is megabytes."),
        Field(name="pids", kind=Number(lowest=16, highest=4194304), description="How many processes at one time."),
    ),
)

_TASK_FIELDS = (
    Field(name="name", kind=_TITLE, description="What reports call it. Default: the first line of run."),
    Field(name="run", kind=Text(what="a script", longest=65536), description="The script, run in the checkout."),
    Field(
        name="if",
        kind=_CONDITION,
        description="When it runs: an expression over success(), failure(), always(), cancelled(), inputs, github. "
        "Default: success().",
    ),
    Field(name="env", kind=_ENV, description="Environment of this task; beats the workflow's."),
    Field(
        name="working-directory",
        kind=Text(what="a folder inside the checkout", pattern=ONE_LINE, longest=500, check=_folder_problem),
        description="A folder of the checkout. Default: the checkout itself.",
    ),
    Field(name="timeout-minutes", kind=_MINUTES, description="After this it is stopped, and failed."),
    Field(name="continue-on-error", kind=Flag(), description="Its failure does not fail the run."),
    Field(
        name="shell",
        kind=Text(what="a shell", pattern=ONE_LINE, longest=200, check=_shell_problem),
        description="bash (default), sh, python, or a command with {0} where the script's file belongs.",
    ),
)
_TASK_HINTS = (
    Field(name="with", description="Arguments of an action.", gone="actions are not run here; write the commands under run"),
)

TASK = Record(
    what="a task",
    fields=(
        *_TASK_FIELDS,
        Field(
            name="uses",
            kind=Choice(words=(REPOSITORY_FILE,)),
            description="`.gibil.yml`: the tasks of the repository's own file stand in this task's place, where it has some; "
            "otherwise run is run.",
        ),
        *_TASK_HINTS,
    ),
)
REPOSITORY_TASK = Record(
    what="a task",
    fields=(
        *_TASK_FIELDS,
        Field(name="uses", description="Other tasks.", gone="only a workflow can use another file"),
        *_TASK_HINTS,
    ),
)

INPUT = Record(
    what="an input",
    null_too=True,
    fields=(
        Field(name="description", kind=Text(what="text", longest=500, any_scalar=True), description="What people should know."),
        Field(
            name="default",
            kind=Text(what="a value", shortest=0, longest=patterns.MAX_VALUE, any_scalar=True),
            description="The value when none is given.",
        ),
        Field(name="required", kind=Flag(), description="Without it and without a default the command is refused."),
        Field(name="type", kind=Choice(words=("string", "boolean", "number", "choice")), description="Default: string."),
        Field(
            name="options",
            kind=ListOf(item=Text(what="an option", pattern=ONE_LINE, longest=100, any_scalar=True)),
            description="The values of type choice.",
        ),
        Field(
            name="pattern",
            kind=Text(what="a pattern", longest=patterns.MAX_PATTERN, check=_pattern_problem),
            description="A regular expression that the whole value has to match. No backreferences, no look-around.",
        ),
    ),
)
_ACTIONS = ListOf(item=Choice(words=PULL_REQUEST_ACTIONS), one_too=True, most=3)
ON = Shapes(
    what="command: WORD or pull_request",
    kinds={
        "scalar": Choice(words=("pull_request",)),
        "list": ListOf(item=Choice(words=("pull_request",)), most=1),
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
                                fields=(Field(name="types", kind=_ACTIONS, description="Which actions start it."),),
                            ),
                        },
                    ),
                    description="Runs when a pull request is opened, pushed to (synchronize) or reopened.",
                ),
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
                Field(name="cancel-in-progress", kind=Flag(), description="A new run stops the one before. Default: false."),
            ),
        ),
    },
)

WORKFLOW = Record(
    what="a workflow",
    fields=(
        Field(name="name", kind=_TITLE, description="What people and check runs call it. Default: the file's name."),
        Field(name="description", kind=Text(what="text", longest=1000), description="For `/gibil help`."),
        Field(name="on", kind=ON, required=True, description="When it runs: a command, and pull requests' actions."),
        Field(
            name="inputs",
            kind=Table(
                key=Text(what="a name of letters, digits, _ and -", pattern="[A-Za-z_][A-Za-z0-9_-]*", longest=100),
                value=INPUT,
                most=25,
            ),
            description="The command's arguments, as NAME=value. A script finds them as GIBIL_INPUT_NAME.",
        ),
        Field(name="env", kind=_ENV, description="Environment of every task."),
        Field(
            name="secrets",
            kind=ListOf(item=_ENV_NAME, fewest=0),
            description="Names of secrets that the operator holds; trusted runs find them in their environment.",
        ),
        Field(name="tasks", kind=ListOf(item=TASK), required=True, description="The scripts, in order."),
        Field(name="timeout-minutes", kind=_MINUTES, description="For all tasks together. Default: machine.ttl, or 60."),
        Field(name="concurrency", kind=CONCURRENCY, description="Runs that must not overlap."),
        Field(name="machine", kind=MACHINE, description="What it runs on."),
        Field(
            name="comment",
            kind=Choice(words=("always", "on-failure", "never")),
            description="Whether a comment tells the result.",
        ),
        Field(
            name="commit", description="Commits that a workflow made.", gone="pushing commits is not supported yet; remove it"
        ),
        Field(name="jobs", description="GitHub Actions' jobs.", gone="a workflow is one job here; write its steps under tasks"),
        Field(name="steps", description="GitHub Actions' steps.", gone="steps are called tasks here"),
        Field(name="runs-on", description="GitHub Actions' runner.", gone="say what it runs on under machine"),
    ),
)

_VERSION = Text(what="a version such as 3.12", pattern=r"[0-9]{1,4}(\.[0-9]{1,4}){0,2}", any_scalar=True, longest=20)
REPOSITORY = Record(
    what=REPOSITORY_FILE,
    fields=(
        Field(
            name="runtime",
            kind=Shapes(
                what="runtimes with their versions, or none",
                kinds={
                    "scalar": Choice(words=("none",)),
                    "mapping": Record(
                        what="runtime",
                        fields=tuple(
                            Field(name=name, kind=_VERSION, description=f"The version of {name} that has to be there.")
                            for name in ("python", "node", "go")
                        ),
                    ),
                },
            ),
            description="What the image has to bring; a run fails with one sentence where it does not.",
        ),
        Field(
            name="packages",
            kind=ListOf(
                item=Text(what="a package's name", pattern=r"[A-Za-z0-9][A-Za-z0-9+._:@-]*", longest=200), fewest=0, most=200
            ),
            description="Packages of the image's package manager, installed where they are missing.",
        ),
        Field(
            name="services",
            description="Databases and the like.",
            gone="services are not available yet; start what you need in a task",
        ),
        Field(name="env", kind=_ENV, description="Environment of every task."),
        Field(name="tasks", kind=ListOf(item=REPOSITORY_TASK), description="How the project is tested, in order."),
        Field(name="machine", kind=MACHINE, description="What it runs on."),
    ),
)


# --- bytes to values ---------------------------------------------------------------------------------------------


def parse_workflow(path: str, data: bytes) -> Workflow:
    """The workflow of a file. `path` is for messages and gives its name. Raises InvalidWorkflow."""
    root = read_yaml(path, data)
    values: dict[str, Any] = WORKFLOW.read(root)
    name = workflow_name(path)
    command, actions = _triggers(values["on"])
    if command is None and not actions:
        raise root.at("on").refuse("on: needs a command or a pull_request, or nothing ever starts this workflow")
    inputs = tuple(_input(known, fields, root.at("inputs", known)) for known, fields in values.get("inputs", {}).items())
    names = [known.name for known in inputs]
    _check_inputs(inputs, root.at("inputs"), needs_defaults=bool(actions))
    tasks = tuple(_task(fields, root.at("tasks", index), names) for index, fields in enumerate(values["tasks"]))
    using = [index for index, task in enumerate(tasks) if task.uses]
    if len(using) > 1:
        raise root.at("tasks", using[1], "uses").refuse(
            f"one task of a workflow can use {REPOSITORY_FILE}, and one does already"
        )
    secrets = tuple(dict.fromkeys(values.get("secrets", ())))
    for places in (root, *root.at("tasks").items):
        _check_no_secret(places, secrets)
    return Workflow(
        name=name,
        path=path,
        title=values.get("name", name),
        description=values.get("description", ""),
        command=command,
        pull_request=actions,
        inputs=inputs,
        env=values.get("env", {}),
        secrets=secrets,
        tasks=tasks,
        timeout_s=_seconds(values.get("timeout-minutes")),
        concurrency=_concurrency(values.get("concurrency"), root.at("concurrency"), names),
        machine=_machine(values.get("machine", {})),
        comment=values.get("comment", "always"),
    )


def parse_repository_file(path: str, data: bytes) -> RepositoryFile:
    """What a `.gibil.yml` says. Raises InvalidWorkflow."""
    root = read_yaml(path, data)
    values: dict[str, Any] = REPOSITORY.read(root)
    runtime = values.get("runtime", {})
    return RepositoryFile(
        path=path,
        runtime={} if runtime == "none" else runtime,
        packages=tuple(values.get("packages", ())),
        env=values.get("env", {}),
        tasks=tuple(_task(fields, root.at("tasks", index), None) for index, fields in enumerate(values.get("tasks", ()))),
        machine=_machine(values.get("machine", {})),
    )


def is_repository_file(path: str) -> bool:
    """Whether a path is a `.gibil.yml`, and not a workflow."""
    return posixpath.basename(path.partition("@")[0]) in (REPOSITORY_FILE, ".gibil.yaml")


def workflow_name(path: str) -> str:
    """The name of a workflow: its file's, without `.yml` and without the `@ref` that may follow."""
    name = posixpath.basename(path.partition("@")[0])
    return name.removesuffix(".yaml").removesuffix(".yml")


def _triggers(on: Any) -> tuple[str | None, tuple[str, ...]]:
    if not isinstance(on, dict):  # `on: pull_request` and `on: [pull_request]`
        return None, PULL_REQUEST_ACTIONS
    actions = on.get("pull_request", ())
    if isinstance(actions, dict):
        actions = actions.get("types", PULL_REQUEST_ACTIONS)
    return on.get("command"), tuple(dict.fromkeys(actions))


def _input(name: str, values: dict[str, Any], node: Node) -> Input:
    declared = Input(
        name=name,
        description=values.get("description", ""),
        default=values.get("default"),
        required=values.get("required", False),
        type=values.get("type", "string"),
        options=tuple(values.get("options", ())),
        pattern=values.get("pattern"),
    )
    if declared.type == "choice" and not declared.options:
        raise node.refuse(f"the input {name!r} is a choice and needs options")
    if declared.options and declared.type != "choice":
        raise node.at("options").refuse(f"options belong to type: choice, and {name!r} is a {declared.type}")
    if declared.pattern is not None and declared.type != "string":
        raise node.at("pattern").refuse(f"a pattern belongs to type: string, and {name!r} is a {declared.type}")
    problem = value_problem(declared, declared.default) if declared.default is not None else None
    if problem:
        raise node.at("default").refuse(f"the default of {name!r} {problem}")
    return declared


def _check_inputs(inputs: tuple[Input, ...], node: Node, *, needs_defaults: bool) -> None:
    variables: dict[str, str] = {}
    for known in inputs:
        variable = input_variable(known.name)
        if variable in variables:
            raise node.key(known.name).refuse(f"{known.name!r} and {variables[variable]!r} would both be {variable}")
        variables[variable] = known.name
        if needs_defaults and known.required and known.default is None:
            raise node.key(known.name).refuse(
                f"nobody gives {known.name!r} when a pull request starts this; it needs a default"
            )


def _task(values: dict[str, Any], node: Node, inputs: Collection[str] | None) -> Task:
    run, uses = values.get("run"), values.get("uses")
    if run is None and uses is None:
        raise node.refuse("a task needs the key 'run'")
    if run is not None and not run.strip():
        raise node.at("run").refuse("a script cannot be empty")
    condition = values.get("if", "success()")
    try:
        expressions.check(condition, inputs=inputs)
    except InvalidExpression as error:
        raise _within(node.at("if"), error) from None
    return Task(
        name=values.get("name") or _first_line(run or f"uses {uses}"),
        run=run,
        condition=condition,
        env=values.get("env", {}),
        working_directory=_folder(values.get("working-directory")),
        timeout_s=_seconds(values.get("timeout-minutes")),
        continue_on_error=values.get("continue-on-error", False),
        shell=values.get("shell", "bash"),
        uses=uses,
        line=node.line,
        column=node.column,
    )


def _concurrency(value: Any, node: Node, inputs: Collection[str]) -> Concurrency | None:
    if value is None:
        return None
    group, cancel = (value, False) if isinstance(value, str) else (value["group"], value.get("cancel-in-progress", False))
    try:
        expressions.check_interpolation(group, inputs=inputs)
    except InvalidExpression as error:
        raise _within(node.at("group"), error) from None
    return Concurrency(group=group, cancel_in_progress=cancel)


def _machine(values: dict[str, Any]) -> MachineWish:
    return MachineWish(
        size=values.get("size"),
        image=values.get("image"),
        server_type=values.get("server-type"),
        location=values.get("location"),
        ttl_s=values.get("ttl"),
        memory_mb=values.get("memory"),
        disk_mb=values.get("disk"),
        pids=values.get("pids"),
    )


def _check_no_secret(node: Node, secrets: Collection[str]) -> None:
    for key, _ in node.at("env").entries if any(name.text == "env" for name, _ in node.entries) else ():
        if key.text in secrets:
            raise key.refuse(f"{key.text!r} is a secret of this workflow and cannot be in env too")


def _within(node: Node, error: InvalidExpression) -> InvalidWorkflow:
    """The error at its own column, where the text stands on one line as it is written; else at the value's."""
    if node.style == "block" or "\n" in node.text:
        return node.refuse(error.problem)
    column = node.column + error.column - 1 + (node.style == "quoted")
    return InvalidWorkflow(node.path, node.line, column, error.problem)


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else minutes * 60.0


def _folder(path: str | None) -> str | None:
    normal = None if path is None else posixpath.normpath(path)
    return None if normal == "." else normal


def _first_line(script: str) -> str:
    line = next(line.strip() for line in script.splitlines() if line.strip())
    printable = "".join(character if character.isprintable() else " " for character in line)
    return printable if len(printable) <= 60 else printable[:57] + "..."
