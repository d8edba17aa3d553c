"""Turns workflows and an event into plans, which are complete, need no further input, and can be printed as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import msgspec
from msgspec import structs

from gibil_bot.agent_task import AgentPlan
from gibil_bot.caps import NO_CAPS, Caps, capped
from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.humanize import count, nearest, without_hidden
from gibil_bot.limits import REPOSITORY_FILE, is_branch_name
from gibil_bot.model import (
    Cache,
    Checkout,
    Command,
    CommitPlan,
    MachinePlan,
    Plan,
    PullRequest,
    Repository,
    TaskPlan,
    Trust,
)
from gibil_bot.planning import cache_keys, expressions
from gibil_bot.planning.agents import AgentSupport
from gibil_bot.planning.catalogue import Catalogue, CommandHelp, catalogue, check_files, commands, why_unknown
from gibil_bot.planning.file_schema import PROMPT_LIMIT
from gibil_bot.planning.inputs import input_values, split_text, text_input, typed_values
from gibil_bot.planning.schema import workflow_name
from gibil_bot.planning.services import ServiceCapabilities, check_services, host_port, services_script
from gibil_bot.planning.workflow import ProjectSetUp, RepositoryFile, Service, Task, Workflow
from gibil_bot.scripts.task_script import set_up_script

__all__ = [
    "AgentSupport",
    "Catalogue",
    "CommandHelp",
    "EventContext",
    "again",
    "catalogue",
    "check_files",
    "commands",
    "for_command",
    "for_pull_request",
    "for_workflow",
    "plan_view",
]

DEFAULT_TIMEOUT_S = 3600.0
MESSAGE_LIMIT = 8000
TITLE_LIMIT = 250
SET_UP_S = 600
"""How much longer than its tasks' timeout a machine exists by default: for creating, cloning and reporting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventContext:
    """The event that a plan is for."""

    repository: Repository
    pull_request: PullRequest
    sha: str
    actor: str
    trust: Trust
    event_name: str
    """GitHub's name of the event: issue_comment, pull_request …"""
    max_ttl_s: int
    caps: Caps = NO_CAPS
    """The operator's limits for a machine."""
    service_capabilities: ServiceCapabilities | None = None
    """What the machines support for services; None if unknown here, so that the machine itself reports problems."""
    untrusted_because: str = ""
    """Why the run is untrusted, as a clause for its report."""
    is_by_agent: bool = False
    """The run is untrusted only because an agent wrote the head; its changes may be pushed."""
    may_commit: bool = True
    """Whether the App may write contents here."""
    agents: AgentSupport = field(default_factory=AgentSupport)


def for_command(catalogue: Catalogue, command: Command, event: EventContext) -> tuple[Plan, ...]:
    """Return the plans of all workflows with that command word, usually one. Raises UsageError with a message for the user."""
    if command.problem:
        raise UsageError(command.problem)
    word = command.word
    matching = [workflow for workflow in catalogue.workflows if workflow.command == word]
    if not matching:
        raise UsageError(why_unknown(catalogue, word))
    plans = []
    for workflow in matching:
        arguments = split_text(workflow.inputs, command.text, word=word) if command.text else command.arguments
        plans.append(_plan(catalogue, workflow, input_values(workflow.inputs, arguments, word=word), event))
    return tuple(plans)


def free_text_words(catalogue: Catalogue) -> frozenset[str]:
    """Return the words of commands that take free text, for the parser of comments."""
    return frozenset(each.command for each in catalogue.workflows if each.command and text_input(each.inputs) is not None)


class Unsupported(UsageError):
    """The workflow needs something that the machines here don't support, or a permission that the App doesn't have."""


def for_pull_request(
    catalogue: Catalogue, action: str, event: EventContext, *, is_own_push: bool = False
) -> tuple[tuple[Plan, ...], tuple[str, ...]]:
    """Return the plans of all workflows that this action of a pull request starts, and why others can't run here.

    A workflow that doesn't apply to this repository (it needs a `.gibil.yml` that is missing or broken) is left out: it wasn't
    requested by name. Broken files are in `catalogue.problems`. `is_own_push`: commits of an earlier run caused it.
    """
    plans, refusals = [], []
    for workflow in catalogue.workflows:
        if workflow.max_attempts if is_own_push else action in workflow.pull_request:
            try:
                plans.append(_plan(catalogue, workflow, input_values(workflow.inputs, {}, word=workflow.name), event))
            except Unsupported as refusal:
                refusals.append(refusal.message)
            except UsageError:
                continue
    return tuple(plans), tuple(refusals)


