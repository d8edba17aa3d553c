"""Workflows and an event become plans: everything decided, nothing left to ask, and printable as JSON.

A repository's workflow takes the place of an operator's that has the same name or the same command word. That gives a
repository no power it lacks otherwise (its tasks run on the same machines under the same caps, which are applied where
machines are forged), and lets it say how `/gibil test` is meant. A repository's broken file hides the operator's too:
whoever wrote it should hear about it instead of getting something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import cast

import msgspec

from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.model import Command, MachinePlan, Plan, PullRequest, Repository, TaskPlan, Trust
from gibil_bot.planning import expressions
from gibil_bot.planning.inputs import input_values, typed_values
from gibil_bot.planning.schema import is_repository_file, parse_repository_file, parse_workflow, workflow_name
from gibil_bot.planning.setup_task import set_up_script
from gibil_bot.planning.workflow import REPOSITORY_FILE, Input, MachineWish, RepositoryFile, Task, Workflow
from gibil_bot.planning.yamldoc import nearest, read_yaml

DEFAULT_TIMEOUT_S = 3600.0
SET_UP_S = 600
"""What a machine lives beyond its tasks' time when the workflow does not say: forging, cloning, reporting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known about the event that asks."""

    repository: Repository
    pull_request: PullRequest
    sha: str
    actor: str
    trust: Trust
    event_name: str
    """GitHub's word: issue_comment, pull_request …"""
    max_ttl_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Every workflow that a repository has, its own and the operator's, and every file that cannot be used."""

    workflows: tuple[Workflow, ...] = ()
    problems: tuple[InvalidWorkflow, ...] = ()
    repository_file: RepositoryFile | None = None
    repository_problem: InvalidWorkflow | None = None
    """What is wrong with the `.gibil.yml`; it is among `problems` too."""
    broken_words: Mapping[str, InvalidWorkflow] = field(default_factory=dict)
    """Command words that a broken file would have defined."""
    own: frozenset[str] = frozenset()
    """Paths of the workflows that are the repository's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandHelp:
    """One line of `/gibil help`."""

    word: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    path: str
    is_own: bool
    """The repository's, and not the operator's."""


def catalogue(operator: Mapping[str, bytes], repository: Mapping[str, bytes], *, base_ref: str) -> Catalogue:
    """All that can be asked for. `operator`: file name → content; `repository`: path → content at the base branch.

    Never raises: a file that cannot be used is a problem in the answer, and hides no other.
    """
    problems: list[InvalidWorkflow] = []
    broken: dict[str, InvalidWorkflow] = {}
    own_file, own_problem = None, None
    own: list[Workflow] = []
    for path, data in sorted(repository.items()):
        place = f"{path}@{base_ref}"
        if is_repository_file(path):
            try:
                own_file = _cached_repository_file(place, data)
            except InvalidWorkflow as problem:
                own_problem = problem
                problems.append(problem)
        else:
            own += _read(place, data, problems, broken)
    names = {workflow.name for workflow in own} | {workflow_name(problem.path) for problem in broken.values()}
    words = {workflow.command for workflow in own if workflow.command} | set(broken)
    theirs: list[Workflow] = []
    for name, data in sorted(operator.items()):
        if name.endswith((".yml", ".yaml")):
            theirs += _read(f"workflows/{name}", data, problems, broken)
    kept = [workflow for workflow in theirs if workflow.name not in names and workflow.command not in words]
    return Catalogue(
        workflows=(*own, *kept),
        problems=tuple(problems),
        repository_file=own_file,
        repository_problem=own_problem,
        broken_words=broken,
        own=frozenset(workflow.path for workflow in own),
    )


def commands(known: Catalogue) -> tuple[CommandHelp, ...]:
    """What `/gibil help` lists, by word."""
    return tuple(
        CommandHelp(
            word=workflow.command,
            title=workflow.title,
            description=workflow.description,
            inputs=workflow.inputs,
            path=workflow.path,
            is_own=workflow.path in known.own,
        )
        for workflow in sorted(known.workflows, key=lambda workflow: (workflow.command or "", workflow.name))
        if workflow.command
    )


def for_command(known: Catalogue, command: Command, facts: Facts) -> tuple[Plan, ...]:
    """The plans of every workflow with that command word, one as a rule. Raises UsageError with a sentence for people."""
    if command.problem:
        raise UsageError(command.problem)
    word = command.word
    asked = [workflow for workflow in known.workflows if workflow.command == word]
    if not asked:
        raise UsageError(_about_unknown(known, word))
    return tuple(
        _plan(known, workflow, input_values(workflow.inputs, command.arguments, word=word), facts) for workflow in asked
    )


def for_pull_request(known: Catalogue, action: str, facts: Facts) -> tuple[Plan, ...]:
    """The plans of every workflow that this action of a pull request starts.

    A workflow that cannot run in this repository (it needs a `.gibil.yml` that is absent or broken) is left out: nobody
    asked for it by name. Broken files are in `known.problems`.
    """
    plans = []
    for workflow in known.workflows:
        if action in workflow.pull_request:
            try:
                plans.append(_plan(known, workflow, input_values(workflow.inputs, {}, word=workflow.name), facts))
            except UsageError:
                continue
    return tuple(plans)


def for_workflow(known: Catalogue, name: str, arguments: Mapping[str, str], facts: Facts) -> Plan:
    """The plan of one workflow by its name, whatever starts it: for the command line. Raises UsageError."""
    found = next((workflow for workflow in known.workflows if workflow.name == name), None)
    if found is None:
        problem = next((problem for problem in known.problems if workflow_name(problem.path) == name), None)
        names = [workflow.name for workflow in known.workflows]
        there_are = nearest(name, names) or (f"; there are {', '.join(names)}" if names else "; there are none")
        raise UsageError(str(problem) if problem else f"there is no workflow {name!r}{there_are}")
    return _plan(known, found, input_values(found.inputs, arguments, word=found.command or name), facts)


def check_files(files: Mapping[str, bytes]) -> tuple[InvalidWorkflow, ...]:
    """What `gibil check` says: the problem of every file that has one, path → content in."""
    problems = []
    for path, data in files.items():
        try:
            if is_repository_file(path):
                parse_repository_file(path, data)
            else:
                parse_workflow(path, data)
        except InvalidWorkflow as problem:
            problems.append(problem)
    return tuple(problems)


def plan_view(plan: Plan) -> dict[str, object]:
    """A plan as JSON values: what `gibil plan` prints."""
    return cast(dict[str, object], msgspec.to_builtins(plan))


# --- reading files -----------------------------------------------------------------------------------------------

# The same few files are read for every delivery; a frozen value of the same bytes is the same value.
_cached_workflow = lru_cache(maxsize=128)(parse_workflow)
_cached_repository_file = lru_cache(maxsize=128)(parse_repository_file)


def _read(path: str, data: bytes, problems: list[InvalidWorkflow], broken: dict[str, InvalidWorkflow]) -> Iterable[Workflow]:
    try:
        return (_cached_workflow(path, data),)
    except InvalidWorkflow as problem:
        problems.append(problem)
        broken.setdefault(_word_of(path, data), problem)
        return ()


def _word_of(path: str, data: bytes) -> str:
    """The command that a broken workflow was meant for: what its `on.command` says if that can be read, else its name."""
    try:
        node = read_yaml(path, data).at("on", "command")
    except InvalidWorkflow:
        return workflow_name(path)
    return node.text if node.kind == "scalar" and node.text else workflow_name(path)


def _about_unknown(known: Catalogue, word: str) -> str:
    if word in known.broken_words:
        return f"`/gibil {word}` cannot be used: {known.broken_words[word]}"
    words = sorted({workflow.command for workflow in known.workflows if workflow.command})
    listed = ", ".join(f"`{known_word}`" for known_word in words)
    there_are = f"There are {listed}, and `help`." if words else "This repository has no commands yet; `/gibil help` says more."
    return (
        f"`/gibil {word[:50]}` is not known here{nearest(word, [*words, 'help', 'cancel', 'retest', 'approve'])}. {there_are}"
    )


# --- one plan ----------------------------------------------------------------------------------------------------


def _plan(known: Catalogue, workflow: Workflow, inputs: dict[str, str], facts: Facts) -> Plan:
    notes: list[str] = []
    own_file = _used_file(known, workflow)
    tasks = _expand(workflow, own_file)
    if own_file is not None and own_file.tasks:
        notes.append(f"The tasks are those of {own_file.path}.")
    secrets = workflow.secrets
    if secrets and facts.trust is not Trust.TRUSTED:
        notes.append(f"Without its secrets ({', '.join(secrets)}): the run is untrusted.")
        secrets = ()
    wish = _merged(workflow.machine, own_file.machine if own_file else MachineWish())
    timeout_s, ttl_s = _times(workflow.timeout_s, wish.ttl_s, facts.max_ttl_s, notes)
    github = _github(workflow, facts)
    group, cancel = f"{workflow.name}/{facts.pull_request.number}", True
    if workflow.concurrency is not None:
        group = expressions.interpolate(workflow.concurrency.group, inputs=inputs, github=github)[:500]
        cancel = workflow.concurrency.cancel_in_progress
    typed = typed_values(workflow.inputs, inputs)
    return Plan(
        workflow=workflow.name,
        title=workflow.title,
        path=workflow.path,
        tasks=tuple(_task_plan(task, typed, timeout_s) for task in tasks),
        inputs=inputs,
        env={**workflow.env, **(own_file.env if own_file else {})},
        secrets=secrets,
        machine=_machine_plan(wish, ttl_s),
        timeout_s=timeout_s,
        comment=workflow.comment,
        concurrency_group=group,
        cancel_in_progress=cancel,
        github=github,
        notes=tuple(notes),
    )


def _used_file(known: Catalogue, workflow: Workflow) -> RepositoryFile | None:
    """The `.gibil.yml` that this workflow uses, if it uses one and the repository has one."""
    using = next((task for task in workflow.tasks if task.uses), None)
    if using is None:
        return None
    if known.repository_problem is not None:
        raise UsageError(f"{workflow.title} uses a file that cannot be read: {known.repository_problem}")
    has_tasks = known.repository_file is not None and known.repository_file.tasks
    if using.run is None and not has_tasks:
        raise UsageError(
            f"{workflow.title} needs tasks in the repository's {REPOSITORY_FILE}, and there are none on its base branch"
        )
    return known.repository_file


def _expand(workflow: Workflow, own_file: RepositoryFile | None) -> list[Task]:
    """The tasks with `uses` replaced: by what the repository's file says, behind what has to be set up for it."""
    tasks: list[Task] = []
    for task in workflow.tasks:
        if task.uses is None or own_file is None:
            tasks.append(task)
            continue
        script = set_up_script(own_file.runtime, own_file.packages)
        inner = [Task(name="set up", run=script, shell="sh")] if script else []  # noqa: S604 (a word, no subprocess)
        if own_file.tasks:
            tasks += [_inside(task, below) for below in (*inner, *own_file.tasks)]
        else:
            tasks += [*(_inside(task, below) for below in inner), task]
    return tasks


