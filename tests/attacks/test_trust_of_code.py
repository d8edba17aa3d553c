"""Code from outsiders behind pull requests of writers: it gets no secret, and no local machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.model import Trust
from tests.doubles.intake import REPOSITORY, WORKFLOWS, IntakeBot, intake_bot

EVIL = {"CHANGE.md": "evil code of mallory\n"}
GOOD = {"CHANGE.md": "good code\n"}
ALLOW = {"GIBIL_LOCAL_UNTRUSTED": "allow"}
HETZNER = {"GIBIL_PROVIDER": "hetzner", "HCLOUD_TOKEN": "t" * 64}


async def outsiders_fork(world: IntakeBot, author: str = "ann") -> int:
    """`author` opens a pull request from a branch of mallory's fork."""
    fork = await world.github.fork(REPOSITORY, "mallory")
    await world.github.push(fork.full_name, "topic", GOOD, author="mallory")
    return await world.github.open_from(REPOSITORY, fork.full_name, "topic", author)


async def own_fork(world: IntakeBot) -> int:
    """ann, who has write permission, opens a pull request from her own fork."""
    return await world.github.open_pull_request(REPOSITORY, "topic", GOOD, "ann", fork=True)


async def own_branch(world: IntakeBot) -> int:
    return await world.github.open_pull_request(REPOSITORY, "topic", GOOD, "ann")


async def test_an_outsiders_fork_behind_a_writers_pull_request_runs_nothing(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert await world.runs() == []
        assert "the fork `mallory/engine`" in world.answers(number)
        head = world.github.head_sha(REPOSITORY, number)
        assert (head, "action_required") in world.approvals(number)


@pytest.mark.parametrize(("author", "settings"), [("ann", ALLOW), ("ada", ALLOW), ("ann", HETZNER)])
async def test_an_outsiders_fork_behind_a_writers_pull_request_gets_no_secret_if_it_may_run(
    tmp_path: Path, author: str, settings: dict[str, str]
) -> None:
    async with intake_bot(tmp_path, settings) as world:
        number = await outsiders_fork(world, author)
        await world.handled()
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.handled()
        runs = await world.runs()
        assert {run.plan.workflow for run in runs} == {"test", "auto"}
        assert {(run.source.trust, run.plan.secrets) for run in runs} == {(Trust.UNTRUSTED, ())}


async def test_a_writers_own_fork_is_trusted_until_another_user_pushes_to_it(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await own_fork(world)
        await world.handled()
        await world.github.push(REPOSITORY, number, GOOD, author="ann")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.handled()
        before = await world.runs()
        assert [(run.plan.workflow, run.source.trust, run.plan.secrets) for run in before] == [
            ("auto", Trust.TRUSTED, ("DEPLOY",)),
            ("auto", Trust.TRUSTED, ("DEPLOY",)),
            ("test", Trust.TRUSTED, ("DEPLOY",)),
        ]
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        # ann's next commit is based on mallory's.
        await world.github.push(REPOSITORY, number, GOOD, author="ann")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert len(await world.runs()) == len(before)
        assert "`mallory` pushed to `ann/engine`" in world.answers(number)


async def test_a_push_whose_delivery_was_lost_leaves_a_writers_fork_untrusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW) as world:
        number = await own_fork(world)
        await world.handled()
        with world.bot_is_down() as missed:
            await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.back_up(missed, redeliver=False)
        await world.github.push(REPOSITORY, number, {"more.md": "more\n"}, author="ann")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        runs = [run for run in await world.runs() if run.source.sha == world.github.head_sha(REPOSITORY, number)]
        assert {(run.plan.workflow, run.source.trust) for run in runs} == {("auto", Trust.UNTRUSTED), ("test", Trust.UNTRUSTED)}


async def test_a_push_reported_by_another_pull_request_of_the_fork_counts(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW) as world:
        first = await own_fork(world)
        await world.handled()
        await world.github.push("ann/engine", "other", GOOD, author="ann")
        second = await world.github.open_from(REPOSITORY, "ann/engine", "other", "ann")
        await world.handled()
        await world.github.push(REPOSITORY, second, EVIL, author="mallory")
        await world.handled()
        world.github.comment(REPOSITORY, first, "ann", "/gibil test")
        await world.handled()
        (run,) = [run for run in await world.runs(first) if run.plan.workflow == "test"]
        assert run.source.trust is Trust.UNTRUSTED


async def test_a_fork_of_an_organization_is_untrusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW) as world:
        world.github.add_user("guild", "Organization")
        world.github.set_permission(REPOSITORY, "guild", "write")
        fork = await world.github.fork(REPOSITORY, "guild")
        await world.github.push(fork.full_name, "topic", GOOD, author="ann")
        number = await world.github.open_from(REPOSITORY, fork.full_name, "topic", "ann")
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert {run.source.trust for run in await world.runs()} == {Trust.UNTRUSTED}