def for_workflow(catalogue: Catalogue, name: str, arguments: Mapping[str, str], event: EventContext) -> Plan:
    """Return the plan of one workflow by its name, regardless of its triggers, for the command line. Raises UsageError."""
    found = next((workflow for workflow in catalogue.workflows if workflow.name == name), None)
    if found is None:
        problem = next((problem for problem in catalogue.problems if workflow_name(problem.path) == name), None)
        names = [workflow.name for workflow in catalogue.workflows]
        alternatives = nearest(name, names) or (f"; there are {', '.join(names)}" if names else "; there are none")
        raise UsageError(str(problem) if problem else f"there is no workflow {name!r}{alternatives}")
    return _plan(catalogue, found, input_values(found.inputs, arguments, word=found.command or name), event)


def again(catalogue: Catalogue, name: str, inputs: Mapping[str, str], event: EventContext) -> Plan:
    """Return a new plan of a workflow that ran before, from the current files, commit, branches and person.

    Inputs that the workflow no longer has are left out. Raises UsageError.
    """
    found = next((workflow for workflow in catalogue.workflows if workflow.name == name), None)
    values = {each.name: inputs[each.name] for each in found.inputs if each.name in inputs} if found is not None else {}
    return for_workflow(catalogue, name, values, event)


def may_need_to_commit(catalogue: Catalogue) -> bool:
    """Return whether a workflow pushes commits, for which the App needs a permission."""
    return any(workflow.commit is not None and workflow.commit.to != "patch" for workflow in catalogue.workflows)


def plan_view(plan: Plan) -> dict[str, object]:
    """Return a plan as JSON values, for `gibil plan`."""
    return cast(dict[str, object], msgspec.to_builtins(plan))


# --- one plan ----------------------------------------------------------------------------------------------------


def _plan(catalogue: Catalogue, workflow: Workflow, inputs: dict[str, str], event: EventContext) -> Plan:
    notes: list[str] = []
    own_file = _used_file(catalogue, workflow, event.service_capabilities)
    set_up = workflow.overridden_by(own_file)
    _check_ports(workflow, set_up.services)
    agents = _agents(workflow, event)
    _check_attempts(workflow, set_up.services)
    tasks = _expand(workflow, own_file, set_up)
    if own_file is not None and own_file.tasks:
        notes.append(f"The tasks come from {own_file.path}.")
    secrets = workflow.secrets
    if secrets and event.trust is not Trust.TRUSTED:
        because = f", because {event.untrusted_because}" if event.untrusted_because else ""
        notes.append(f"Without its secrets ({', '.join(secrets)}): the run is untrusted{because}.")
        secrets = ()
    # The repository's file describes the project, so its machine overrides the workflow's.
    wanted = workflow.machine.overridden_by(own_file.machine) if own_file else workflow.machine
    timeout_s, ttl_s = _times(workflow.timeout_s, wanted.ttl_s, event.max_ttl_s, notes)
    machine, cap_notes = capped(MachinePlan(**wanted.specified() | {"ttl_s": ttl_s}), event.caps)
    notes += cap_notes
    github = _github(workflow, event)
    group, cancel = f"{workflow.name}/{event.pull_request.number}", True
    if workflow.concurrency is not None:
        group = expressions.interpolate(workflow.concurrency.group, inputs=inputs, github=github)[:500]
        cancel = workflow.concurrency.cancel_in_progress
    typed = typed_values(workflow.inputs, inputs)
    commit = None if workflow.commit is None else _bound_commit(workflow, workflow.commit, inputs, github)
    if commit is not None and commit.to != "patch" and event.trust is not Trust.TRUSTED and not event.is_by_agent:
        because = f", because {event.untrusted_because}" if event.untrusted_because else ""
        notes.append(f"Its changes become a patch instead of commits: the run is untrusted{because}.")
        commit = commit.as_patch()
    if commit is not None and commit.to != "patch" and not event.may_commit:
        raise Unsupported(
            f"{workflow.title} commits its changes, but the App may only read contents here: an owner of "
            f"{event.repository.full_name.partition('/')[0]} has to accept its permission `contents: write` at the "
            "installation. A workflow with `commit: {to: patch}` needs no permission"
        )
    return Plan(
        workflow=workflow.name,
        title=workflow.title,
        path=workflow.path,
        tasks=tuple(_task_plan(task, typed, timeout_s, _bound_agent(workflow, task, agents, inputs, github)) for task in tasks),
        inputs=inputs,
        env={**workflow.env, **(own_file.env if own_file else {})},
        secrets=secrets,
        machine=machine,
        timeout_s=timeout_s,
        comment=workflow.comment,
        concurrency_group=group,
        cancel_in_progress=cancel,
        github=github,
        notes=tuple(notes),
        checkout=Checkout(**set_up.checkout),  # type: ignore[arg-type]  # checked by the schema
        caches=tuple(_bound_cache(cache, inputs, github) for cache in set_up.caches or ()),
        commit=commit,
        max_attempts=workflow.max_attempts,
    )


