"""Bytes to checked workflows and repository files: read by the tables, then what one key means for another.

Everything that is wrong is one InvalidWorkflow, with the line and column of what is wrong.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.limits import REPOSITORY_FILE
from gibil_bot.model import MachineResources
from gibil_bot.planning import expressions
from gibil_bot.planning.actions import misplaced_expressions
from gibil_bot.planning.expressions import InvalidExpression
from gibil_bot.planning.file_schema import REPOSITORY, WORKFLOW
from gibil_bot.planning.inputs import value_problem
from gibil_bot.planning.schema_types import Problems
from gibil_bot.planning.services import host_port, image_problem
from gibil_bot.planning.workflow import (
    PULL_REQUEST_ACTIONS,
    Concurrency,
    Input,
    RepositoryFile,
    Service,
    Task,
    Workflow,
)
from gibil_bot.planning.yaml_nodes import Node, read_yaml
from gibil_bot.scripts.task_script import input_variable


def parse_workflow(path: str, data: bytes) -> Workflow:
    """The workflow of a file. `path` is for messages and gives its name. Raises InvalidWorkflow with every problem."""
    root = read_yaml(path, data)
    problems = Problems()
    values: dict[str, Any] = problems.collect(lambda: WORKFLOW.read(root)) or {}
    name = workflow_name(path)
    command, actions = _triggers(values.get("on", {}))
    on = root.at("on")
    if on is not root and on.kind == "mapping" and not on.entries:
        problems.add(on.refuse("on: needs a command or a pull_request, otherwise nothing starts this workflow"))
    inputs = tuple(
        known
        for name_, fields in values.get("inputs", {}).items()
        if (known := problems.collect(partial(_input, name_, fields, root.at("inputs", name_)))) is not None
    )
    # An input that can't be read is declared all the same: what uses it isn't another problem.
    names = [key.text for key, _ in root.at("inputs").entries] if _has(root, "inputs") else []
    problems.collect(partial(_check_inputs, inputs, root.at("inputs"), needs_defaults=bool(actions)))
    tasks = _tasks(values.get("tasks", ()), root.at("tasks"), names, problems)
    using = [index for index, fields in enumerate(values.get("tasks", ())) if fields and fields.get("uses")]
    if len(using) > 1:
        problems.add(root.at("tasks", using[1], "uses").refuse(f"only one task of a workflow can use {REPOSITORY_FILE}"))
    secrets = tuple(dict.fromkeys(secret for secret in values.get("secrets", ()) if secret))
    for place in (root, *(root.at("tasks").items if _has(root, "tasks") else ())):
        for problem in _secrets_in_env(place, secrets):
            problems.add(problem)
    concurrency = problems.collect(lambda: _concurrency(values.get("concurrency"), root.at("concurrency"), names))
    for problem in misplaced_expressions(root):
        problems.add(problem)
    problems.raise_with()
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
        concurrency=concurrency,
        machine=_machine(values.get("machine", {})),
        comment=values.get("comment", "always"),
    )


def parse_repository_file(path: str, data: bytes) -> RepositoryFile:
    """What a `.gibil.yml` says. Raises InvalidWorkflow with every problem."""
    root = read_yaml(path, data)
    problems = Problems()
    values: dict[str, Any] = problems.collect(lambda: REPOSITORY.read(root)) or {}
    runtime = values.get("runtime", {})
    services = _services(values.get("services", {}), root.at("services"), problems)
    tasks = _tasks(values.get("tasks", ()), root.at("tasks"), None, problems)
    for problem in misplaced_expressions(root):
        problems.add(problem)
    problems.raise_with()
    return RepositoryFile(
        path=path,
        runtime={} if runtime == "none" else runtime,
        packages=tuple(values.get("packages", ())),
        services=services,
        env=values.get("env", {}),
        tasks=tasks,
        machine=_machine(values.get("machine", {})),
    )


def _tasks(
    values: Sequence[dict[str, Any] | None], node: Node, inputs: Collection[str] | None, problems: Problems
) -> tuple[Task, ...]:
    found = []
    for index, fields in enumerate(values):
        if fields is not None:
            task = problems.collect(partial(_task, fields, node.at(index), inputs))
            if task is not None:
                found.append(task)
    return tuple(found)


def _services(values: dict[str, dict[str, Any]], node: Node, problems: Problems) -> tuple[Service, ...]:
    services: list[Service] = []
    for name, fields in values.items():
        if "image" not in fields:
            continue  # a problem already
        place = node.key(name)
        pairs = [entry.split(":") for entry in fields.get("ports", ()) if entry]
        service = Service(
            name=name,
            image=fields["image"],
            env=fields.get("env", {}),
            ports=tuple((int(pair[0]), int(pair[-1])) for pair in pairs),
            line=place.line,
            column=place.column,
        )
        problem = image_problem(service)
        taken = next((other for other in services if host_port(other)[0] == host_port(service)[0]), None)
        if taken is not None:
            problem = (
                problem or f"{taken.name!r} has the port {host_port(service)[0]} already; write PORT:{host_port(service)[1]}"
            )
        if problem:
            problems.add(place.refuse(problem))
        else:
            services.append(service)
    return tuple(services)


def _has(root: Node, name: str) -> bool:
    return any(key.text == name for key, _ in root.entries)


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
    return on.get("command"), tuple(dict.fromkeys(action for action in actions if action))


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
    problems = Problems()
    if run is None and not (_has(node, "run") or _has(node, "uses")):
        problems.add(node.refuse("a task needs the key 'run'"))
    if run is not None and not run.strip():
        problems.add(node.at("run").refuse("a script cannot be empty"))
    condition = values.get("if", "success()")
    try:
        expressions.check(condition, inputs=inputs)
    except InvalidExpression as error:
        problems.add(_within(node.at("if"), error))
    problems.raise_with()
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
    group, cancel = (value, False) if isinstance(value, str) else (value.get("group"), value.get("cancel-in-progress", False))
    if group is None:
        return None  # a problem already
    try:
        expressions.check_interpolation(group, inputs=inputs)
    except InvalidExpression as error:
        raise _within(node.at("group"), error) from None
    return Concurrency(group=group, cancel_in_progress=cancel)


_MACHINE_FIELDS = {"server-type": "server_type", "ttl": "ttl_s", "memory": "memory_mb", "disk": "disk_mb"}
"""Keys of `machine:` that model.MachineResources calls otherwise."""


def _machine(values: dict[str, Any]) -> MachineResources:
    return MachineResources(**{_MACHINE_FIELDS.get(key, key): value for key, value in values.items()})


def _secrets_in_env(node: Node, secrets: Collection[str]) -> Iterator[InvalidWorkflow]:
    for key, _ in node.at("env").entries if _has(node, "env") else ():
        if key.text in secrets:
            yield key.refuse(f"{key.text!r} is a secret of this workflow and cannot be in env too")


def _within(node: Node, error: InvalidExpression) -> InvalidWorkflow:
    """The error at its own column, where the text stands on one line as it is written; else at the value's."""
    if node.style in ("block", "folded") or "\n" in node.text:
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
