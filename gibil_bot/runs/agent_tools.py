"""What agent tasks of all runs of a process share, and the names of one task's token and files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from gibil_bot.agents.engine import Engine
from gibil_bot.agents.launch import install_task, model_of
from gibil_bot.agents.prices import Prices
from gibil_bot.agents.proxy.server import ModelProxy
from gibil_bot.errors import UsageError
from gibil_bot.model import EgressRestriction, Plan, Run
from gibil_bot.model_settings import ModelSettings
from gibil_bot.operator_secrets import Secret
from gibil_bot.ports import Ledger, Shell
from gibil_bot.runs.agent_values import Briefing
from gibil_bot.ssh.shell import SSHShell


@dataclass(frozen=True, kw_only=True)
class AgentTools:
    """What agent tasks of all runs of this process share."""

    engines: Mapping[str, Engine]
    settings: ModelSettings
    proxy: ModelProxy
    prices: Prices
    ledger: Ledger
    briefing: Callable[[Run], Briefing]
    open_shell: Callable[[str], Awaitable[SSHShell]]
    """Opens a further connection to the machine of that name."""
    restrict: Callable[[str, tuple[str, ...], Shell], Awaitable[EgressRestriction]]
    """Limits what the machine of that name reaches to an `allow:`. Raises ProviderError; then no agent may start."""
    token: Callable[[str], Secret]
    """Derives the token of a task from its name, so that a program goes on when another process continues the run."""

    def engine(self, name: str) -> Engine:
        """Raises UsageError."""
        if (engine := self.engines.get(name)) is None:
            raise UsageError(f"the engine {name!r} is unknown here; known are {', '.join(sorted(self.engines))}")
        return engine

    def vendor_of(self, engine: Engine, model: str) -> str:
        """Return whose key a task needs; empty if it uses no model."""
        return engine.provider or (vendor_of_model(model) if model else "")

    def with_engines(self, plan: Plan) -> Plan:
        """Return the plan with the tasks that install its agents' engines, before all others; unchanged if it has them."""
        names = dict.fromkeys(task.agent.engine for task in plan.tasks if task.agent is not None)
        wanted = [task for name in names if (task := install_task(self.engine(name))) is not None]
        missing = tuple(task for task in wanted if all(task.run != other.run for other in plan.tasks))
        return replace(plan, tasks=(*missing, *plan.tasks)) if missing else plan

    def tokens(self, run: Run, machine_attempt: int) -> list[Secret]:
        """Return the tokens that the agents of a run have, to be masked in whatever form they print them."""
        return [
            self.token(token_name(run, machine_attempt, index, attempt))
            for index, task in enumerate(run.plan.tasks)
            if task.agent is not None
            for attempt in (range(1, task.agent.attempts + 1) if task.agent.attempts > 1 else (0,))
        ]

    def problem(self, run: Run) -> str | None:
        """Return why the agents of a run can't work here, before a machine is created."""
        for task in run.plan.tasks:
            if task.agent is None:
                continue
            try:
                engine = self.engine(task.agent.engine)
                if vendor := self.vendor_of(engine, model_of(engine, task.agent)):
                    self.proxy.require_key(vendor)
            except UsageError as error:
                return f"The agent of {task.name!r} can't work: {error.message}."
        return None


def vendor_of_model(model: str) -> str:
    """Return whose API has a model of that name, for programs that no engine describes."""
    name = model.lower().rpartition("/")[2]
    if name.startswith("claude"):
        return "anthropic"
    return "gemini" if name.startswith("gemini") else "openai"


PROTOCOLS = {"anthropic": "anthropic", "openai": "chat", "gemini": "gemini"}
"""Of programs that no engine describes."""


def task_name(index: int, attempt: int) -> str:
    return f"{index}-{attempt}" if attempt else f"{index}"


def token_name(run: Run, machine_attempt: int, index: int, attempt: int) -> str:
    """Return the name of a task's token."""
    return f"{run.id}/{machine_attempt}/{task_name(index, attempt)}"
