"""The commits of one run, from the changes on its machine to GitHub, in steps that another process can continue.

Before the branch moves, the new head is stored with the run. A process that continues compares the branch with it: the branch
moved already, or it still has to move, or it has other commits; then the changes remain as a patch. Nothing is pushed twice,
and no newer commit is overwritten.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from gibil_bot.errors import GibilError, GitHubError, HostUnavailable
from gibil_bot.humanize import count
from gibil_bot.model import Claim, CommitPlan, CommitProgress, Run
from gibil_bot.ports import RunRecorder, Shell
from gibil_bot.runs.logs import check_free_space
from gibil_bot.runs.run_files import RunFiles

log = logging.getLogger("gibil.runner")

PATCH = "changes.patch"
"""Name of the patch in a run's folder."""
_MOST_PATCH_BYTES = 8 * 1024 * 1024
DROPPED_SHOWN = 100
_CANCELLED = "The run was cancelled before its commits were pushed."


class ChangesRejected(GibilError):
    """The changes break a rule, so they don't leave the machine. The message says which, for people."""

    code = "COMMIT_REJECTED"


class BranchMoved(GibilError):
    """The branch has commits that the new ones aren't based on."""

    code = "BRANCH_MOVED"


class PushNotAllowed(GibilError):
    """GitHub doesn't allow the App to write there."""

    code = "PUSH_NOT_ALLOWED"


class BranchClosed(PushNotAllowed):
    """The commits can't be on their branch, but may be on another one: GitHub doesn't allow the App to write to the fork, or a
    patch is for older commits of the branch.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Checked commits, in a repository of the bot."""

    base: str
    """The commit that they are based on."""
    head: str
    """The last commit on the machine."""
    commits: int
    files: int
    size: int
    """Bytes of new content."""
    dropped: tuple[str, ...] = ()
    """Changed paths outside the plan's `paths`."""
    remark: str = ""
    """What was left out on the machine, for people."""
    patch: bytes = b""
    """The same changes for `git am`; empty if they are too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The branch that receives the commits."""

    repository: str
    branch: str
    head: str | None
    """None: the branch doesn't exist."""


class CommitSteps(Protocol):
    """The steps, each safe to repeat. All raise GitHubError, and those with a machine MachineLost, SSHError, TimeoutError."""

    async def collect(self, shell: Shell | None, run: Run, base: str) -> Changes | None:
        """Fetch, store and check what the run changed since `base`; None if nothing changed.

        Raises ChangesRejected, HostUnavailable, GitHubError.
        After a GitHubError the changes are stored, but not checked.
        Without a machine, read the stored changes of the run, or those of `run.plan.applies`, whatever their base.
        """

    async def has_stored(self, run: Run) -> bool:
        """Return whether the run's changes are stored. Raises HostUnavailable if they may be on another host."""

    async def discard(self, run: Run) -> None:
        """Delete the stored changes of the run, which aren't needed any more."""

    async def rebase(self, shell: Shell | None, run: Run, onto: Target) -> bool:
        """Rebase the changes on the machine; False if they conflict."""

    async def target(self, run: Run, plan: CommitPlan) -> Target:
        """Return the branch as it is now. Raises PushNotAllowed, BranchClosed."""

    async def elsewhere(self, run: Run, plan: CommitPlan) -> Target | None:
        """Return a branch to use in place of a closed one; None if there must be none. Raises PushNotAllowed."""

    async def create(self, run: Run, changes: Changes, target: Target) -> str:
        """Create the commits at GitHub, without a branch; return the new head. Raises PushNotAllowed, BranchClosed."""

    async def head(self, run: Run, repository: str, branch: str) -> str | None:
        """Return the branch's head; None if it doesn't exist."""

    async def contains(self, run: Run, repository: str, branch: str, sha: str) -> bool:
        """Return whether the branch has the commit."""

    async def move(self, run: Run, target: Target, sha: str) -> None:
        """Move the branch forward, or create it. Raises BranchMoved, PushNotAllowed, BranchClosed."""

    async def announce(self, run: Run, plan: CommitPlan, progress: CommitProgress) -> str | None:
        """Open the plan's pull request, if it has one and none is open; return the URL to show."""


