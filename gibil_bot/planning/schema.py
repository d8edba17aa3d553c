"""Parses workflows and repository files: first by the schema tables, then with checks across keys.

Every problem is one InvalidWorkflow with its line and column.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from gibil_bot.agent_task import AgentPlan
from gibil_bot.errors import InvalidWorkflow
from gibil_bot.humanize import nearest
from gibil_bot.limits import REPOSITORY_FILE, is_branch_name
from gibil_bot.model import Cache, CommitPlan, MachineResources, PullRequestRequest
from gibil_bot.planning import cache_keys, expressions
from gibil_bot.planning.actions import misplaced_expressions
from gibil_bot.planning.expressions import InvalidExpression
from gibil_bot.planning.file_schema import PROMPT_LIMIT, REPOSITORY, WORKFLOW
from gibil_bot.planning.inputs import value_problem
from gibil_bot.planning.schema_types import Problems
from gibil_bot.planning.services import host_port, image_problem
from gibil_bot.planning.workflow import (
    PULL_REQUEST_ACTIONS,
    SHIPPED_ENGINES,
    Concurrency,
    Input,
    RepositoryFile,
    Service,
    Task,
    Workflow,
)
from gibil_bot.planning.yaml_nodes import Node, read_yaml
from gibil_bot.scripts.task_script import input_variable

DEFAULT_ROUNDS = 3
"""How often an agent works while the task that `until` names fails."""
DEFAULT_ATTEMPTS = 3
"""How often the bot's own commits start a workflow that asks for it, per pull request and hour."""


def parse_workflow(path: str, data: bytes, engines: tuple[str, ...] = SHIPPED_ENGINES) -> Workflow:
    """Parse a workflow file. `path` gives its name and appears in messages, `engines` are those that its agents may name.

    Raises InvalidWorkflow with every problem.
    """
    root = read_yaml(path, data)
    problems = Problems()
    values: dict[str, Any] = problems.collect(lambda: WORKFLOW.read(root)) or {}
    name = workflow_name(path)
    command, actions, max_attempts = _triggers(values.get("on", {}))
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
    problems.collect(partial(_check_inputs, inputs, root.at("inputs"), needs_defaults=bool(actions or max_attempts)))
    tasks = _tasks(values.get("tasks", ()), root.at("tasks"), names, problems, engines)
    for problem in _unknown_tasks(values.get("tasks", ()), root.at("tasks")):
        problems.add(problem)
    using = [index for index, fields in enumerate(values.get("tasks", ())) if fields and fields.get("uses")]
    if len(using) > 1:
        problems.add(root.at("tasks", using[1], "uses").error(f"only one task of a workflow can use {REPOSITORY_FILE}"))
    secrets = tuple(dict.fromkeys(secret for secret in values.get("secrets", ()) if secret))
    for node in (root, *(root.at("tasks").items if _has(root, "tasks") else ())):
        for problem in _secrets_in_env(node, secrets):
            problems.add(problem)
    if secrets and any(fields and "agent" in fields for fields in values.get("tasks", ())):
        problems.add(root.key("secrets").error(_SECRETS_OF_AGENTS))
    concurrency = problems.collect(lambda: _concurrency(values.get("concurrency"), root.at("concurrency"), names))
    set_up = _set_up(values, root, names, problems)
    commit = problems.collect(lambda: _commit(values.get("commit"), root.at("commit"), names))
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
        commit=commit,
        max_attempts=max_attempts,
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
    values: Sequence[dict[str, Any] | None],
    node: Node,
    inputs: Collection[str] | None,
    problems: Problems,
    engines: Collection[str] = (),
) -> tuple[Task, ...]:
    found = []
    for index, fields in enumerate(values):
        if fields is not None:
            task = problems.collect(partial(_task, fields, node.at(index), inputs, engines))
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


def _triggers(on: Any) -> tuple[str | None, tuple[str, ...], int]:
    """Return the command, the actions of pull requests, and how often the bot's own commits start the workflow."""
    if not isinstance(on, dict):  # `on: pull_request` and `on: [pull_request]`
        return None, PULL_REQUEST_ACTIONS, 0
    actions = on.get("pull_request", ())
    if isinstance(actions, dict):
        actions = actions.get("types", PULL_REQUEST_ACTIONS)
    own_push = on.get("own-push")
    max_attempts = 0 if own_push is None else own_push.get("max-attempts", DEFAULT_ATTEMPTS)
    return on.get("command"), tuple(dict.fromkeys(action for action in actions if action)), max_attempts


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
    texts = [item.name for item in inputs if item.type == "text"]
    if len(texts) > 1:
        raise node.key(texts[1]).error(f"only one input can have the type text, and {texts[0]!r} has it")
    for item in inputs:
        variable = input_variable(item.name)
        if variable in variables:
            raise node.key(item.name).error(f"{item.name!r} and {variables[variable]!r} would both be {variable}")
        variables[variable] = item.name
        if needs_defaults and item.required and item.default is None:
            raise node.key(item.name).error(
                f"{item.name!r} needs a default: it has no value when a pull request starts this workflow"
            )


