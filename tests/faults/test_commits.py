"""Commits of a run, while GitHub fails at any step or the bot is killed: exactly one commit arrives, or the patch remains."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gibil_bot.clock import now
from gibil_bot.commits.checks import CommitPolicy
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.records import DEFAULT_PERMISSIONS
from gibil_bot.errors import HostUnavailable
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.render import RunReport, check_run
from gibil_bot.model import (
    CheckRunUpdate,
    Claim,
    CommitPlan,
    CommitProgress,
    Conclusion,
    NewRun,
    Plan,
    Repository,
    Run,
    Source,
    Trust,
)
from gibil_bot.runs.commit_steps import CommitTools
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import RunCommits
from gibil_bot.runs.runner import with_commits
from tests.contracts.test_github_client import Clock, client_of
from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.hosts import SharingHost, two_hosts
from tests.doubles.repositories import git

PATCH_REF, POST_COMMIT, POST_TREE, GET_REF = (
    ("PATCH", "/git/refs/"),
    ("POST", "/git/commits$"),
    ("POST", "/git/trees$"),
    ("GET", "/git/ref/"),
)
FOREVER = 1000
FIRST = "f1" * 8
"""The run with the changes, which the run `second` applies."""


@dataclass
class Scene:
    """A pull request of ada, and the stored changes of a run on it, which need no machine."""

    github: GitHubDouble
    client: GitHubClient
    number: int
    before: str
    claim: Claim
    runs: MemoryRuns
    tools: CommitTools

    async def commit(self) -> CommitProgress:
        """Do what a process of the bot does with the run."""
        assert self.claim.run.plan.commit is not None
        run = await self.runs.get(self.claim.run.id)
        assert run is not None
        async with self.tools.steps(run, Redactor([])) as steps:
            commits = RunCommits(
                steps,
                self.runs,
                replace(self.claim, run=run),
                self.claim.run.plan.commit,
                self.tools.logs / run.id,
                redact=str,
            )
            return await commits.from_machine(None)

    async def new_commits(self) -> int:
        head = await self.github._hub.git.resolve(REPOSITORY, "refs/heads/faster")
        return 0 if head is None else await self.github._hub.git.count(REPOSITORY, head, self.before)

    async def report(self) -> CheckRunUpdate:
        run = await self.runs.get(self.claim.run.id)
        assert run is not None
        conclusion = with_commits(Conclusion.SUCCESS, run)
        update = check_run(RunReport(run=run, conclusion=conclusion, now=now())).update
        assert isinstance(update, CheckRunUpdate)
        return update


@contextlib.asynccontextmanager
async def changed(
    folder: Path,
    *,
    fork: bool = False,
    plan: CommitPlan | None = None,
    permissions: Mapping[str, str] = DEFAULT_PERMISSIONS,
) -> AsyncIterator[Scene]:
    starting = GitHubDouble.start(folder / "github", permissions=permissions)
    async with starting as github, client_of(github, Clock()) as client:
        await github.add_repository(REPOSITORY, {"engine.py": "POWER = 1\n"})
        author = "bob" if fork else "ada"
        number = await github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, author, fork=fork)
        head, installation = github.head_sha(REPOSITORY, number), github.installation(REPOSITORY).id
        work, stored = folder / "work", folder / "logs" / FIRST
        git(folder, "clone", "-q", str(github._hub.git.path(REPOSITORY)), "work")
        git(work, "fetch", "-q", "origin", f"refs/pull/{number}/head")
        git(work, "checkout", "-q", "--detach", head)
        (work / "engine.py").write_text("POWER = 3\n")
        git(work, "commit", "-qam", "Faster")
        git(work, "update-ref", "refs/gibil/outgoing", "HEAD")
        stored.mkdir(parents=True)
        git(work, "bundle", "create", "-q", str(stored / "changes.bundle"), "refs/gibil/outgoing", f"^{head}")
        facts = {"base": head, "head": git(work, "rev-parse", "HEAD")}
        (stored / "changes.json").write_bytes(msgspec.json.encode(facts))
        repository = Repository(
            id=github.state.repository(REPOSITORY).id,
            full_name=REPOSITORY,
            clone_url=f"{github.url}/{REPOSITORY}.git",
            default_branch="main",
        )
        source = Source(
            installation_id=installation,
            repository=repository,
            pull_request=await client.pull_request(installation, REPOSITORY, number),
            sha=head,
            trust=Trust.TRUSTED,
            actor="ada",
        )
        commit = plan or CommitPlan(message="Faster")
        runs = MemoryRuns()
        whole = Plan(workflow="tidy", title="tidy", path="tidy.yml", tasks=(), commit=commit, applies=FIRST)
        runs.queue(NewRun(id="second", delivery_guid="g", source=source, plan=whole))
        claim = await runs.claim("a", lease_s=600, max_machines=1)
        assert claim is not None
        tools = CommitTools(github=client, git_data=client.git_data, policy=CommitPolicy(), logs=folder / "logs")
        yield Scene(github, client, number, head, claim, runs, tools)


# --- GitHub fails


@pytest.mark.parametrize("kind", ["error_before", "error_after", "drop_before", "drop_after", "secondary_limit"])
@pytest.mark.parametrize("step", [GET_REF, POST_TREE, POST_COMMIT, PATCH_REF])
async def test_an_error_that_passes_costs_nothing_and_repeats_nothing(tmp_path: Path, step: tuple[str, str], kind: str) -> None:
    async with changed(tmp_path) as scene:
        scene.github.fault(*step, kind, times=2, seconds=30)
        progress = await scene.commit()
        assert scene.github.faults_left == 0
        assert (progress.phase, await scene.new_commits()) == ("moved", 1)
        assert progress.created == scene.github.head_sha(REPOSITORY, scene.number)
        assert await scene.commit() == progress
        assert await scene.new_commits() == 1


async def test_a_fetch_that_fails_once_does_not_destroy_the_changes(tmp_path: Path) -> None:
    async with changed(tmp_path) as scene:
        scene.github.fault("*", f"/{REPOSITORY}.git/", "error_before")
        assert (await scene.commit()).phase == "moved"
        assert scene.github.faults_left == 0


@pytest.mark.parametrize(
    ("step", "kind", "status", "shown"),
    [
        (POST_TREE, "error_before", 502, "GitHub didn't accept them in time (POST"),
        (POST_TREE, "error_before", 403, "contents: write"),
        (POST_COMMIT, "error_before", 422, "rejected a git object"),
        (POST_COMMIT, "error_before", 409, "GitHub answered 409"),
        (POST_COMMIT, "primary_limit", 403, "rate limit"),
        (PATCH_REF, "error_before", 500, "GitHub answered 500"),
        (PATCH_REF, "error_before", 422, "was not changed"),
        (PATCH_REF, "error_before", 409, "GitHub answered 409"),
        (PATCH_REF, "error_before", 403, "contents: write"),
        (GET_REF, "drop_before", 0, "GET"),
    ],
)
async def test_an_error_that_stays_leaves_the_patch_and_says_what_to_do(
    tmp_path: Path, step: tuple[str, str], kind: str, status: int, shown: str
) -> None:
    async with changed(tmp_path) as scene:
        scene.github.fault(*step, kind, times=FOREVER, status=status, seconds=3600)
        progress = await scene.commit()
        assert (progress.phase, progress.patch, await scene.new_commits()) == ("patch", True, 0)
        assert shown in progress.message
        report = await scene.report()
        assert report.conclusion == "action_required"
        for text in (shown, "were **not pushed**", "/gibil retest tidy"):
            assert text in report.output.summary
        scene.github.clear_faults()
        assert await scene.commit() == progress, "only a user tries it again"


async def test_a_branch_that_moved_although_every_answer_was_an_error_has_the_commit_once(tmp_path: Path) -> None:
    async with changed(tmp_path) as scene:
        scene.github.fault(*PATCH_REF, "error_after", times=FOREVER)
        progress = await scene.commit()
        assert (progress.phase, await scene.new_commits()) == ("moved", 1)


@dataclass
class Change:
    """What a user changes at GitHub while the run works, and what the report says."""

    act: Callable[[Scene], object]
    shown: str
    label: str


CHANGES = [
    Change(lambda scene: scene.github.protect_branch(REPOSITORY, "faster"), "Changes must be made through a pull", "protected"),
    Change(lambda scene: scene.github.close_pull_request(REPOSITORY, scene.number), "was closed or merged", "closed"),
    Change(lambda scene: scene.github.uninstall(REPOSITORY), "", "uninstalled"),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.label)
async def test_what_changed_at_github_meanwhile_is_reported(tmp_path: Path, change: Change) -> None:
    async with changed(tmp_path) as scene:
        change.act(scene)
        progress = await scene.commit()
        assert (progress.phase, progress.patch, await scene.new_commits()) == ("patch", True, 0)
        assert change.shown in progress.message
        assert "/gibil retest tidy" in (await scene.report()).output.summary


async def test_an_app_without_write_permission_leaves_the_patch_and_names_the_permission(tmp_path: Path) -> None:
    async with changed(tmp_path, permissions={**DEFAULT_PERMISSIONS, "contents": "read"}) as scene:
        progress = await scene.commit()
        assert (progress.phase, await scene.new_commits()) == ("patch", 0)
        assert "accept its permission `contents: write`" in progress.message


async def test_a_deleted_branch_is_reported_and_not_created_again(tmp_path: Path) -> None:
    async with changed(tmp_path) as scene:
        await scene.github._hub.git.git("update-ref", "-d", "refs/heads/faster", repository=REPOSITORY)
        progress = await scene.commit()
        assert (progress.phase, await scene.new_commits()) == ("patch", 0)
        assert "was deleted or renamed" in progress.message


# --- another host has the changes


async def on_another_host(scene: Scene, ada: SharingHost, bob: SharingHost, *, hosts: tuple[str, ...]) -> None:
    """Move the changes to ada. The button was pressed on a run of these hosts, and bob's bot handles that."""
    of = scene.claim.run
    head = msgspec.json.decode((scene.tools.logs / FIRST / "changes.json").read_bytes())["head"]
    first = replace(of, id=FIRST, hosts=hosts, commit=CommitProgress(phase="patch", patch=True, head=head))
    ada.logs.mkdir(exist_ok=True)
    (scene.tools.logs / FIRST).rename(ada.logs / FIRST)

    async def find_run(run_id: str) -> Run | None:
        return first if run_id == FIRST else None

    scene.tools = dataclasses.replace(scene.tools, logs=bob.logs, files=bob.files, find_run=find_run)