def _inside(outer: Task, inner: Task) -> Task:
    """A task of the repository's file as the using task frames it: its condition too, its env beneath, its time at most."""
    limits = [limit for limit in (outer.timeout_s, inner.timeout_s) if limit is not None]
    return replace(
        inner,
        condition=inner.condition if outer.condition == "success()" else expressions.combine(outer.condition, inner.condition),
        env={**outer.env, **inner.env},
        timeout_s=min(limits, default=None),
        continue_on_error=outer.continue_on_error or inner.continue_on_error,
    )


def _task_plan(task: Task, typed: Mapping[str, bool | float], timeout_s: float) -> TaskPlan:
    assert task.run is not None, "the parser lets no task through without a script or a use, and uses are replaced"
    return TaskPlan(
        name=task.name,
        run=task.run,
        condition=expressions.bind(task.condition, typed),
        env=task.env,
        working_directory=task.working_directory,
        timeout_s=min(task.timeout_s or timeout_s, timeout_s),
        continue_on_error=task.continue_on_error,
        shell=task.shell,
    )


def _merged(workflow: MachineWish, own: MachineWish) -> MachineWish:
    """The repository's file is about the project, so what it says of the machine beats the workflow."""
    said = {name: getattr(own, name) for name in MachineWish.__dataclass_fields__ if getattr(own, name) is not None}
    return replace(workflow, **said)


