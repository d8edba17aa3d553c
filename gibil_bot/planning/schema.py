"""Parses workflows and repository files: first by the schema tables, then with checks across keys.

Every problem is one InvalidWorkflow with its line and column.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.limits import REPOSITORY_FILE
from gibil_bot.model import Cache, MachineResources
from gibil_bot.planning import cache_keys, expressions
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
    """Parse a workflow file. `path` gives its name and appears in messages. Raises InvalidWorkflow with every problem."""
    root = read_yaml(path, data)
    problems = Problems()
    values: dict[str, Any] = problems.collect(lambda: WORKFLOW.read(root)) or {}
    name = workflow_name(path)
    command, actions = _triggers(values.get("on", {}))
    on = root.at("on")
    if on is not root and on.kind == "mapping" and not on.entries:
        problems.add(on.error("on: needs command or pull_request, otherwise nothing starts this workflow"))
    inputs = tuple(
        item
        for name_, fields in values.get("inputs", {}).items()
        if (item := problems.collect(partial(_input, name_, fields, root.at("inputs", name_)))) is not None
    )
    # An input that can't be read still counts as declared, so that its uses aren't reported as further problems.
    names = [key.text for key, _ in root.at("inputs").entries] if _has(root, "inputs") else []
    problems.collect(partial(_check_inputs, inputs, root.at("inputs"), needs_defaults=bool(actions)))
    tasks = _tasks(values.get("tasks", ()), root.at("tasks"), names, problems)
    using = [index for index, fields in enumerate(values.get("tasks", ())) if fields and fields.get("uses")]
    if len(using) > 1:
        problems.add(root.at("tasks", using[1], "uses").error(f"only one task of a workflow can use {REPOSITORY_FILE}"))
    secrets = tuple(dict.fromkeys(secret for secret in values.get("secrets", ()) if secret))
    for node in (root, *(root.at("tasks").items if _has(root, "tasks") else ())):
        for problem in _secrets_in_env(node, secrets):
            problems.add(problem)
    concurrency = problems.collect(lambda: _concurrency(values.get("concurrency"), root.at("concurrency"), names))
    set_up = _set_up(values, root, names, problems)
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
        **set_up,
    )


def parse_repository_file(path: str, data: bytes) -> RepositoryFile:
    """Parse a `.gibil.yml`. Raises InvalidWorkflow with every problem."""
    root = read_yaml(path, data)
    problems = Problems()
    values: dict[str, Any] = problems.collect(lambda: REPOSITORY.read(root)) or {}
    set_up = _set_up(values, root, None, problems)
    tasks = _tasks(values.get("tasks", ()), root.at("tasks"), None, problems)
    for problem in misplaced_expressions(root):
        problems.add(problem)
    problems.raise_with()
    return RepositoryFile(
        path=path,
        env=values.get("env", {}),
        tasks=tasks,
        machine=_machine(values.get("machine", {})),
        **set_up,
    )


def _set_up(values: dict[str, Any], root: Node, inputs: Collection[str] | None, problems: Problems) -> dict[str, Any]:
    """Return the fields of ProjectSetUp, except the path."""
    runtime, packages = values.get("runtime"), values.get("packages")
    caches = values.get("cache")
    return {
        "runtime": {} if runtime == "none" else runtime,
        "packages": None if packages is None else tuple(package for package in packages if package),
        "services": _services(values.get("services", {}), root.at("services"), problems),
        "checkout": values.get("checkout", {}),
        "caches": None if caches is None else _caches(caches, root.at("cache"), inputs, problems),
    }


def _caches(
    values: Sequence[dict[str, Any] | None], node: Node, inputs: Collection[str] | None, problems: Problems
) -> tuple[Cache, ...]:
    found = []
    for index, fields in enumerate(values):
        if fields is not None and "path" in fields and "key" in fields:
            cache = problems.collect(partial(_cache, fields, node.at(index), inputs))
            if cache is not None:
                found.append(cache)
    return tuple(found)


def _cache(fields: dict[str, Any], node: Node, inputs: Collection[str] | None) -> Cache:
    restore_keys = _lines_of(fields.get("restore-keys", ()))
    for name, keys in (("key", (fields["key"],)), ("restore-keys", restore_keys)):
        for key in keys:
            try:
                cache_keys.check_key(key, inputs=inputs)
            except InvalidExpression as error:
                raise node.at(name).error(error.problem) from None
    return Cache(path=_lines_of(fields["path"]), key=fields["key"], restore_keys=restore_keys)


def _lines_of(texts: Sequence[str | None]) -> tuple[str, ...]:
    """Return the lines of a text or a list of texts, as actions read lists."""
    return tuple(line.strip() for text in texts for line in (text or "").splitlines() if line.strip())


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
            continue  # already reported
        key = node.key(name)
        pairs = [entry.split(":") for entry in fields.get("ports", ()) if entry]
        service = Service(
            name=name,
            image=fields["image"],
            env=fields.get("env", {}),
            ports=tuple((int(pair[0]), int(pair[-1])) for pair in pairs),
            line=key.line,
            column=key.column,
        )
        problem = image_problem(service)
        taken = next((other for other in services if host_port(other)[0] == host_port(service)[0]), None)
        if taken is not None:
            problem = (
                problem or f"{taken.name!r} already has the port {host_port(service)[0]}; write PORT:{host_port(service)[1]}"
            )
        if problem:
            problems.add(key.error(problem))
        else:
            services.append(service)
    return tuple(services)


def _has(root: Node, name: str) -> bool:
    return any(key.text == name for key, _ in root.entries)


def is_repository_file(path: str) -> bool:
    """Return whether a path is a `.gibil.yml` rather than a workflow."""
    return posixpath.basename(path.partition("@")[0]) in (REPOSITORY_FILE, ".gibil.yaml")


def workflow_name(path: str) -> str:
    """Return the name of a workflow: its file's name without `.yml` and without a following `@ref`."""
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
        raise node.error(f"the input {name!r} is a choice and needs options")
    if declared.options and declared.type != "choice":
        raise node.at("options").error(f"options belong to type: choice, and {name!r} is a {declared.type}")
    if declared.pattern is not None and declared.type != "string":
        raise node.at("pattern").error(f"a pattern belongs to type: string, and {name!r} is a {declared.type}")
    problem = value_problem(declared, declared.default) if declared.default is not None else None
    if problem:
        raise node.at("default").error(f"the default of {name!r} {problem}")
    return declared