class RunCommits:
    """Moves the changes of one run to GitHub. `folder`: of this run, on the bot's disk."""

    def __init__(
        self,
        steps: CommitSteps,
        runs: RunRecorder,
        claim: Claim,
        plan: CommitPlan,
        folder: Path,
        *,
        redact: Callable[[str], str],
        files: RunFiles | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """`files`: if other hosts may have the run's."""
        self._steps, self._runs, self._claim, self._plan = steps, runs, claim, plan
        self._run = claim.run
        self._folder = folder
        self._files = files
        self._redact = redact
        self._is_cancelled = is_cancelled
        self.progress = claim.run.commit
        self._changes: Changes | None = None
        self._why = ""
        """Why the commits are on another branch than planned."""

    async def from_machine(self, shell: Shell | None) -> CommitProgress:
        """Collect, check, create and move. Without a machine, the changes are those of `Plan.applies`.

        Raises MachineLost, SSHError, TimeoutError, ClaimLost, StoreError.
        """
        progress = await self.without_machine()
        if progress is not None:
            return progress
        run, plan = self._run, self._plan
        try:
            changes = await self._steps.collect(shell, run, run.source.sha)
        except ChangesRejected as error:
            return await self._save(CommitProgress(phase="rejected", message=error.message))
        except (GitHubError, HostUnavailable) as error:
            return await self._unchecked(error)
        if changes is None:
            return await self._save(CommitProgress(phase="unchanged"))
        await self._collected(changes)
        if not changes.commits:
            return await self._unchanged()
        if plan.to == "patch":
            return await self._patch("")
        try:
            try:
                return await self._to_branch(shell, await self._steps.target(run, plan))
            except BranchClosed as error:
                target = await self._steps.elsewhere(run, plan)
                if target is None:
                    raise
                self._why = f"{error.message.rstrip('.')}; so the commits are on a new branch."
                return await self._to_branch(shell, target)
        except ChangesRejected as error:
            return await self._save(CommitProgress(phase="rejected", message=error.message))
        except (PushNotAllowed, GitHubError) as error:
            return await self._patch(_why(error))

    async def _to_branch(self, shell: Shell | None, target: Target) -> CommitProgress:
        """Push to that branch, after one rebase if it has moved."""
        run, plan = self._run, self._plan
        for may_rebase in (plan.on_conflict == "rebase", False):
            if self._is_cancelled():
                return await self._patch(_CANCELLED)
            assert self._changes is not None
            try:
                if target.head not in (None, self._changes.base):
                    raise _moved(target)
                return await self._push(self._changes, target)
            except BranchMoved as error:
                head = await self._steps.head(run, target.repository, target.branch)
                target = dataclasses.replace(target, head=head)
                if run.plan.applies is not None and target.head is not None:
                    raise BranchClosed(error.message) from error
                if not may_rebase or target.head is None:
                    return await self._patch(error.message)
                if not await self._steps.rebase(shell, run, target):
                    return await self._patch(f"{error.message}, and the changes don't apply to them")
                rebased = await self._steps.collect(shell, run, target.head)
                if rebased is None or not rebased.commits:
                    return await self._unchanged()
                await self._collected(rebased)
        raise AssertionError("the last attempt returns")

    async def without_machine(self) -> CommitProgress | None:
        """Finish what an earlier process began, if no machine is needed for it. None: it has to begin again."""
        progress = self.progress
        if progress is None or progress.phase == "collected":
            return None
        if progress.is_final or progress.created is None:
            return progress
        target = Target(repository=progress.repository, branch=progress.branch, head=progress.expected or None)
        try:
            return await self._move(progress, target, progress.created)
        except (BranchMoved, PushNotAllowed, GitHubError) as error:
            return await self._patch(_why(error))

    async def cancelled(self) -> CommitProgress | None:
        """Finish what an earlier process began without pushing: the branch may have the commits already."""
        progress = self.progress
        if progress is None or progress.is_final:
            return progress
        if progress.created is not None:
            with contextlib.suppress(GitHubError, PushNotAllowed):
                if await self._steps.contains(self._run, progress.repository, progress.branch, progress.created):
                    return await self._save(replace(progress, phase="moved"))
        return await self._patch(_CANCELLED)

    async def without_lost_machine(self) -> CommitProgress | None:
        """Continue with the stored changes, since the machine was lost. None: nothing was collected from it."""
        if self.progress is None or self.progress.phase != "collected":
            return await self.without_machine()
        lost = "The machine was lost before its commits were pushed."
        try:
            if not await self._steps.has_stored(self._run):
                return await self._patch(lost)
        except HostUnavailable as error:
            return await self._patch(f"{lost} {error.message}.")
        return await self.from_machine(None)

    async def patch(self) -> str:
        """Return the stored patch, which another host may have; empty if there is none, or it can't be read.

        Raises ClaimLost, StoreError.
        """
        progress = self.progress
        if progress is None or not progress.patch:
            return ""
        try:
            if self._files is not None:
                run, most = self._run, _MOST_PATCH_BYTES
                digest = progress.patch_digest

                def are_wanted(folder: Path) -> bool:
                    return digest in ("", _digest((folder / PATCH).read_bytes()))

                found = await self._files.copy(
                    run.id, run.hosts, (PATCH,), self._folder, most_bytes=most, are_wanted=are_wanted
                )
                if found is None:
                    return ""
            return await asyncio.to_thread((self._folder / PATCH).read_text, "utf-8", "replace")
        except OSError:
            return ""
        except HostUnavailable as error:
            if error.message not in progress.message:
                await self._save(replace(progress, message=_together(progress.message, f"{error.message}.")))
            return ""

    async def _push(self, changes: Changes, target: Target) -> CommitProgress:
        created = await self._steps.create(self._run, changes, target)
        assert self.progress is not None
        progress = replace(
            self.progress,
            phase="created",
            repository=target.repository,
            branch=target.branch,
            expected=target.head or "",
            created=created,
            message=_together(self.progress.message, self._why),
        )
        await self._save(progress)
        if self._is_cancelled():  # creating them may have waited for GitHub
            return await self._patch(_CANCELLED)
        return await self._move(progress, target, created)

    async def _move(self, progress: CommitProgress, target: Target, created: str) -> CommitProgress:
        """Move the branch, unless it moved already. Raises BranchMoved, PushNotAllowed, GitHubError."""
        run, repository, branch = self._run, target.repository, target.branch
        head = await self._steps.head(run, repository, branch)
        if head is None and target.head is not None:
            raise PushNotAllowed(f"{repository} has no branch {branch} any more: it was deleted or renamed")
        if head != target.head:
            # An earlier process may have moved it, and others may have pushed on top since.
            if not await self._steps.contains(run, repository, branch, created):
                raise _moved(target)
        else:
            try:
                await self._steps.move(run, target, created)
            except (GitHubError, PushNotAllowed):
                # The response may have been lost after the branch moved.
                if not await self._steps.contains(run, repository, branch, created):
                    raise
        try:
            url = await self._steps.announce(self._run, self._plan, progress)
        except (GitHubError, PushNotAllowed) as error:
            return await self._save(replace(progress, phase="moved", message=_together(progress.message, error.message)))
        return await self._save(replace(progress, phase="moved", url=url))

    async def _collected(self, changes: Changes) -> None:
        self._changes = changes
        has_patch = bool(changes.patch) and await asyncio.to_thread(_write, self._folder / PATCH, changes.patch)
        remarks = [changes.remark] if changes.remark else []
        if changes.dropped:
            remarks.append(f"{count(len(changes.dropped), 'changed file')} outside `paths` left out.")
        await self._save(
            CommitProgress(
                phase="collected",
                expected=changes.base,
                head=changes.head,
                patch=has_patch,
                patch_digest=await asyncio.to_thread(_digest, changes.patch) if has_patch else "",
                commits=changes.commits,
                files=changes.files,
                bytes=changes.size,
                dropped=tuple(self._redact(path) for path in changes.dropped[:DROPPED_SHOWN]),
                message=" ".join(remarks),
            )
        )

    async def _unchanged(self) -> CommitProgress:
        """Nothing is left: only other paths changed, or the branch has the same changes."""
        dropped = self.progress.dropped if self.progress is not None else ()
        return await self._save(CommitProgress(phase="unchanged", dropped=dropped))

    async def _unchecked(self, error: GitHubError | HostUnavailable) -> CommitProgress:
        """Nothing can be said about the changes without GitHub, or the host that has them, but they can be applied later."""
        is_stored = self._run.plan.applies is not None or await self._is_stored()
        expected = self._run.source.sha
        return await self._save(CommitProgress(phase="patch", expected=expected, unchecked=is_stored, message=_why(error)))

    async def _is_stored(self) -> bool:
        try:
            return await self._steps.has_stored(self._run)
        except HostUnavailable:
            return True  # maybe, and the button says it otherwise

    async def _patch(self, why: str) -> CommitProgress:
        progress = self.progress or CommitProgress(phase="collected")
        return await self._save(replace(progress, phase="patch", message=why or progress.message))

    async def _save(self, progress: CommitProgress) -> CommitProgress:
        progress = replace(progress, message=self._redact(progress.message))
        await self._runs.save_commit(self._claim, progress)
        self.progress = progress
        if progress.is_final and progress.phase != "patch":
            await self._steps.discard(self._run)
        return progress


def _together(*sentences: str) -> str:
    return " ".join(text for text in sentences if text)


def _why(error: GibilError) -> str:
    if isinstance(error, GitHubError) and error.retry_after_s is not None:
        return f"GitHub didn't accept them in time ({error.message})"
    return error.message


def _moved(target: Target) -> BranchMoved:
    return BranchMoved(f"{target.branch} has other commits than when the run began")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write(path: Path, data: bytes) -> bool:
    """Write a file; False if the disk is full."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_free_space(path.parent, len(data))
        path.write_bytes(data)
    except OSError as error:
        log.warning("run %s: its patch can't be stored: %s", path.parent.name, error.strerror)
        return False
    return True
