"""Commits that the bot pushes are as trusted as the people whose code they contain, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.clock import now
from gibil_bot.github.render import RunReport, check_run
from gibil_bot.limits import APPLY_PATCH
from gibil_bot.model import Claim, CommitProgress, Conclusion, Run, Trust
from tests.attacks.test_trust_of_code import ALLOW, EVIL, GOOD, own_branch, own_fork
from tests.doubles.intake import REPOSITORY, IntakeBot, intake_bot

WORKFLOWS = {
    "fix.yml": "on: {command: fix}\ntasks: [{run: 'true'}]\ncommit: Fix\n",
    "tidy.yml": "on: {command: tidy}\ntasks: [{run: 'true'}]\ncommit: Tidy\n",
    "test.yml": "on: {command: test}\nsecrets: [DEPLOY]\ntasks: [{run: 'true'}]\n",
    "again.yml": "on: {own-push: {max-attempts: 2}}\nsecrets: [DEPLOY]\ntasks: [{run: 'true'}]\n",
}
RENOVATE = "renovate[bot]"


async def fixing(world: IntakeBot, number: int, author: str = "ann", word: str = "fix") -> Claim:
    """Return the claim of a run that commits to the pull request."""
    world.github.comment(REPOSITORY, number, author, f"/gibil {word}")
    await world.handled()
    claim = await world.store.runs.claim("the test", lease_s=600.0, max_machines=100)
    assert claim is not None
    assert claim.run.plan.workflow == word
    return claim


async def bot_pushes(
    world: IntakeBot, number: int, claim: Claim, text: str = "fixed", onto: str = "", deliver: bool = True
) -> str:
    """Push a commit for that run; `onto` is the head that it was rebased onto."""
    bot = world.github.state.bot.login
    with world.bot_is_down() as missed:
        sha = await world.github.push(REPOSITORY, number, {"fix.md": text}, author=bot)
        await world.github.webhooks_sent()
    progress = CommitProgress(phase="created", created=sha, expected=onto or claim.run.source.sha)
    await world.store.runs.save_commit(claim, progress)
    await world.back_up(missed, redeliver=deliver)
    return sha


async def finish(world: IntakeBot, claim: Claim, **progress: object) -> Run:
    """End the run with that progress of its commits, and show its check run."""
    found = CommitProgress(**{"phase": "moved", "commits": 1, "files": 1, **progress})  # type: ignore[arg-type]
    await world.store.runs.save_commit(claim, found)
    conclusion = Conclusion.ACTION_REQUIRED if found.phase == "patch" else Conclusion.SUCCESS
    report = RunReport(run=replace(claim.run, commit=found), conclusion=conclusion, now=now())
    await world.store.runs.finish(claim, conclusion, [check_run(report)])
    await world.handled()
    return report.run


async def leave_patch(world: IntakeBot, claim: Claim) -> Run:
    return await finish(world, claim, phase="patch", patch=True, expected=claim.run.source.sha)


async def press(world: IntakeBot, run: Run, sender: str) -> None:
    (check,) = [check for check in world.github.check_runs(REPOSITORY) if check.external_id == run.id]
    world.github.press_button(check.id, APPLY_PATCH, sender)
    await world.handled()


async def trust_of_test(world: IntakeBot, number: int, author: str = "ada") -> tuple[Trust, tuple[str, ...]]:
    """Return the trust and the secrets of a new run."""
    world.github.comment(REPOSITORY, number, author, "/gibil test")
    await world.handled()
    run = (await world.runs(number))[-1]
    assert (run.plan.workflow, run.source.sha) == ("test", world.github.head_sha(REPOSITORY, number)), world.answers(number)
    return run.source.trust, run.plan.secrets


@pytest.mark.parametrize("opens", [own_branch, own_fork])
async def test_commits_for_a_trusted_run_are_as_trusted_as_its_requester_is_now(tmp_path: Path, opens: object) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=WORKFLOWS) as world:
        world.github.set_permission(REPOSITORY, "bob", "write")
        number = await opens(world)  # type: ignore[operator]
        claim = await fixing(world, number, "bob")
        await bot_pushes(world, number, claim)
        again = (await world.runs(number))[-1]
        assert (again.plan.workflow, again.source.trust, again.plan.secrets) == ("again", Trust.TRUSTED, ("DEPLOY",))
        assert await trust_of_test(world, number) == (Trust.TRUSTED, ("DEPLOY",))
        world.github.set_permission(REPOSITORY, "bob", "read")
        assert await trust_of_test(world, number) == (Trust.UNTRUSTED, ())


@pytest.mark.parametrize("delivered", [True, False])
async def test_a_rebase_onto_the_push_of_an_app_does_not_make_that_push_trusted(tmp_path: Path, delivered: bool) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=WORKFLOWS) as world:
        world.github.add_user(RENOVATE, "Bot")
        number = await own_branch(world)
        claim = await fixing(world, number)
        with world.bot_is_down() as missed:
            newer = await world.github.push(REPOSITORY, number, EVIL, author=RENOVATE)
        await world.back_up(missed, redeliver=delivered)
        await bot_pushes(world, number, claim, onto=newer, deliver=delivered)
        assert {run.source.trust for run in await world.runs(number) if run.plan.workflow == "again"} <= {Trust.UNTRUSTED}
        assert await trust_of_test(world, number) == (Trust.UNTRUSTED, ())


async def test_a_rebase_onto_the_push_of_a_user_with_write_permission_stays_trusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=WORKFLOWS) as world:
        number = await own_branch(world)
        first, second = await fixing(world, number), await fixing(world, number, "ada", "tidy")
        newer = await world.github.push(REPOSITORY, number, GOOD, author="ada")
        await world.handled()
        below = await bot_pushes(world, number, first, "1", onto=newer)
        await bot_pushes(world, number, second, "2", onto=below)
        assert await trust_of_test(world, number, "ann") == (Trust.TRUSTED, ("DEPLOY",))


async def test_a_rebase_onto_the_push_of_an_outsider_to_a_fork_is_untrusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=WORKFLOWS) as world:
        number = await own_fork(world)
        claim = await fixing(world, number)
        newer = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        await bot_pushes(world, number, claim, onto=newer)
        assert await trust_of_test(world, number) == (Trust.UNTRUSTED, ())


async def test_another_app_that_pushes_the_bots_commit_again_is_not_the_bot(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=WORKFLOWS) as world:
        world.github.add_user(RENOVATE, "Bot")
        number = await own_branch(world)
        claim = await fixing(world, number)
        sha = await bot_pushes(world, number, claim)
        await world.github.push(REPOSITORY, number, EVIL, author=RENOVATE)
        await world.github.reset_branch(REPOSITORY, number, sha, RENOVATE)
        await world.handled()
        assert [run.plan.workflow for run in await world.runs(number)].count("again") == 1
        assert await trust_of_test(world, number) == (Trust.UNTRUSTED, ())


async def test_a_writer_who_applies_the_patch_of_untrusted_code_makes_nothing_trusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=WORKFLOWS) as world:
        world.github.add_user(RENOVATE, "Bot")
        number = await own_branch(world)
        await world.github.push(REPOSITORY, number, EVIL, author=RENOVATE)
        run = await leave_patch(world, await fixing(world, number))
        assert run.source.trust is Trust.UNTRUSTED
        await press(world, run, "ann")
        claim = await world.store.runs.claim("the test", lease_s=600.0, max_machines=100)
        assert claim is not None
        assert claim.run.plan.commit is not None
        assert (claim.run.plan.applies, claim.run.plan.commit.to, claim.run.plan.tasks) == (run.id, "head", ())
        assert (claim.run.source.actor, claim.run.source.trust, claim.run.plan.secrets) == ("ann", Trust.UNTRUSTED, ())
        await bot_pushes(world, number, claim)
        again = (await world.runs(number))[-1]
        assert (again.plan.workflow, again.source.trust, again.plan.secrets) == ("again", Trust.UNTRUSTED, ())
        assert await trust_of_test(world, number) == (Trust.UNTRUSTED, ())