@pytest.mark.parametrize(("giver", "taker"), [("ann", "mallory"), ("mallory", "ann")])
async def test_a_transferred_fork_is_untrusted_if_an_outsider_ever_owned_it(tmp_path: Path, giver: str, taker: str) -> None:
    async with intake_bot(tmp_path, ALLOW) as world:
        fork = await world.github.fork(REPOSITORY, giver)
        await world.github.push(fork.full_name, "topic", GOOD, author=giver)
        number = await world.github.open_from(REPOSITORY, fork.full_name, "topic", "ann")
        await world.handled()
        world.github.transfer_repository(fork.full_name, taker)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = [run for run in await world.runs() if run.plan.workflow == "test"]
        assert run.source.trust is Trust.UNTRUSTED


async def test_a_deleted_fork_is_untrusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW) as world:
        number = await own_fork(world)
        await world.handled()
        world.github.delete_repository("ann/engine")
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = [run for run in await world.runs() if run.plan.workflow == "test"]
        assert (run.source.trust, run.plan.secrets) == (Trust.UNTRUSTED, ())


async def test_re_run_after_an_outsiders_push_runs_nothing_and_names_the_new_commit(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await own_fork(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs()
        ran = len(await world.runs())
        check = next(run for run in world.github.check_runs(REPOSITORY) if run.name == "gibil / test")
        head = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        world.github.rerequest_check_run(check.id, "ann")
        world.github.rerequest_suite(REPOSITORY, check.head_sha, "ann")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil retest test")
        await world.handled()
        assert len(await world.runs()) == ran
        assert head in world.answers(number)


async def test_re_run_after_an_outsiders_force_push_of_the_same_commit_is_untrusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW) as world:
        number = await own_fork(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs()
        check = next(run for run in world.github.check_runs(REPOSITORY) if run.name == "gibil / test")
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.github.reset_branch(REPOSITORY, number, check.head_sha, "mallory")
        await world.handled()
        world.github.rerequest_check_run(check.id, "ann")
        await world.handled()
        assert [run.source.trust for run in await world.runs() if run.plan.workflow == "test"] == [
            Trust.TRUSTED,
            Trust.UNTRUSTED,
        ]


async def test_an_outsiders_push_stops_a_run_and_its_workflow_waits_for_approval(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows={"auto.yml": WORKFLOWS["auto.yml"]}) as world:
        number = await own_fork(world)
        await world.handled()
        head = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        (run,) = await world.runs()
        assert run.cancel_reason == f"superseded by {head[:7]}"
        assert world.approvals(number) == [(head, "action_required")]


@pytest.mark.parametrize("settings", [{}, ALLOW])
async def test_an_outsiders_push_stops_a_run_and_starts_no_other(tmp_path: Path, settings: dict[str, str]) -> None:
    async with intake_bot(tmp_path, settings, workflows={"test.yml": WORKFLOWS["test.yml"]}) as world:
        number = await own_fork(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        head = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        (run,) = await world.runs()
        assert run.cancel_reason == f"superseded by {head[:7]}"


async def test_a_writers_push_restarts_the_workflows_that_it_superseded(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows={"test.yml": WORKFLOWS["test.yml"]}) as world:
        number = await own_branch(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        head = await world.github.push(REPOSITORY, number, {"more.md": "x\n"}, author="ada")
        await world.handled()
        old, new = await world.runs()
        assert old.cancel_reason == f"superseded by {head[:7]}"
        assert (new.source.sha, new.source.trust, new.plan.github["event_name"]) == (head, Trust.TRUSTED, "pull_request")


async def test_a_user_who_loses_write_permission_is_no_longer_trusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await own_branch(world)
        await world.handled()
        world.github.set_permission(REPOSITORY, "ann", "read")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.handled()
        (run,) = [run for run in await world.runs() if run.plan.workflow == "test"]
        assert (run.source.trust, run.plan.secrets) == (Trust.UNTRUSTED, ())
        assert any("`ann`" in note and "DEPLOY" in note for note in run.plan.notes)


# --- Apps that push to a branch of the repository itself ---------------------------------------------------------------


async def by_app(world: IntakeBot, *, author: str = "renovate[bot]") -> int:
    world.github.add_user("renovate[bot]", "Bot")
    await world.github.push(REPOSITORY, "renovate/x", GOOD, author="renovate[bot]")
    return await world.github.open_from(REPOSITORY, REPOSITORY, "renovate/x", author)


@pytest.mark.parametrize("author", ["renovate[bot]", "ann"])
async def test_a_branch_pushed_by_an_app_waits_for_a_writers_command_and_runs_without_secrets(
    tmp_path: Path, author: str
) -> None:
    async with intake_bot(tmp_path) as world:
        number = await by_app(world, author=author)
        await world.handled()
        assert await world.runs() == []
        assert world.approvals(number) == [(world.github.head_sha(REPOSITORY, number), "action_required")]
        world.github.comment(REPOSITORY, number, "mallory", "/gibil test")
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = await world.runs()
        assert (run.plan.workflow, run.source.trust, run.plan.secrets) == ("test", Trust.UNTRUSTED, ())
        assert any("the App `renovate[bot]`" in note for note in run.plan.notes)
        assert "fork" not in world.answers(number)


async def test_an_app_that_restores_a_writers_commit_removes_its_access_to_secrets(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows={"test.yml": WORKFLOWS["test.yml"]}) as world:
        world.github.add_user("renovate[bot]", "Bot")
        number = await own_branch(world)
        head = world.github.head_sha(REPOSITORY, number)
        await world.github.push(REPOSITORY, number, EVIL, author="renovate[bot]")
        await world.github.reset_branch(REPOSITORY, number, head, "renovate[bot]")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = await world.runs()
        assert (run.source.sha, run.source.trust, run.plan.secrets) == (head, Trust.UNTRUSTED, ())


async def test_a_listed_app_starts_workflows_but_never_with_secrets(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, {"GIBIL_TRUSTED_APPS": "dependabot[bot],Renovate[bot]"}) as world:
        number = await by_app(world)
        await world.handled()
        await world.github.push(REPOSITORY, number, {"more.md": "x\n"}, author="renovate[bot]")
        await world.handled()
        runs = await world.runs()
        assert [(run.plan.workflow, run.source.trust, run.plan.secrets) for run in runs] == [("auto", Trust.UNTRUSTED, ())] * 2


async def test_listing_an_app_affects_no_fork_no_user_and_no_other_app(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, {"GIBIL_TRUSTED_APPS": "renovate[bot]"}) as world:
        world.github.add_user("renovate[bot]", "Bot")
        world.github.add_user("evil[bot]", "Bot")
        await outsiders_fork(world, "renovate[bot]")
        number = await by_app(world)
        await world.handled()
        ran = len(await world.runs())
        await world.github.push(REPOSITORY, number, EVIL, author="evil[bot]")
        await world.handled()
        assert ran == len(await world.runs()) == 1


async def test_the_setting_refuse_keeps_apps_and_approvals_off_local_machines(tmp_path: Path) -> None:
    settings = {"GIBIL_LOCAL_UNTRUSTED": "refuse", "GIBIL_TRUSTED_APPS": "renovate[bot]"}
    async with intake_bot(tmp_path, settings) as world:
        number = await by_app(world)
        fork = await outsiders_fork(world)
        for each in (number, fork):
            sha = world.github.head_sha(REPOSITORY, each)
            world.github.comment(REPOSITORY, each, "ann", f"/gibil approve {sha}\n/gibil test")
        await world.handled()
        assert await world.runs() == []
        assert "approved or not" in world.answers(fork)