def _times(timeout_s: float | None, ttl_s: int | None, max_ttl_s: int, notes: list[str]) -> tuple[float, int]:
    """How long the tasks may take together, and how long the machine lives."""
    wanted = ttl_s or int((timeout_s or DEFAULT_TIMEOUT_S) + SET_UP_S)
    if (ttl_s or timeout_s or 0) > max_ttl_s:
        notes.append(f"The machine lives {max_ttl_s / 60:g} minutes at most here, less than the workflow asks for.")
    lives_s = min(wanted, max_ttl_s)
    return min(timeout_s or float(ttl_s or DEFAULT_TIMEOUT_S), float(lives_s)), lives_s


def _machine_plan(wish: MachineWish, ttl_s: int) -> MachinePlan:
    return MachinePlan(
        size=wish.size or "small",
        image=wish.image,
        server_type=wish.server_type,
        location=wish.location,
        ttl_s=ttl_s,
        memory_mb=wish.memory_mb,
        disk_mb=wish.disk_mb,
        pids=wish.pids,
    )


def _github(workflow: Workflow, facts: Facts) -> dict[str, str]:
    """`github.` as conditions see it: every name of expressions.GITHUB_NAMES."""
    pull_request = facts.pull_request
    return {
        "event_name": facts.event_name,
        "actor": facts.actor,
        "sha": facts.sha,
        "ref": f"refs/pull/{pull_request.number}/head",
        "head_ref": pull_request.head_ref,
        "base_ref": pull_request.base_ref,
        "repository": facts.repository.full_name,
        "repository_owner": facts.repository.owner,
        "workflow": workflow.title,
        "number": str(pull_request.number),
    }