def _task(values: dict[str, Any], node: Node, inputs: Collection[str] | None, engines: Collection[str]) -> Task:
    run, uses = values.get("run"), values.get("uses")
    problems = Problems()
    detect = values.get("detect", "")
    if run is None and not any(_has(node, name) for name in ("run", "uses", "detect", "agent")):
        problems.add(node.error("a task needs the key 'run'"))
    if _has(node, "run") and _has(node, "detect"):
        problems.add(node.key("detect").error("a task has either run or detect"))
    if run is not None and not run.strip():
        problems.add(node.at("run").error("a script can't be empty"))
    for name, why in _NOT_WITH_AGENTS.items():
        if _has(node, "agent") and _has(node, name):
            problems.add(node.key(name).error(why))
    agent = problems.collect(lambda: _agent(values.get("agent"), node.at("agent"), inputs, engines))
    condition = values.get("if", "failure()" if agent is not None and agent.until else "success()")
    try:
        expressions.check(condition, inputs=inputs)
    except InvalidExpression as error:
        problems.add(_within(node.at("if"), error))
    problems.raise_with()
    return Task(
        name=_task_name(values),
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
        agent=agent,
        line=node.line,
        column=node.column,
    )


def _task_name(values: dict[str, Any]) -> str:
    """Return the name of a task: the file's, or the beginning of what it does."""
    agent = values.get("agent")
    prompt = agent.get("prompt") if isinstance(agent, dict) else agent
    return str(
        values.get("name") or _first_line(values.get("run") or values.get("detect") or prompt or f"uses {values.get('uses')}")
    )


# --- agents ------------------------------------------------------------------------------------------------------

_NOT_WITH_AGENTS = {
    "run": "a task has either run or agent; write a second task for the script",
    "detect": "a task has either detect or agent; write a task for each",
    "uses": f"a task has either uses or agent; write a second task for {REPOSITORY_FILE}",
    "shell": "an agent has no script, so no shell; remove it",
    "tty": "agents work without a terminal; remove it",
    "prepare": "an agent can't prepare a machine: its work isn't the same each time; remove it",
}
_SECRETS_OF_AGENTS = (
    "a workflow with an agent gets no secrets: what the agent starts or writes could read them; move the tasks that "
    "need them to another workflow"
)


def _agent(value: Any, node: Node, inputs: Collection[str] | None, engines: Collection[str]) -> AgentPlan | None:
    """Return the key `agent`, with the expressions in its prompt; the engine is empty if none is named."""
    if value is None:
        return None
    values: dict[str, Any] = {"prompt": value} if isinstance(value, str) else value
    if "prompt" not in values:
        return None  # already reported
    problems = Problems()
    prompt, prompt_node = values["prompt"], node if isinstance(value, str) else node.at("prompt")
    if not prompt.strip():
        problems.add(prompt_node.error("a prompt can't be empty"))
    for error in _prompt_problems(prompt, inputs):
        problems.add(_within(prompt_node, error))
    engine = values.get("engine", "")
    if engine and engine not in engines:
        hint = nearest(engine, engines) or f"; there are {', '.join(engines)}"
        problems.add(node.at("engine").error(f"there is no engine {engine!r}{hint}"))
    if engine == "command" and "command" not in values and not _has(node, "command"):
        problems.add(node.at("engine").error("the engine 'command' needs the key 'command': the program that reads the prompt"))
    if "command" in values and engine != "command":
        problems.add(node.key("command").error("command belongs to engine: command; write that too, or remove it"))
    if "rounds" in values and not _has(node, "until"):
        problems.add(node.key("rounds").error("rounds needs until: the name of the task that decides whether it is done"))
    if "choose" in values and values.get("attempts", 1) < 2:
        problems.add(node.key("choose").error("choose decides among several attempts; write attempts: 2 or more"))
    output = values.get("output", "changes")
    for name in ("until", "attempts"):
        if output != "changes" and name in values and values[name] != 1:
            problems.add(node.key(name).error(f"{name} belongs to output: changes, and this agent's output is {output}"))
    for name in ("choose", "command"):
        if name in values and not values[name].strip():
            problems.add(node.at(name).error("a command can't be empty"))
    problems.raise_with()
    until = values.get("until", "")
    return AgentPlan(
        engine=engine,
        prompt=prompt,
        model=values.get("model", ""),
        max_turns=values.get("max-turns", 40),
        budget_usd=values.get("budget"),
        max_tokens=values.get("max-tokens"),
        allow=tuple(host.lower() for host in values.get("allow", ()) if host),
        attempts=values.get("attempts", 1),
        choose=values.get("choose", ""),
        until=until,
        rounds=values.get("rounds", DEFAULT_ROUNDS if until else 1),
        command=values.get("command", ""),
        output=output,
        context=tuple(dict.fromkeys(word for word in values.get("context", ()) if word)),
    )