def _bound_commit(workflow: Workflow, commit: CommitPlan, inputs: Mapping[str, str], github: Mapping[str, str]) -> CommitPlan:
    """Evaluate the expressions. Raises UsageError if they give no message or no valid branch name."""

    def text(template: str, limit: int) -> str:
        return without_hidden(expressions.interpolate(template, inputs=inputs, github=github))[:limit].strip()

    message = text(commit.message, MESSAGE_LIMIT)
    if not message:
        raise UsageError(f"{workflow.title}: the message of its commit is empty; write a text next to the expressions")
    branch, request = commit.branch, commit.pull_request
    if commit.to == "branch":
        branch = text(branch, TITLE_LIMIT) if branch is not None else f"gibil/{workflow.name}-{github['number']}"
        if not is_branch_name(branch):
            raise UsageError(f"{workflow.title}: {branch[:80]!r} is not a valid branch name for its commit")
    if request is not None:
        title = " ".join(text(request.title, TITLE_LIMIT).split()) or workflow.title
        request = structs.replace(request, title=title, body=text(request.body, MESSAGE_LIMIT))
    return structs.replace(commit, message=message, branch=branch, pull_request=request)


def _agents(workflow: Workflow, event: EventContext) -> AgentSupport:
    """Return what is known of agents here. Raises Unsupported if one of the workflow's can't work here.

    Raises UsageError for untrusted commits that no person asked for: agents cost money.
    """
    wanted = [task.agent for task in workflow.tasks if task.agent is not None]
    for agent in wanted:
        reason = event.agents.unusable.get(agent.engine or event.agents.default_engine)
        if reason is not None:
            raise Unsupported(f"{workflow.title} can't run here: {reason}")
    if wanted and event.event_name == "pull_request" and event.trust is not Trust.TRUSTED:
        # Not Unsupported, which every push to a fork would report: the command of the workflow starts it.
        raise UsageError(f"{workflow.title} works on untrusted commits only if a person with write access asks")
    return event.agents


def _bound_agent(
    workflow: Workflow, task: Task, agents: AgentSupport, inputs: Mapping[str, str], github: Mapping[str, str]
) -> AgentPlan | None:
    """Choose the engine and evaluate the expressions of the prompt: their values are text. Raises UsageError."""
    if task.agent is None:
        return None
    parts: list[str] = []
    length = 0
    for piece, start in expressions.pieces_of(task.agent.prompt, max_length=PROMPT_LIMIT):
        parts.append(piece if start is None else expressions.evaluate_piece(piece, start, inputs=inputs, github=github))
        length += len(parts[-1])
        if length > PROMPT_LIMIT:
            raise UsageError(
                f"{workflow.title}: with its inputs, the prompt of {task.name!r} is longer than {PROMPT_LIMIT:,} characters; "
                "write less, or put the text into a file of the pull request and name that"
            )
    prompt = without_hidden("".join(parts)).strip()
    if not prompt:
        raise UsageError(f"{workflow.title}: the prompt of {task.name!r} is empty; write a text next to the expressions")
    return structs.replace(task.agent, engine=task.agent.engine or agents.default_engine, prompt=prompt)


def _bound_cache(cache: Cache, inputs: Mapping[str, str], github: Mapping[str, str]) -> Cache:
    key, *restore_keys = (
        cache_keys.bind_key(key, inputs=inputs, github=github)[:500] for key in (cache.key, *cache.restore_keys)
    )
    return Cache(path=cache.path, key=key, restore_keys=tuple(restore_keys))


def _used_file(catalogue: Catalogue, workflow: Workflow, capabilities: ServiceCapabilities | None) -> RepositoryFile | None:
    """Return the `.gibil.yml` that this workflow uses, if it uses one and the repository has one."""
    if capabilities is not None:
        _check_supported(workflow, workflow, capabilities)
    using = next((task for task in workflow.tasks if task.uses), None)
    if using is None:
        return None
    if catalogue.repository_problem is not None:
        raise UsageError(f"{workflow.title} uses a file that can't be read: {catalogue.repository_problem}")
    if catalogue.repository_file is not None and capabilities is not None:
        _check_supported(workflow, catalogue.repository_file, capabilities)
    has_tasks = catalogue.repository_file is not None and catalogue.repository_file.tasks
    if using.run is None and not using.detect and not has_tasks:
        raise UsageError(
            f"{workflow.title} needs tasks in the repository's {REPOSITORY_FILE}, and there are none on its base branch"
        )
    return catalogue.repository_file


def _check_supported(workflow: Workflow, file: ProjectSetUp, capabilities: ServiceCapabilities) -> None:
    """Raise Unsupported for services of a file that these machines don't support."""
    try:
        check_services(file, capabilities)
    except InvalidWorkflow as problem:
        raise Unsupported(f"{workflow.title} can't run here: {problem}") from None