async def test_changes_on_another_host_are_pushed(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    async with changed(tmp_path) as scene, two_hosts(tmp_path / "hosts") as (ada, bob):
        await on_another_host(scene, ada, bob, hosts=(ada.host.id,))
        progress = await scene.commit()
        assert (progress.phase, await scene.new_commits()) == ("moved", 1)
        assert [path.name for path in (bob.logs / "second").iterdir()] == ["changes.patch"]


async def test_changes_that_were_not_shown_are_not_pushed_in_place_of_those_of_another_host(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    async with changed(tmp_path) as scene, two_hosts(tmp_path / "hosts") as (ada, bob):
        await on_another_host(scene, ada, bob, hosts=(bob.host.id, ada.host.id))
        shown = msgspec.json.decode((ada.logs / FIRST / "changes.json").read_bytes())["head"]
        bob.write(FIRST, "changes.bundle", b"of the machine before it was taken over")
        bob.write(FIRST, "changes.json", msgspec.json.encode({"base": scene.before, "head": "e" * 40}))
        progress = await scene.commit()
        assert (progress.phase, progress.head, await scene.new_commits()) == ("moved", shown, 1)
        await ada.store.hosts.leave("bot of ada")
        with pytest.raises(HostUnavailable):
            async with scene.tools.steps(scene.claim.run, Redactor([])) as steps:
                await steps.has_stored(scene.claim.run)


async def test_changes_on_a_host_that_is_away_remain_there_and_the_report_names_it(tmp_path: Path) -> None:
    (tmp_path / "hosts").mkdir()
    async with changed(tmp_path) as scene, two_hosts(tmp_path / "hosts") as (ada, bob):
        await on_another_host(scene, ada, bob, hosts=(ada.host.id,))
        await ada.store.hosts.leave("bot of ada")
        progress = await scene.commit()
        assert (progress.phase, progress.unchecked, await scene.new_commits()) == ("patch", True, 0)
        report = await scene.report()
        for text in ("It may be on ada, whose bot was last seen at", "**Apply patch** can be pressed again", "**not pushed**"):
            assert text in report.output.summary
        assert ada.host.url not in report.output.summary
        assert report.conclusion == "action_required"
        assert (ada.logs / FIRST / "changes.bundle").exists()


# --- the bot is killed

TIDY = """\
on: {command: tidy}
tasks: [{run: "sed -i 's/POWER = 2/POWER = 3/' engine.py"}]
commit: Tidy
"""


@pytest.mark.usefixtures("local_machines")
@pytest.mark.parametrize(
    ("step", "kind"),
    [(POST_COMMIT, "hang_after"), (PATCH_REF, "hang"), (PATCH_REF, "hang_after")],
    ids=["after creating", "before moving", "after moving"],
)
async def test_a_bot_that_is_killed_between_two_steps_leaves_one_commit_to_the_next(
    tmp_path: Path, step: tuple[str, str], kind: str
) -> None:
    async with journey(tmp_path, {"engine.py": "POWER = 1\n"}, workflows={"tidy.yml": TIDY}) as world:
        github = world.github
        number = await github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        before = github.head_sha(REPOSITORY, number)
        signed = github.state.repository(REPOSITORY).signed
        github.fault(*step, kind)
        github.comment(REPOSITORY, number, "ada", "/gibil tidy")
        if step == POST_COMMIT:
            await world.seen(lambda: signed)
        elif kind == "hang":
            await world.seen(lambda: github.faults_left == 0)
        else:
            await world.seen(lambda: github.head_sha(REPOSITORY, number) != before)
        await world.bot.kill()
        github.clear_faults()
        await world.bot.start()
        check = await world.closed_check()
        await world.all_published()
        assert check.conclusion == "success", check.summary
        assert "Pushed 1 commit with 1 changed file to `faster`" in f"{check.summary}"
        head = github.head_sha(REPOSITORY, number)
        assert head in signed
        assert await github._hub.git.count(REPOSITORY, head, before) == 1
        assert len(github.check_runs(REPOSITORY)) == 1
        assert len([comment for comment in github.comments(REPOSITORY, number) if comment.by_app]) == 1
        await world.assert_nothing_left()