def _prompt_problems(prompt: str, inputs: Collection[str] | None) -> Iterator[InvalidExpression]:
    try:
        for piece, start in expressions.pieces_of(prompt, max_length=PROMPT_LIMIT):
            if start is None:
                continue
            context, _, name = piece.strip().partition(".")
            if context == "secrets":
                yield InvalidExpression(
                    "a prompt goes to the model's vendor and is readable on the machine, so it can't contain a secret; "
                    f"move what needs {name[:40] or 'it'} to a workflow without an agent",
                    start + 1,
                )
                continue
            expressions.check_piece(piece, start, inputs=inputs)
            if any(each.context == "env" for each in expressions.names(expressions.parse_at(piece, start))):
                yield InvalidExpression("env is known only on the machine; a prompt may contain inputs and github", start + 1)
    except InvalidExpression as error:
        yield error


def _unknown_tasks(values: Sequence[dict[str, Any] | None], node: Node) -> Iterator[InvalidWorkflow]:
    """Yield a problem for each `until` that doesn't name an earlier task with a script."""
    scripts: list[str] = []
    others: list[str] = []
    for index, fields in enumerate(values):
        if fields is None:
            return  # the name of a task that can't be read is unknown
        agent, name = fields.get("agent"), _task_name(fields) if set(fields) & {"run", "uses", "detect", "agent"} else ""
        until = agent.get("until") if isinstance(agent, dict) else None
        if until is not None and until not in scripts:
            at = node.at(index, "agent", "until")
            if until in others or until == name:
                yield at.error(f"{until!r} is an agent's task; until names an earlier task with a script")
            elif any(later and until == later.get("name") for later in values[index:]):
                yield at.error(f"the task {until!r} comes later; until names an earlier one")
            else:
                known = nearest(until, scripts) or (f"; there are {', '.join(scripts)}"[:500] if scripts else "; there is none")
                yield at.error(f"there is no earlier task {until!r}{known}")
        if name:
            (others if agent is not None else scripts).append(name)


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


def _commit(value: Any, node: Node, inputs: Collection[str]) -> CommitPlan | None:
    """Return the key `commit`, with its expressions."""
    if value is None:
        return None
    values: dict[str, Any] = {"message": value} if isinstance(value, str) else value
    request = values.get("pull-request")
    if "message" not in values or (request is not None and "title" not in request):
        return None  # already reported
    problems = Problems()
    branch = values.get("branch")
    to: Any = values.get("to") or ("branch" if branch is not None or request is not None else "head")
    for name in ("branch", "pull-request"):
        if name in values and to != "branch":
            problems.add(node.key(name).error(f"{name} belongs to to: branch, and this writes to: {to}"))
    if to == "patch" and "on-conflict" in values:
        problems.add(node.key("on-conflict").error("a patch changes no branch, so there are no conflicts; remove it"))
    texts = [(node if isinstance(value, str) else node.at("message"), values["message"])]
    texts += [(node.at("branch"), branch)] if branch is not None else []
    if request is not None:
        texts += [(node.at("pull-request", name), request[name]) for name in ("title", "body") if name in request]
    for at, text in texts:
        try:
            expressions.check_interpolation(text, inputs=inputs)
        except InvalidExpression as error:
            problems.add(_within(at, error))
    if not values["message"].strip():
        problems.add(texts[0][0].error("a message can't be empty"))
    problems.raise_with()
    if branch is not None and not is_branch_name(_without_expressions(branch)):
        raise node.at("branch").error(f"{branch[:80]!r} is not a valid branch name")
    return CommitPlan(
        message=values["message"],
        paths=_lines_of(values.get("paths", ())),
        to=to,
        branch=branch,
        pull_request=PullRequestRequest(**request) if request is not None else None,
        on_conflict=values.get("on-conflict", "rebase"),
        strict=values.get("strict", False),
    )


def _without_expressions(text: str) -> str:
    """Return the text with an ordinary word in place of each expression."""
    return "".join(piece if start is None else "x" for piece, start in expressions.pieces_of(text))


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
