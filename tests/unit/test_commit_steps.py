"""Where the commits of a run go, and what is stored of them: with GitHub's answers as values, and real files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from gibil_bot.commits import collected as collecting
from gibil_bot.commits.checks import CommitPolicy
from gibil_bot.commits.collected import Collected
from gibil_bot.commits.scanner import NoScanner
from gibil_bot.errors import GitHubError
from gibil_bot.model import CommitPlan, PullRequest, Repository, Run, Trust
from gibil_bot.ports import GitData, GitHub, Shell
from gibil_bot.retry import RetryPolicy
from gibil_bot.runs import commit_steps
from gibil_bot.runs.commit_steps import CommitTools, GitHubSteps, LocalCommitTools, LocalSteps
from gibil_bot.runs.logs import trim_logs
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import BranchClosed, ChangesRejected, PushNotAllowed, Target
from tests.doubles.facts import SHA, facts
from tests.unit.test_run_commits import claimed

HOME, FORK = "ada/engine", "grace/engine"
PLAN = CommitPlan(message="Tidy\n\nBecause.")
HEADS = {(HOME, "main"): "1" * 40, (FORK, "faster"): SHA}


class Answers:
    """What GitHub answers to one installation of the App."""

    def __init__(self, heads: Mapping[tuple[str, str], str], *, writes: bool = True, fork: int | None = None) -> None:
        self.heads, self.writes, self.fork = heads, writes, fork
        self.asked = 0

    async def may_write(self) -> bool:
        return self.writes

    async def installation_of(self, repository: str) -> int | None:
        self.asked += 1
        return self.fork

    async def ref(self, repository: str, branch: str) -> str | None:
        return self.heads.get((repository, branch))


class PullRequests:
    """Says whether the pull request is open."""

    def __init__(self, is_open: bool) -> None:
        self._is_open = is_open

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        return replace(facts().pull_request, is_open=self._is_open)


def steps(folder: Path, *installations: Answers, is_open: bool = True) -> GitHubSteps:
    tools = CommitTools(
        github=cast("GitHub", PullRequests(is_open)),
        git_data=lambda number: cast("GitData", installations[number - 1]),
        policy=CommitPolicy(),
        logs=folder,
    )
    return GitHubSteps(tools, Redactor([]), folder)


async def run_of(**pull: object) -> Run:
    """Return a trusted run on a pull request from FORK."""
    run = (await claimed(MemoryRuns(), PLAN)).run
    request = replace(run.source.pull_request, **{"head_owner": "grace", "head_owner_is_user": True, **pull})
    return replace(run, source=replace(run.source, pull_request=request))


@pytest.mark.parametrize(
    ("pull", "fork", "writes", "why"),
    [
        ({"maintainer_can_modify": True}, None, True, ""),
        ({"maintainer_can_modify": False}, None, True, "doesn't allow edits by maintainers"),
        ({"maintainer_can_modify": True, "head_owner_is_user": False}, None, True, "belongs to an organization, whose"),
        ({"maintainer_can_modify": False}, 2, True, ""),
        ({"maintainer_can_modify": False}, 2, False, "The App may only read contents of grace/engine"),
        ({"head_repository": None}, None, True, "The fork of this pull request was deleted"),
        ({"maintainer_can_modify": True, "head_ref": "renamed"}, None, True, "The App sees no branch renamed in grace/engine"),
    ],
)
async def test_a_fork_is_open_or_closed_with_a_reason(
    tmp_path: Path, pull: dict[str, object], fork: int | None, writes: bool, why: str
) -> None:
    run = await run_of(**pull)
    home = Answers(HEADS, fork=fork)
    found = steps(tmp_path, home, Answers(HEADS, writes=writes))
    if not why:
        assert await found.target(run, PLAN) == Target(repository=FORK, branch="faster", head=SHA)
        await found.head(run, FORK, "faster")
        assert home.asked == 1
    else:
        with pytest.raises(BranchClosed, match=why):
            await found.target(run, PLAN)
    branch = f"gibil/w-7-{SHA[:7]}"
    assert await found.elsewhere(run, PLAN) == Target(repository=HOME, branch=branch, head=None)


async def test_nothing_is_pushed_to_a_pull_request_that_was_closed_meanwhile(tmp_path: Path) -> None:
    run = await run_of(head_repository=HOME, head_ref="main")
    with pytest.raises(PushNotAllowed, match="closed or merged meanwhile"):
        await steps(tmp_path, Answers(HEADS), is_open=False).target(run, PLAN)


async def test_untrusted_code_never_gets_a_branch_of_the_base_repository(tmp_path: Path) -> None:
    run = await run_of()
    untrusted = replace(run, source=replace(run.source, trust=Trust.UNTRUSTED))
    assert await steps(tmp_path, Answers(HEADS)).elsewhere(untrusted, PLAN) is None


@pytest.mark.parametrize(
    ("branch", "head_ref"),
    [("main", "main"), ("main", "faster"), ("release", "release"), ("stable", "faster")],
    ids=["fork", "base", "another", "default"],
)
async def test_commits_of_a_fork_reach_its_namesake_and_the_base_only_by_merging(
    tmp_path: Path, branch: str, head_ref: str
) -> None:
    """The branch may be `${{ github.head_ref }}`: the fork's author chose it, and its commits would come along."""
    run = await run_of(head_ref=head_ref)
    repository = replace(run.source.repository, default_branch="stable")
    run = replace(run, source=replace(run.source, repository=repository))
    heads = {**HEADS, (HOME, "release"): "1" * 40, (HOME, "stable"): "1" * 40}
    plan = replace(PLAN, to="branch", branch=branch)
    with pytest.raises(PushNotAllowed, match="choose another `branch`"):
        await steps(tmp_path, Answers(heads)).target(run, plan)
    other = replace(plan, branch="fixes")
    assert await steps(tmp_path, Answers(heads)).target(run, other) == Target(repository=HOME, branch="fixes", head=None)