def _check_inputs(inputs: tuple[Input, ...], node: Node, *, needs_defaults: bool) -> None:
    variables: dict[str, str] = {}
    for item in inputs:
        variable = input_variable(item.name)
        if variable in variables:
            raise node.key(item.name).error(f"{item.name!r} and {variables[variable]!r} would both be {variable}")
        variables[variable] = item.name
        if needs_defaults and item.required and item.default is None:
            raise node.key(item.name).error(
                f"{item.name!r} needs a default: it has no value when a pull request starts this workflow"
            )


def _task(values: dict[str, Any], node: Node, inputs: Collection[str] | None) -> Task:
    run, uses = values.get("run"), values.get("uses")
    problems = Problems()
    detect = values.get("detect", "")
    if run is None and not any(_has(node, name) for name in ("run", "uses", "detect")):
        problems.add(node.error("a task needs the key 'run'"))
    if _has(node, "run") and _has(node, "detect"):
        problems.add(node.key("detect").error("a task has either run or detect"))
    if run is not None and not run.strip():
        problems.add(node.at("run").error("a script can't be empty"))
    condition = values.get("if", "success()")
    try:
        expressions.check(condition, inputs=inputs)
    except InvalidExpression as error:
        problems.add(_within(node.at("if"), error))
    problems.raise_with()
    return Task(
        name=values.get("name") or _first_line(run or detect or f"uses {uses}"),
        run=run,
        condition=condition,
        env=values.get("env", {}),
        working_directory=_folder(values.get("working-directory")),
        timeout_s=_seconds(values.get("timeout-minutes")),
        continue_on_error=values.get("continue-on-error", False),
        shell=values.get("shell", "bash"),
        uses=uses,
        detect=detect,
        prepare=values.get("prepare", False),
        tty=values.get("tty", False),
        line=node.line,
        column=node.column,
    )


def _concurrency(value: Any, node: Node, inputs: Collection[str]) -> Concurrency | None:
    if value is None:
        return None
    group, cancel = (value, False) if isinstance(value, str) else (value.get("group"), value.get("cancel-in-progress", False))
    if group is None:
        return None  # already reported
    try:
        expressions.check_interpolation(group, inputs=inputs)
    except InvalidExpression as error:
        raise _within(node.at("group"), error) from None
    return Concurrency(group=group, cancel_in_progress=cancel)


_MACHINE_FIELDS = {"server-type": "server_type", "ttl": "ttl_s", "memory": "memory_mb", "disk": "disk_mb"}
"""Keys of `machine:` that have another name in model.MachineResources."""


def _machine(values: dict[str, Any]) -> MachineResources:
    return MachineResources(**{_MACHINE_FIELDS.get(key, key): value for key, value in values.items()})


def _secrets_in_env(node: Node, secrets: Collection[str]) -> Iterator[InvalidWorkflow]:
    for key, _ in node.at("env").entries if _has(node, "env") else ():
        if key.text in secrets:
            yield key.error(f"{key.text!r} is a secret of this workflow and can't also be in env")


def _within(node: Node, error: InvalidExpression) -> InvalidWorkflow:
    """Return the error at its own column if the text is on one line of the file as written; otherwise at the value."""
    if node.style in ("block", "folded") or "\n" in node.text:
        return node.error(error.problem)
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
