"""What agent tasks take and return. Without imports of what only agents need, because every run reads this module."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from gibil_bot.agent_task import AgentResult, FailedTask
from gibil_bot.model import Machine, Notification, TaskPlan, TaskStatus
from gibil_bot.ports import Provider, Shell
from gibil_bot.runs.machine_room import MachineRoom

if TYPE_CHECKING:
    from gibil_bot.agents.context import Prompt, Round
    from gibil_bot.agents.engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """A task that is run after each round of an agent's work."""

    task: TaskPlan
    env: Mapping[str, str]


class Briefing(Protocol):
    """The prompts of one run's agents, and which files of the repository may instruct them."""

    @property
    def diff(self) -> bytes | None:
        """What the pull request changes, once a prompt was made; None if there is none."""

    async def prompt(
        self, task: TaskPlan, engine: Engine, failed: Sequence[FailedTask], rounds: Sequence[Round], folder: str
    ) -> Prompt:
        """Return the prompt of one round, whose folder on the machine is `folder`. Raises GitHubError."""

    async def guard(self, shell: Shell, engine: Engine, state: str) -> None:
        """Replace the files that steer agents, if the head is untrusted. `state`: a folder of the machine for what is put back.

        After an error no agent may start. Raises GitHubError, SSHError.
        """

    async def unguard(self, shell: Shell, engine: Engine, state: str) -> tuple[str, ...]:
        """Put them back; return notes for people. Safe to repeat. Raises SSHError."""


@dataclass(frozen=True, kw_only=True)
class RunMachines:
    """The machines of one run."""

    provider: Provider
    create: Callable[[str, str | None], Awaitable[tuple[Machine, Shell]]]
    """(name, layer) → a machine like the run's own one, which starts from the layer."""
    reopen: Callable[[str], Awaitable[Shell]]
    """Opens a further connection to the machine of that name."""
    destroy: Callable[[str], Awaitable[object]]
    room: MachineRoom


@dataclass(frozen=True, kw_only=True)
class AgentOutcome:
    """How an agent task ended."""

    status: TaskStatus
    detail: str
    exit_status: int | None
    result: AgentResult
    review: Notification | None = None
    """Comments on lines of the pull request."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What later tasks on the machine need, because it stays limited to the allow-list."""


def agents_missing() -> str:
    return (
        "Agents can't work here, because the bot has no key of a model: its operator can set GIBIL_MODEL_KEY_ANTHROPIC, "
        "GIBIL_MODEL_KEY_OPENAI or GIBIL_MODEL_KEY_GEMINI."
    )


def cannot_copy(attempts: int, provider: str) -> str:
    return (
        f"`attempts: {attempts}` needs machines that can be copied, and those of {provider} can't: use local machines, or "
        "remove `attempts`"
    )