def _check_ports(workflow: Workflow, services: tuple[Service, ...]) -> None:
    """Raise UsageError if services of two files have the same port; within one file the parser reports it."""
    ports: dict[int, str] = {}
    for service in services:
        port = host_port(service)[0]
        other = ports.setdefault(port, service.name)
        if other != service.name:
            raise UsageError(f"{workflow.title}: the services {other!r} and {service.name!r} both have the port {port}")


def _check_attempts(workflow: Workflow, services: tuple[Service, ...]) -> None:
    """Raise UsageError for attempts side by side on machines with services, which a copy of a machine's disk doesn't have."""
    task = next((task for task in workflow.tasks if task.agent is not None and task.agent.attempts > 1), None)
    if task is not None and services:
        names = ", ".join(repr(service.name) for service in services)
        raise UsageError(
            f"{workflow.title}: attempts of {task.name!r} work on copies of the machine's disk, on which no processes run, so "
            f"they would be without {count(len(services), 'service')} ({names}); remove `attempts`, or start what they need in "
            "`choose`"
        )


def _expand(workflow: Workflow, own_file: RepositoryFile | None, set_up: ProjectSetUp) -> list[Task]:
    """Replace the task with `uses` by the tasks of the repository's file, and set up the machine before the first task that may
    need it: that one, or if the workflow itself describes the set-up, the first of all.
    """
    scripts = {
        "set up": set_up_script(set_up.runtime or {}, set_up.packages or ()),
        "services": services_script(set_up.services),
    }
    beginning = [Task(name=name, run=run, shell="sh", prepare=True) for name, run in scripts.items() if run]  # noqa: S604 (a word)
    at_once = bool(workflow.runtime or workflow.packages or workflow.services)
    tasks: list[Task] = list(beginning) if at_once else []
    for task in workflow.tasks:
        if task.uses is None or own_file is None:
            tasks.append(task)
            continue
        tasks += [_inside(task, below) for below in (() if at_once else beginning)]
        tasks += [_inside(task, below) for below in own_file.tasks] or [task]
    return tasks


def _inside(outer: Task, inner: Task) -> Task:
    """Apply the `uses` task to a task of the repository's file: both conditions, env as defaults, timeout as the maximum."""
    limits = [limit for limit in (outer.timeout_s, inner.timeout_s) if limit is not None]
    return replace(
        inner,
        condition=inner.condition if outer.condition == "success()" else expressions.combine(outer.condition, inner.condition),
        env={**outer.env, **inner.env},
        timeout_s=min(limits, default=None),
        continue_on_error=outer.continue_on_error or inner.continue_on_error,
        part_of=outer.name,
    )


def _task_plan(task: Task, typed: Mapping[str, bool | float], timeout_s: float, agent: AgentPlan | None) -> TaskPlan:
    assert task.run is not None or task.detect or agent is not None, "the parser accepts no other, and uses are replaced"
    return TaskPlan(
        name=task.name,
        run=task.run or "",
        condition=expressions.bind(task.condition, typed),
        env=task.env,
        working_directory=task.working_directory,
        timeout_s=min(task.timeout_s or timeout_s, timeout_s),
        continue_on_error=task.continue_on_error,
        shell=task.shell,
        kind="prepare" if task.prepare else "run",
        detect=task.detect,
        tty=task.tty,
        agent=agent,
        part_of=task.part_of or (task.name if task.detect else ""),
    )


def _times(timeout_s: float | None, ttl_s: int | None, max_ttl_s: int, notes: list[str]) -> tuple[float, int]:
    """Return how long all tasks together may take, and the machine's time to live."""
    wanted = ttl_s or int((timeout_s or DEFAULT_TIMEOUT_S) + SET_UP_S)
    if (ttl_s or timeout_s or 0) > max_ttl_s:
        notes.append(f"The machine exists for at most {max_ttl_s / 60:g} minutes here, less than the workflow requests.")
    limited_ttl_s = min(wanted, max_ttl_s)
    return min(timeout_s or float(ttl_s or DEFAULT_TIMEOUT_S), float(limited_ttl_s)), limited_ttl_s


def _github(workflow: Workflow, event: EventContext) -> dict[str, str]:
    """Return the `github` context of conditions, with every name of expressions.GITHUB_NAMES."""
    pull_request = event.pull_request
    return {
        "event_name": event.event_name,
        "actor": event.actor,
        "sha": event.sha,
        "ref": f"refs/pull/{pull_request.number}/head",
        "head_ref": pull_request.head_ref,
        "base_ref": pull_request.base_ref,
        "repository": event.repository.full_name,
        "repository_owner": event.repository.owner,
        "workflow": workflow.title,
        "number": str(pull_request.number),
    }
