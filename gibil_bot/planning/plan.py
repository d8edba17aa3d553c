"""Workflows and an event become plans: everything decided, nothing left to ask, and printable as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import msgspec

from gibil_bot.caps import NO_CAPS, Caps, capped
from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.humanize import nearest
from gibil_bot.limits import REPOSITORY_FILE
from gibil_bot.model import Command, MachinePlan, Plan, PullRequest, Repository, TaskPlan, Trust
from gibil_bot.planning import expressions
from gibil_bot.planning.catalogue import Catalogue, CommandHelp, catalogue, check_files, commands, why_unknown
from gibil_bot.planning.inputs import input_values, typed_values
from gibil_bot.planning.schema import workflow_name
from gibil_bot.planning.services import ServiceCapabilities, check_services, services_script
from gibil_bot.planning.workflow import RepositoryFile, Task, Workflow
from gibil_bot.scripts.task_script import set_up_script

__all__ = [
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
SET_UP_S = 600
"""What a machine lives beyond its tasks' time when the workflow does not say: forging, cloning, reporting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EventContext:
    """What is known about the event that asks."""

    repository: Repository
    pull_request: PullRequest
    sha: str
    actor: str
    trust: Trust
    event_name: str
    """GitHub's word: issue_comment, pull_request …"""
    max_ttl_s: int
    caps: Caps = NO_CAPS
    """What the operator allows a machine to be at most."""
    grounds: ServiceCapabilities | None = None
    """What the machines can do for services; None: it is not known here, and the machine will say."""
    untrusted_because: str = ""
    """Why the run is untrusted, a clause for its report."""


def for_command(known: Catalogue, command: Command, facts: EventContext) -> tuple[Plan, ...]:
    """The plans of every workflow with that command word, one as a rule. Raises UsageError with a sentence for people."""
    if command.problem:
        raise UsageError(command.problem)
    word = command.word
    asked = [workflow for workflow in known.workflows if workflow.command == word]
    if not asked:
        raise UsageError(why_unknown(known, word))
    return tuple(
        _plan(known, workflow, input_values(workflow.inputs, command.arguments, word=word), facts) for workflow in asked
    )


class NotOnTheseMachines(UsageError):
    """The repository asks for what the machines here cannot do."""


def for_pull_request(known: Catalogue, action: str, facts: EventContext) -> tuple[tuple[Plan, ...], tuple[str, ...]]:
    """The plans of every workflow that this action of a pull request starts, and why others should run and cannot here.

    A workflow that has nothing to do in this repository (it needs a `.gibil.yml` that is absent or broken) is left out: nobody
    asked for it by name. Broken files are in `known.problems`.
    """
    plans, refusals = [], []
    for workflow in known.workflows:
        if action in workflow.pull_request:
            try:
                plans.append(_plan(known, workflow, input_values(workflow.inputs, {}, word=workflow.name), facts))
            except NotOnTheseMachines as refusal:
                refusals.append(refusal.message)
            except UsageError:
                continue
    return tuple(plans), tuple(refusals)


def for_workflow(known: Catalogue, name: str, arguments: Mapping[str, str], facts: EventContext) -> Plan:
    """The plan of one workflow by its name, whatever starts it: for the command line. Raises UsageError."""
    found = next((workflow for workflow in known.workflows if workflow.name == name), None)
    if found is None:
        problem = next((problem for problem in known.problems if workflow_name(problem.path) == name), None)
        names = [workflow.name for workflow in known.workflows]
        there_are = nearest(name, names) or (f"; there are {', '.join(names)}" if names else "; there are none")
        raise UsageError(str(problem) if problem else f"there is no workflow {name!r}{there_are}")
    return _plan(known, found, input_values(found.inputs, arguments, word=found.command or name), facts)


def again(known: Catalogue, name: str, inputs: Mapping[str, str], facts: EventContext) -> Plan:
    """The plan of a workflow that ran before, made from today's files for today's commit, branches and person. Inputs that
    the workflow no longer has are left out. Raises UsageError."""
    found = next((workflow for workflow in known.workflows if workflow.name == name), None)
    kept = {each.name: inputs[each.name] for each in found.inputs if each.name in inputs} if found is not None else {}
    return for_workflow(known, name, kept, facts)


def plan_view(plan: Plan) -> dict[str, object]:
    """A plan as JSON values: what `gibil plan` prints."""
    return cast(dict[str, object], msgspec.to_builtins(plan))


# --- one plan ----------------------------------------------------------------------------------------------------


def _plan(known: Catalogue, workflow: Workflow, inputs: dict[str, str], facts: EventContext) -> Plan:
    notes: list[str] = []
    own_file = _used_file(known, workflow, facts.grounds)
    tasks = _expand(workflow, own_file)
    if own_file is not None and own_file.tasks:
        notes.append(f"The tasks are those of {own_file.path}.")
    secrets = workflow.secrets
    if secrets and facts.trust is not Trust.TRUSTED:
        because = f", because {facts.untrusted_because}" if facts.untrusted_because else ""
        notes.append(f"Without its secrets ({', '.join(secrets)}): the run is untrusted{because}.")
        secrets = ()
    # The repository's file is about the project, so its machine overrides the workflow's.
    wanted = workflow.machine.overridden_by(own_file.machine) if own_file else workflow.machine
    timeout_s, ttl_s = _times(workflow.timeout_s, wanted.ttl_s, facts.max_ttl_s, notes)
    machine, cap_notes = capped(MachinePlan(**wanted.said() | {"ttl_s": ttl_s}), facts.caps)
    notes += cap_notes
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
        machine=machine,
        timeout_s=timeout_s,
        comment=workflow.comment,
        concurrency_group=group,
        cancel_in_progress=cancel,
        github=github,
        notes=tuple(notes),
    )


def _used_file(known: Catalogue, workflow: Workflow, grounds: ServiceCapabilities | None) -> RepositoryFile | None:
    """The `.gibil.yml` that this workflow uses, if it uses one and the repository has one."""
    using = next((task for task in workflow.tasks if task.uses), None)
    if using is None:
        return None
    if known.repository_problem is not None:
        raise UsageError(f"{workflow.title} uses a file that cannot be read: {known.repository_problem}")
    if known.repository_file is not None and grounds is not None:
        try:
            check_services(known.repository_file, grounds)
        except InvalidWorkflow as problem:
            raise NotOnTheseMachines(f"{workflow.title} cannot run here: {problem}") from None
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
        beginning = {"set up": script, "services": services_script(own_file.services)}
        inner = [Task(name=name, run=run, shell="sh") for name, run in beginning.items() if run]  # noqa: S604 (a word)
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


def _times(timeout_s: float | None, ttl_s: int | None, max_ttl_s: int, notes: list[str]) -> tuple[float, int]:
    """How long the tasks may take together, and how long the machine lives."""
    wanted = ttl_s or int((timeout_s or DEFAULT_TIMEOUT_S) + SET_UP_S)
    if (ttl_s or timeout_s or 0) > max_ttl_s:
        notes.append(f"The machine lives {max_ttl_s / 60:g} minutes at most here, less than the workflow asks for.")
    lives_s = min(wanted, max_ttl_s)
    return min(timeout_s or float(ttl_s or DEFAULT_TIMEOUT_S), float(lives_s)), lives_s


def _github(workflow: Workflow, facts: EventContext) -> dict[str, str]:
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
