"""The button that applies a run's patch, and workflows that commit where the App may not write: decisions without a machine."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from gibil_bot.clock import now
from gibil_bot.demo.records import DEFAULT_PERMISSIONS, CheckRun
from gibil_bot.github.render import RunReport, check_run
from gibil_bot.limits import APPLY_PATCH
from gibil_bot.model import CommitProgress, Conclusion, Run
from tests.doubles.intake import REPOSITORY, IntakeBot, intake_bot

WORKFLOWS = {
    "fix.yml": "on: {command: fix}\ntasks: [{run: 'true'}]\ncommit: Fix\n",
    "show.yml": "on: {command: show}\ntasks: [{run: 'true'}]\ncommit: {message: Fix, to: patch}\n",
    "auto.yml": "on: pull_request\ntasks: [{run: 'true'}]\ncommit: Fix\n",
    "test.yml": "on: {command: test}\ntasks: [{run: 'true'}]\n",
}
UNTRUSTED = {"GIBIL_LOCAL_UNTRUSTED": "allow"}


async def patched(world: IntakeBot) -> tuple[int, CheckRun]:
    """Return a fork's pull request and the check run of an untrusted run on it, which left a patch."""
    number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.txt": "0"}, "mallory", fork=True)
    await world.handled()
    await world.finish_runs()
    world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
    await world.handled()
    await end(world, CommitProgress(phase="patch", patch=True, expected=world.github.head_sha(REPOSITORY, number)))
    check = world.github.check_runs(REPOSITORY)[-1]
    assert [action["identifier"] for action in check.actions] == [APPLY_PATCH]
    return number, check


async def end(world: IntakeBot, progress: CommitProgress) -> Run:
    """End the waiting run, with what became of its changes."""
    claim = await world.store.runs.claim("the test", lease_s=600.0, max_machines=100)
    assert claim is not None
    await world.store.runs.save_commit(claim, progress)
    report = RunReport(run=replace(claim.run, commit=progress), conclusion=Conclusion.SUCCESS, now=now())
    await world.store.runs.finish(claim, Conclusion.SUCCESS, [check_run(report)])
    await world.handled()
    return claim.run


async def press(world: IntakeBot, check: CheckRun, who: str) -> None:
    world.github.press_button(check.id, APPLY_PATCH, who)
    await world.handled()


async def test_a_writer_applies_a_patch_once_and_others_never(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, UNTRUSTED, workflows=WORKFLOWS) as world:
        number, check = await patched(world)
        before = len(await world.runs())
        for person in ("mallory", "eve"):
            await press(world, check, person)
        assert len(await world.runs()) == before
        assert "`eve` has read permission on this repository" in world.answers(number)
        await press(world, check, "ann")
        await press(world, check, "ada")  # while it is being applied
        runs = await world.runs()
        assert len(runs) == before + 1
        applying = runs[-1]
        assert (applying.plan.applies, applying.plan.tasks, applying.source.actor) == (check.external_id, (), "ann")
        await end(world, CommitProgress(phase="moved", created="c" * 40, branch="topic"))
        await press(world, check, "ada")
        assert len(await world.runs()) == before + 1
        assert "was applied already: commit `ccccccc` on `topic`" in world.answers(number)


async def test_a_patch_of_an_older_commit_is_not_applied(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, UNTRUSTED, workflows=WORKFLOWS) as world:
        number, check = await patched(world)
        await world.github.push(REPOSITORY, number, {"a.txt": "1"}, author="mallory")
        await world.handled()
        before = len(await world.runs())
        await press(world, check, "ann")
        assert len(await world.runs()) == before
        assert "comment `/gibil retest fix` for a new one" in world.answers(number)


async def test_a_patch_is_not_applied_where_the_app_may_only_read(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, UNTRUSTED, workflows=WORKFLOWS) as world:
        number, check = await patched(world)
        before = len(await world.runs())
        world.github.grant(REPOSITORY, {**DEFAULT_PERMISSIONS, "contents": "read"})
        world.github.revoke_tokens()
        await press(world, check, "ann")
        assert len(await world.runs()) == before
        assert "The App may only read contents here" in world.answers(number)


async def test_a_workflow_that_commits_is_rejected_at_once_where_the_app_may_only_read(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=WORKFLOWS) as world:
        world.github.grant(REPOSITORY, {**DEFAULT_PERMISSIONS, "contents": "read"})
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.txt": "0"}, "ada")
        await world.handled()
        assert "auto commits its changes, but the App may only read contents here" in world.answers(number)
        for word in ("fix", "test", "show"):
            world.github.comment(REPOSITORY, number, "ada", f"/gibil {word}")
            await world.handled()
        assert [run.plan.workflow for run in await world.runs(number)] == ["test", "show"]
        assert "an owner of ada has to accept its permission `contents: write` at the installation" in world.answers(number)
        world.github.grant(REPOSITORY, DEFAULT_PERMISSIONS)
        world.github.revoke_tokens()
        world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
        await world.handled()
        assert (await world.runs(number))[-1].plan.workflow == "fix"
