"""The newest failed run of a pull request, for agents that explain it."""

from __future__ import annotations

from gibil_bot.agent_task import FailedTask
from gibil_bot.model import Conclusion, Plan, Run
from gibil_bot.ports import RunStore

_FAILED_RUN = (Conclusion.FAILURE, Conclusion.TIMED_OUT)

NONE_FAILED = "No run of this pull request has failed, so there is nothing to explain."


def is_wanted(plan: Plan) -> bool:
    """Return whether an agent of this plan asks for the newest failed run."""
    return any(task.agent is not None and "last-failure" in task.agent.context for task in plan.tasks)


async def last_failed_run(runs: RunStore, repository_id: int, number: int) -> Run | None:
    """Return the newest run of a pull request that failed, except those that explain another."""
    for run in await runs.of_repository(repository_id, number=number):
        if run.conclusion in _FAILED_RUN and not is_wanted(run.plan):
            return run
    return None


async def failed_tasks(runs: RunStore, run: Run) -> tuple[FailedTask, ...]:
    """Return the failed tasks of a run; if none has failed, the run itself with its reason. Texts are redacted."""
    of = f"{run.plan.workflow} at {run.source.sha[:7]}"
    tasks = tuple(
        FailedTask(
            name=f"{result.name} ({of})",
            exit_status=result.exit_status,
            output="\n".join(filter(None, (result.tail.rstrip("\n"), result.detail))),
        )
        for result in await runs.task_results(run.id, run.machine_attempt)
        if result.status.has_failed
    )
    if tasks:
        return tasks
    reasons = (run.note, run.commit.message if run.commit is not None else None)
    return (FailedTask(name=of, output="\n".join(filter(None, reasons))),)