async def test_without_the_permission_there_is_no_branch_at_all(tmp_path: Path) -> None:
    run = await run_of(head_repository=HOME, head_ref="main")
    found = steps(tmp_path, Answers(HEADS, writes=False))
    for attempt in (found.target(run, PLAN), found.elsewhere(run, PLAN)):
        with pytest.raises(PushNotAllowed, match="contents: write"):
            await attempt


async def test_stored_changes_count_as_logs_and_are_deleted_with_them(tmp_path: Path) -> None:
    run = await run_of()
    folder = tmp_path / run.id
    folder.mkdir()
    (folder / "changes.bundle").write_bytes(bytes(5000))
    (folder / "changes.json").write_text(f'{{"base":"{SHA}","head":"{SHA}"}}')
    found = steps(tmp_path, Answers(HEADS))
    assert await found.has_stored(run)
    assert trim_logs(tmp_path, 6000, ()) == []
    assert trim_logs(tmp_path, 4000, ()) == [run.id]
    assert not await found.has_stored(run)
    with pytest.raises(ChangesRejected, match="run the workflow again"):
        await found.collect(None, run, SHA)


class NoToken(PullRequests):
    """GitHub is unavailable for two requests."""

    def __init__(self) -> None:
        super().__init__(is_open=True)
        self.asked = 0

    async def clone_token(self, installation_id: int, repository: Repository, submodules: tuple[str, ...] = ()) -> str:
        self.asked += 1
        raise GitHubError("unavailable", retry_after_s=0.0 if self.asked < 3 else None)


async def collected(*arguments: object, **options: object) -> Collected:
    into = cast("Path", arguments[2])
    into.write_bytes(b"bundle")
    return Collected(base=SHA, head="2" * 40, bundle=into, bytes=6)


async def chosen(*arguments: object, **options: object) -> tuple[None, str]:
    return None, ""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A machine with a commit."""
    monkeypatch.setattr(collecting, "choose", chosen)
    monkeypatch.setattr(collecting, "collect", collected)
    return cast("Shell", object())


async def test_changes_are_stored_before_github_is_asked_and_a_token_is_asked_for_again(
    tmp_path: Path, machine: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await run_of()
    run = replace(run, source=replace(run.source, repository=replace(run.source.repository, private=True)))
    github = NoToken()
    monkeypatch.setattr(commit_steps, "_FETCHES", RetryPolicy(attempts=5, first_wait_s=0.0))
    tools = CommitTools(
        github=cast("GitHub", github), git_data=lambda number: cast("GitData", None), policy=CommitPolicy(), logs=tmp_path
    )
    async with tools.steps(run, Redactor([])) as found:
        with pytest.raises(GitHubError, match="unavailable"):
            await found.collect(machine, run, SHA)
        assert await found.has_stored(run)
    assert github.asked == 3


async def test_changes_that_no_scanner_has_searched_are_rejected_with_the_reason(
    tmp_path: Path, machine: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_scanner(*arguments: object, **options: object) -> None:
        raise NoScanner("the scanner can't be started")

    run = await run_of()
    monkeypatch.setattr(commit_steps, "check", no_scanner)
    (tmp_path / run.id).mkdir()
    found = LocalSteps(LocalCommitTools(repository=tmp_path, policy=CommitPolicy(), logs=tmp_path), Redactor([]), tmp_path)
    with pytest.raises(ChangesRejected, match="the scanner can't be started"):
        await found.collect(machine, run, SHA)


async def test_what_a_killed_process_left_is_replaced_and_nothing_stays(tmp_path: Path) -> None:
    run = await run_of()
    left = tmp_path / run.id / "commits" / "repository.git"
    left.mkdir(parents=True)
    (left / "shallow").write_text("x")
    tools = CommitTools(
        github=cast("GitHub", None), git_data=lambda number: cast("GitData", None), policy=CommitPolicy(), logs=tmp_path
    )
    async with tools.steps(run, Redactor([])):
        assert os.listdir(tmp_path / run.id / "commits") == []
    assert os.listdir(tmp_path / run.id) == []
