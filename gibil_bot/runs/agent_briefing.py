"""The prompts of agents with their data, and which files of the repository may instruct agents."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from gibil_bot import git
from gibil_bot.agent_task import FailedTask
from gibil_bot.agents.context import CheckoutText, Context, Prompt, PullRequestText, Round, assemble
from gibil_bot.agents.engine import Engine
from gibil_bot.agents.instructions import PutBack, Replaced, base_files, put_back, replace, steering_globs
from gibil_bot.agents.pull_request import Trigger, pull_request_context
from gibil_bot.github.review import FORMAT
from gibil_bot.model import Run, TaskPlan, Trust
from gibil_bot.ports import GitHub, RunStore, Shell
from gibil_bot.runs.agent_values import Briefing
from gibil_bot.runs.last_failure import failed_tasks, last_failed_run
from gibil_bot.scripts.clone import WORKSPACE

FINDINGS = "findings.json"
"""The file that an agent whose output is a review writes, in the folder of its round."""
DIFF_BYTES = 8 * 1024 * 1024
"""The largest diff of a checkout that is read."""
_NAMED = 10


class PullRequestBriefing(Briefing):
    """For runs of a pull request."""

    def __init__(self, github: GitHub, runs: RunStore, run: Run) -> None:
        self._github = github
        self._runs = runs
        self._run = run
        self._boundary = secrets.token_hex(16)
        self._pull: PullRequestText | None = None
        self._replaced: Replaced | None = None

    @property
    def diff(self) -> bytes | None:
        """What the pull request changes; None if GitHub doesn't show it, or no prompt was made."""
        return self._pull.diff if self._pull is not None else None

    async def prompt(
        self, task: TaskPlan, engine: Engine, failed: Sequence[FailedTask], rounds: Sequence[Round], folder: str
    ) -> Prompt:
        assert task.agent is not None
        if self._pull is None:
            self._pull = await pull_request_context(self._github, self._run.source, await self._trigger())
        if "last-failure" in task.agent.context and not failed:
            failed = await self._last_failure()
        return assemble(
            Context(
                prompt=complete(task, engine, folder),
                request=self._run.source.request,
                pull_request=self._pull,
                failed=tuple(failed),
                rounds=tuple(rounds),
                replaced_files=self._replaced.removed if self._replaced is not None else (),
            ),
            self._boundary,
            workspace=WORKSPACE,
            folder=f"{folder}/context",
        )

    async def _last_failure(self) -> tuple[FailedTask, ...]:
        source = self._run.source
        run = await last_failed_run(self._runs, source.repository.id, source.pull_request.number)
        return await failed_tasks(self._runs, run) if run is not None else ()

    async def _trigger(self) -> Trigger:
        """Return since when edited comments don't count: since the request was written, or else delivered."""
        source, comment_id = self._run.source, self._run.source.comment_id
        at = self._run.queued_at
        if comment_id is not None:
            at = await self._github.comment_time(source.installation_id, source.repository.full_name, comment_id) or at
        return Trigger(at=at, comment_id=comment_id)

    async def guard(self, shell: Shell, engine: Engine, state: str) -> None:
        if self._run.source.trust is Trust.TRUSTED:
            return
        steering = steering_globs(engine.instruction_files)
        self._replaced = await replace(shell, await base_files(self._github, self._run.source, steering), steering, state)

    async def unguard(self, shell: Shell, engine: Engine, state: str) -> tuple[str, ...]:
        if self._replaced is None:
            return ()
        sha = self._run.source.sha
        return notes_of(await put_back(shell, sha, steering_globs(engine.instruction_files), state))


class CheckoutBriefing(Briefing):
    """For runs of a checkout on this computer, whose owner is the requester."""

    def __init__(self, repository: Path, name: str, sha: str) -> None:
        """`repository`: our bare one, with the commit and its base branch in `origin`."""
        self._repository, self._name, self._sha = repository, name, sha
        self._boundary = secrets.token_hex(16)
        self._checkout: CheckoutText | None = None

    @property
    def diff(self) -> bytes | None:
        """What the commit changes of its base branch; None if that can't be read, or no prompt was made."""
        return self._checkout.diff if self._checkout is not None else None

    async def prompt(
        self, task: TaskPlan, engine: Engine, failed: Sequence[FailedTask], rounds: Sequence[Round], folder: str
    ) -> Prompt:
        if self._checkout is None:
            diff = await base_diff(self._repository, self._sha)
            self._checkout = CheckoutText(repository=self._name, sha=self._sha, diff=diff)
        context = Context(
            prompt=complete(task, engine, folder),
            checkout=self._checkout,
            failed=tuple(failed),
            rounds=tuple(rounds),
        )
        return assemble(context, self._boundary, workspace=WORKSPACE, folder=f"{folder}/context")

    async def guard(self, shell: Shell, engine: Engine, state: str) -> None:
        """Nothing is replaced: the checkout is the user's own."""

    async def unguard(self, shell: Shell, engine: Engine, state: str) -> tuple[str, ...]:
        return ()


async def base_diff(repository: Path, sha: str) -> bytes | None:
    """Return what a commit changes of the base branch that the repository has in `origin`; None if that can't be read."""
    arguments = ["diff", "--no-color", "--no-ext-diff", "--no-textconv"]
    try:
        base = await git.text("for-each-ref", "--count=1", "--format=%(objectname)", "refs/remotes/origin/", git_dir=repository)
        if not base:
            return None
        arguments += [f"{base}...{sha}", "--"]
        return await git.run(*arguments, git_dir=repository, extra=git.NO_FETCH, most_bytes=DIFF_BYTES, within_s=30.0)
    except git.GitError:
        return None


def complete(task: TaskPlan, engine: Engine, folder: str) -> str:
    """Return a task's prompt with what its engine and its output need."""
    assert task.agent is not None
    parts = [task.agent.prompt]
    if engine.unread_instructions:
        names = ", ".join(engine.unread_instructions)
        parts.append(f"The repository's instructions for agents, if it has any, are in {names}: read and follow them.")
    if task.agent.output == "review":
        parts.append(FORMAT.format(path=f"{folder}/{FINDINGS}"))
    return "\n\n".join(parts)


def notes_of(put: PutBack) -> tuple[str, ...]:
    """Return what a person should know of the files that steer agents. The names come from the machine."""
    notes = []
    if put.dropped:
        more = len(put.dropped) - _NAMED
        names = ", ".join(put.dropped[:_NAMED]) + (f" and {more} more" if more > 0 else "")
        notes.append(f"The agent's changes of files that steer agents were dropped: {names}.")
    if put.rewritten:
        notes.append("The agent had committed such changes, so that all of its commits became one.")
    if put.lost:
        notes.append("The agent deleted what was stored of the files that steer agents, so they are those of the commit again.")
    return tuple(notes)
