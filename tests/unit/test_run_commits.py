"""The steps from a run's changes to its branch, with a branch that others change and a process that ends between two steps."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from gibil_bot.errors import GitHubError
from gibil_bot.model import Claim, CommitPlan, CommitProgress, Conclusion, NewRun, Plan, Run, Source, TaskPlan, Trust
from gibil_bot.ports import Shell
from gibil_bot.runs import logs
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.run_commits import (
    PATCH,
    BranchClosed,
    BranchMoved,
    Changes,
    ChangesRejected,
    PushNotAllowed,
    RunCommits,
    Target,
)
from gibil_bot.runs.runner import with_commits
from tests.doubles.facts import SHA, facts

NO_SHELL = cast(Shell, None)
OTHER = "0" * 40


class Killed(BaseException):
    """The process ends."""


class Branch:
    """One branch of a repository, and a machine whose changes are based on any commit. `fails` names a step that fails once."""

    def __init__(self, head: str | None = SHA) -> None:
        self.head_sha = head
        self.parents: dict[str, str] = {}
        self.heads: dict[str, str] = {}
        self.calls: list[str] = []
        self.fails: dict[str, BaseException] = {}
        self.changes = True
        self.rebases = True
        self.other: Target | None = None
        self.discarded = 0
        self.is_stored = True
        self.pushed_on_top = False
        """Whether another user pushes immediately after the branch moved."""

    def _step(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise self.fails.pop(name)

    async def collect(self, shell: Shell | None, run: Run, base: str) -> Changes | None:
        self._step("collect")
        if not self.changes:
            return None
        return Changes(base=base, head="e" * 40, commits=1, files=2, size=3, dropped=("log",), patch=b"From x\n")

    async def rebase(self, shell: Shell | None, run: Run, onto: Target) -> bool:
        self._step("rebase")
        return self.rebases

    async def target(self, run: Run, plan: CommitPlan) -> Target:
        self._step("target")
        return Target(repository="grace/engine", branch="faster", head=self.head_sha)

    async def elsewhere(self, run: Run, plan: CommitPlan) -> Target | None:
        self._step("elsewhere")
        return self.other

    async def has_stored(self, run: Run) -> bool:
        return self.is_stored

    async def discard(self, run: Run) -> None:
        self.discarded += 1

    async def create(self, run: Run, changes: Changes, target: Target) -> str:
        self._step("create")
        return self.commit_on(changes.base)

    def commit_on(self, parent: str) -> str:
        created = f"{len(self.parents) + 1:040x}"
        self.parents[created] = parent
        return created

    async def head(self, run: Run, repository: str, branch: str) -> str | None:
        self._step("head")
        return self.head_sha if branch == "faster" else self.heads.get(branch)

    async def contains(self, run: Run, repository: str, branch: str, sha: str) -> bool:
        self._step("contains")
        head = self.head_sha if branch == "faster" else self.heads.get(branch)
        while head is not None and head != sha:
            head = self.parents.get(head)
        return head == sha

    async def move(self, run: Run, target: Target, sha: str) -> None:
        self.calls.append("move")
        problem = self.fails.pop("move", None)
        if isinstance(problem, BranchMoved | PushNotAllowed):
            raise problem
        if self.parents[sha] != (target.head or SHA if target.branch != "faster" else self.head_sha):
            raise BranchMoved("not a fast-forward")
        if target.branch == "faster":
            self.head_sha = self.commit_on(sha) if self.pushed_on_top else sha
        self.heads[target.branch] = sha
        if problem is not None:  # the effect without its answer
            raise problem

    async def announce(self, run: Run, plan: CommitPlan, progress: CommitProgress) -> str | None:
        self._step("announce")
        return f"https://github.com/grace/engine/commit/{progress.created}"


async def claimed(runs: MemoryRuns, plan: CommitPlan, *, applies: str | None = None) -> Claim:
    event = facts()
    source = Source(
        installation_id=1,
        repository=event.repository,
        pull_request=event.pull_request,
        sha=SHA,
        trust=Trust.TRUSTED,
        actor="ada",
    )
    tasks = (TaskPlan(name="t", run="t"),)
    runs.queue(
        NewRun(
            id="r1",
            delivery_guid="g",
            source=source,
            plan=Plan(workflow="w", title="w", path="w", tasks=tasks, commit=plan, applies=applies),
        )
    )
    claim = await runs.claim("a", lease_s=60, max_machines=1)
    assert claim is not None
    return claim


class Journey:
    """One run whose commits several processes work on, one after another."""

    def __init__(self, folder: Path, branch: Branch, plan: CommitPlan) -> None:
        self.folder, self.branch, self.plan = folder, branch, plan
        self.runs = MemoryRuns()
        self.claim: Claim | None = None
        self.is_cancelled = False
        self.applies: str | None = None

    async def process(self) -> RunCommits:
        if self.claim is None:
            self.claim = await claimed(self.runs, self.plan, applies=self.applies)
        else:
            await self.runs.release(self.claim)
            self.claim = await self.runs.claim("b", lease_s=60, max_machines=1)
            assert self.claim is not None
        return RunCommits(
            self.branch,
            self.runs,
            self.claim,
            self.plan,
            self.folder,
            redact=lambda text: text.replace("hunter2", "***"),
            is_cancelled=lambda: self.is_cancelled,
        )

    async def stored(self) -> CommitProgress:
        run = await self.runs.get("r1")
        assert run is not None
        assert run.commit is not None
        return run.commit


def journey(tmp_path: Path, branch: Branch, plan: CommitPlan | None = None) -> Journey:
    return Journey(tmp_path / "run", branch, plan or CommitPlan(message="Format"))


async def test_changes_move_the_branch_once_and_the_state_is_stored(tmp_path: Path) -> None:
    branch = Branch()
    work = journey(tmp_path, branch)
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.created, progress.commits, progress.files) == ("moved", branch.head_sha, 1, 2)
    assert progress.dropped == ("log",)
    assert await work.stored() == progress
    again = await (await work.process()).from_machine(NO_SHELL)
    assert again == progress
    assert branch.calls.count("move") == 1


@pytest.mark.parametrize("step", ["target", "create", "head", "announce"])
async def test_a_process_that_is_killed_loses_nothing_and_repeats_nothing(tmp_path: Path, step: str) -> None:
    branch = Branch()
    branch.fails[step] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.created) == ("moved", branch.head_sha)
    assert branch.calls.count("move") == 1


@pytest.mark.parametrize("lost", ["head", "announce"])
async def test_commits_below_newer_ones_have_been_pushed(tmp_path: Path, lost: str) -> None:
    branch = Branch()
    branch.fails[lost] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    created = next(iter(branch.parents))
    branch.head_sha = branch.commit_on(created)
    branch.calls.clear()
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.created, branch.calls) == ("moved", created, ["head", "contains", "announce"])


async def test_a_lost_answer_does_not_hide_that_the_commits_were_pushed(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["move"] = GitHubError("the connection was closed")
    branch.pushed_on_top = True
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert progress.phase == "moved"
    assert branch.calls.count("create") == 1


async def test_a_branch_that_is_deleted_during_the_push_is_not_created_again(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["head"] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    branch.head_sha = None
    progress = await (await work.process()).without_machine()
    assert progress is not None
    assert (progress.phase, branch.head_sha) == ("patch", None)
    assert "no branch faster any more" in progress.message


@pytest.mark.parametrize("lost", ["create", "head", "announce"])
async def test_a_run_that_is_cancelled_while_no_process_works_on_it_pushes_nothing_more(tmp_path: Path, lost: str) -> None:
    branch = Branch()
    branch.fails[lost] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    head = branch.head_sha
    progress = await (await work.process()).cancelled()
    assert progress is not None
    assert (progress.phase, branch.head_sha) == ("moved" if lost == "announce" else "patch", head)
    assert await work.stored() == progress


async def test_a_process_that_is_killed_before_the_move_needs_no_machine_later(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["head"] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    branch.calls.clear()
    progress = await (await work.process()).without_machine()
    assert progress is not None
    assert progress.phase == "moved"
    assert branch.calls == ["head", "move", "announce"]


async def test_a_move_whose_answer_is_lost_counts(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["move"] = GitHubError("the connection was closed")
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.created) == ("moved", branch.head_sha)


async def test_changes_are_rebased_once_if_the_branch_has_moved(tmp_path: Path) -> None:
    branch = Branch(head=OTHER)
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.expected) == ("moved", OTHER)
    assert branch.calls.count("rebase") == 1
    assert branch.calls.count("create") == 1  # none on the old head


async def test_a_branch_that_moves_during_the_push_is_rebased_onto(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["move"] = BranchMoved("not a fast-forward")
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert progress.phase == "moved"
    assert branch.calls.count("rebase") == 1


@pytest.mark.parametrize("cause", ["conflict", "on-conflict: fail"])
async def test_newer_commits_are_never_overwritten_and_the_changes_remain_as_a_patch(tmp_path: Path, cause: str) -> None:
    branch = Branch(head=OTHER)
    branch.rebases = cause != "conflict"
    plan = CommitPlan(message="x", on_conflict="rebase" if cause == "conflict" else "fail")
    work = journey(tmp_path, branch, plan)
    commits = await work.process()
    progress = await commits.from_machine(NO_SHELL)
    assert progress.phase == "patch"
    assert "faster has other commits" in progress.message
    assert (branch.head_sha, await commits.patch()) == (OTHER, "From x\n")


async def test_a_branch_that_moved_while_the_process_was_dead_is_left_alone(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["head"] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    branch.head_sha = OTHER
    progress = await (await work.process()).without_machine()
    assert progress is not None
    assert (progress.phase, branch.head_sha) == ("patch", OTHER)


@pytest.mark.parametrize("is_stored", [True, False])
async def test_changes_of_a_machine_that_is_lost_are_pushed_from_the_disk(tmp_path: Path, is_stored: bool) -> None:
    branch = Branch()
    branch.fails["create"] = Killed()
    work = journey(tmp_path, branch)
    with pytest.raises(Killed):
        await (await work.process()).from_machine(NO_SHELL)
    commits = await work.process()
    branch.is_stored = is_stored
    assert await commits.without_machine() is None
    progress = await commits.without_lost_machine()
    assert progress is not None
    assert (progress.phase, await commits.patch()) == ("moved" if is_stored else "patch", "From x\n")
    assert branch.head_sha == (progress.created if is_stored else SHA)


async def test_a_machine_that_is_lost_before_anything_was_collected_leaves_nothing(tmp_path: Path) -> None:
    commits = await journey(tmp_path, Branch()).process()
    assert await commits.without_lost_machine() is None


@pytest.mark.parametrize("problem", [PushNotAllowed("the App may only read"), GitHubError("GitHub answered 500")])
async def test_what_github_does_not_accept_remains_as_a_patch(tmp_path: Path, problem: Exception) -> None:
    branch = Branch()
    branch.fails["create"] = problem
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.message) == ("patch", str(problem))


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_a_patch_for_older_commits_goes_to_a_new_branch_if_that_is_allowed(tmp_path: Path, is_allowed: bool) -> None:
    branch = Branch(head=OTHER)
    branch.other = NEW_BRANCH if is_allowed else None
    work = journey(tmp_path, branch, CommitPlan(message="Format", on_conflict="fail"))
    work.applies = "r0"
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, branch.head_sha) == ("moved" if is_allowed else "patch", OTHER)
    assert "faster has other commits than when the run began" in progress.message
    assert set(branch.heads) == ({NEW_BRANCH.branch} if is_allowed else set())


CLOSED = BranchClosed("bob/engine doesn't allow edits by maintainers")
NEW_BRANCH = Target(repository="grace/engine", branch="gibil/w-1-abc", head=None)


@pytest.mark.parametrize("step", ["target", "create", "move"])
async def test_commits_that_a_fork_does_not_accept_go_to_a_new_branch_with_the_reason(tmp_path: Path, step: str) -> None:
    branch = Branch()
    branch.fails[step] = CLOSED
    branch.other = NEW_BRANCH
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.branch, progress.expected) == ("moved", "gibil/w-1-abc", "")
    assert progress.message == (
        "1 changed file outside `paths` left out. "
        "bob/engine doesn't allow edits by maintainers; so the commits are on a new branch."
    )
    assert (branch.head_sha, branch.heads) == (SHA, {"gibil/w-1-abc": progress.created})


async def test_a_pull_request_that_cannot_be_opened_leaves_the_reason_for_the_new_branch(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails |= {"target": CLOSED, "announce": GitHubError("pull requests are disabled")}
    branch.other = NEW_BRANCH
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert progress.phase == "moved"
    assert progress.message.endswith("so the commits are on a new branch. pull requests are disabled")


async def test_commits_that_a_fork_does_not_accept_are_a_patch_where_no_new_branch_is_allowed(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["target"] = CLOSED
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.message, branch.heads) == ("patch", CLOSED.message, {})


async def test_stored_changes_stay_as_long_as_a_patch_may_be_applied(tmp_path: Path) -> None:
    for outcome, discarded in ((None, 1), (PushNotAllowed("no"), 0)):
        branch = Branch()
        if outcome is not None:
            branch.fails["create"] = outcome
        await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
        assert branch.discarded == discarded


async def test_on_a_full_disk_commits_are_pushed_and_no_patch_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "free_above_floor", lambda folder: 3)
    work = journey(tmp_path, Branch())
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.patch) == ("moved", False)
    assert not (work.folder / PATCH).exists()


async def test_rejected_changes_leave_neither_commits_nor_a_patch(tmp_path: Path) -> None:
    branch = Branch()
    branch.fails["collect"] = ChangesRejected(".env contains hunter2")
    work = journey(tmp_path, branch)
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.message, progress.patch) == ("rejected", ".env contains ***", False)
    assert branch.calls == ["collect"]
    assert not (work.folder / PATCH).exists()


@pytest.mark.parametrize(("applies", "is_stored"), [(None, True), (None, False), ("r0", False)])
async def test_changes_that_github_leaves_unchecked_stay_stored(tmp_path: Path, applies: str | None, is_stored: bool) -> None:
    branch = Branch()
    branch.fails["collect"] = GitHubError("the commit can't be fetched")
    branch.is_stored = is_stored
    work = journey(tmp_path, branch)
    work.applies = applies
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert progress == CommitProgress(
        phase="patch", expected=SHA, unchecked=is_stored or applies is not None, message="the commit can't be fetched"
    )
    assert (branch.calls, branch.discarded) == (["collect"], 0)


async def test_a_patch_is_stored_without_asking_github(tmp_path: Path) -> None:
    branch = Branch()
    progress = await (await journey(tmp_path, branch, CommitPlan(message="x", to="patch")).process()).from_machine(NO_SHELL)
    assert (progress.phase, progress.patch, branch.calls) == ("patch", True, ["collect"])


async def test_without_changes_nothing_is_created(tmp_path: Path) -> None:
    branch = Branch()
    branch.changes = False
    progress = await (await journey(tmp_path, branch).process()).from_machine(NO_SHELL)
    assert (progress.phase, branch.calls) == ("unchanged", ["collect"])


async def test_a_cancelled_run_pushes_nothing(tmp_path: Path) -> None:
    branch = Branch()
    work = journey(tmp_path, branch)
    work.is_cancelled = True
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, branch.head_sha) == ("patch", SHA)


async def test_a_run_that_is_cancelled_while_its_commits_are_created_pushes_nothing(tmp_path: Path) -> None:
    branch = Branch()
    work = journey(tmp_path, branch)
    create = branch.create

    async def cancelled_meanwhile(run: Run, changes: Changes, target: Target) -> str:
        work.is_cancelled = True
        return await create(run, changes, target)

    branch.create = cancelled_meanwhile  # type: ignore[method-assign]
    progress = await (await work.process()).from_machine(NO_SHELL)
    assert (progress.phase, branch.head_sha) == ("patch", SHA)
    assert "move" not in branch.calls


@pytest.mark.parametrize(
    ("to", "phase", "expected"),
    [
        ("head", "moved", Conclusion.SUCCESS),
        ("head", "unchanged", Conclusion.SUCCESS),
        ("head", "rejected", Conclusion.FAILURE),
        ("head", "patch", Conclusion.ACTION_REQUIRED),
        ("patch", "patch", Conclusion.SUCCESS),
        ("patch", "unchecked", Conclusion.ACTION_REQUIRED),
    ],
)
async def test_a_run_needs_attention_if_its_changes_did_not_arrive(to: str, phase: str, expected: Conclusion) -> None:
    runs = MemoryRuns()
    claim = await claimed(runs, CommitPlan(message="x", to=to))  # type: ignore[arg-type]
    progress = CommitProgress(phase="patch", unchecked=True)
    if phase != "unchecked":
        progress = CommitProgress(phase=phase, commits=1)  # type: ignore[arg-type]
    await runs.save_commit(claim, progress)
    run = await runs.get("r1")
    assert run is not None
    assert with_commits(Conclusion.SUCCESS, run) is expected
