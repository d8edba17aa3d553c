"""When an agent that works until a task passes makes up for that task's failure."""

from __future__ import annotations

import pytest

from gibil_bot.agent_task import AgentPlan
from gibil_bot.model import Plan, TaskPlan, TaskResult, TaskStatus
from gibil_bot.runs.execution import conclusion_of

PREPARE = TaskPlan(name="install", run="x", kind="prepare", part_of="tests")
DETECTED = TaskPlan(name="pytest", run="x", part_of="tests")
TEST = TaskPlan(name="tests", run="x")
LINT = TaskPlan(name="lint", run="x")


def agent(until: str = "tests", *, continue_on_error: bool = False) -> TaskPlan:
    plan = AgentPlan(engine="command", prompt="p", until=until)
    return TaskPlan(name="fix", run="", agent=plan, condition="failure()", continue_on_error=continue_on_error)


@pytest.mark.parametrize(
    ("tasks", "statuses", "conclusion"),
    [
        ((TEST, agent()), "failure success", "success"),
        ((TEST, agent()), "timed_out success", "success"),
        ((TEST, agent()), "failure failure", "failure"),
        ((TEST, agent()), "failure timed_out", "failure"),
        ((TEST, agent()), "success skipped", "success"),
        # It wrote to GIBIL_NEUTRAL: nothing was repaired.
        ((TEST, agent()), "failure skipped", "failure"),
        ((TEST, agent(""),), "failure success", "failure"),
        ((TEST, LINT, agent()), "failure failure success", "failure"),
        ((TEST, agent(continue_on_error=True)), "failure failure", "failure"),
        ((TEST, agent(continue_on_error=True)), "failure success", "success"),
        # Tasks that replaced the one with the name, and the preparation for them.
        ((DETECTED, DETECTED, agent()), "failure failure success", "success"),
        ((PREPARE, DETECTED, agent()), "failure skipped success", "success"),
        # A task after the agent is not one that it repaired.
        ((TEST, agent(), TEST), "failure success failure", "failure"),
        # A second agent succeeds where the first one didn't.
        ((TEST, agent(), agent()), "failure failure success", "success"),
        ((TEST, agent(), agent()), "failure success failure", "failure"),
        ((TEST, agent(""), agent()), "failure failure success", "failure"),
    ],
)  # fmt: skip
def test_only_a_successful_agent_makes_up_for_the_tasks_that_it_worked_for(
    tasks: tuple[TaskPlan, ...], statuses: str, conclusion: str
) -> None:
    plan = Plan(workflow="fix", title="Fix", path="fix.yml", tasks=tasks)
    results = {
        index: TaskResult(index=index, machine_attempt=1, name=task.name, status=TaskStatus(status))
        for index, (task, status) in enumerate(zip(tasks, statuses.split(), strict=True))
    }
    assert conclusion_of(plan, results, cancelled=False) == conclusion
    assert conclusion_of(plan, results, cancelled=True) == "cancelled"
