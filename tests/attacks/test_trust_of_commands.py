"""A command applies to the commit that was the head when it was written. A later push never runs under it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from gibil_bot.model import Trust
from tests.attacks.test_trust_of_code import ALLOW, EVIL, GOOD, outsiders_fork, own_branch, own_fork
from tests.doubles.intake import REPOSITORY, WORKFLOWS, IntakeBot, bot_on, intake_bot

ONLY_TEST = {"test.yml": WORKFLOWS["test.yml"]}
HOW = {
    "comment": "issue_comment",
    "review_comment": "pull_request_review_comment",
    "review": "pull_request_review",
}


def say(world: IntakeBot, how: str, number: int, author: str, body: str) -> None:
    ways: dict[str, Callable[[str, int, str, str], object]] = {
        "comment": world.github.comment,
        "review_comment": world.github.review_comment,
        "review": world.github.review,
    }
    ways[how](REPOSITORY, number, author, body)


@pytest.mark.parametrize("how", HOW)
async def test_a_command_runs_with_the_name_of_its_event(tmp_path: Path, how: str) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        say(world, how, number, "ann", "LGTM\n\n/gibil test")
        await world.handled()
        (run,) = await world.runs()
        assert (run.plan.github["event_name"], run.source.trust) == (HOW[how], Trust.TRUSTED)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("settings", [{}, ALLOW])
async def test_a_push_between_a_command_and_its_delivery_runs_nothing(
    tmp_path: Path, how: str, settings: Mapping[str, str]
) -> None:
    async with intake_bot(tmp_path, settings, workflows=ONLY_TEST) as world:
        number = await own_fork(world)
        await world.handled()
        with world.bot_is_down() as missed:
            say(world, how, number, "ann", "/gibil test")
            head = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.back_up(missed)
        assert await world.runs() == []
        assert f"is now `{head}`" in world.answers(number)


@pytest.mark.parametrize("how", HOW)
async def test_a_late_command_runs_nothing_in_either_order_of_deliveries(tmp_path: Path, how: str) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        await world.handled()
        with world.bot_is_down() as missed:
            say(world, how, number, "ann", "/gibil test")
            head = await world.github.push(REPOSITORY, number, EVIL, author="ada")
        await world.back_up(list(reversed(missed)))
        assert await world.runs() == []
        assert head in world.answers(number)


async def test_a_late_command_runs_if_there_was_no_push_since(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        await world.handled()
        with world.bot_is_down() as missed:
            world.github.comment(REPOSITORY, number, "ann", "/gibil test")
            world.github.comment(REPOSITORY, number, "eve", "me too")
        await world.back_up(missed)
        (run,) = await world.runs()
        assert run.source.trust is Trust.TRUSTED


async def test_a_redelivered_old_command_runs_nothing_new(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=ONLY_TEST) as world:
        number = await own_fork(world)
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (delivery,) = [each for each in world.github.deliveries if each.event == "issue_comment"]
        await world.finish_runs()
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        world.github.redeliver(delivery.id)
        # A replay with another GUID, and one whose payload was changed by a proxy that sorts keys.
        world.github.deliver("issue_comment", delivery.body)
        world.github.deliver("issue_comment", json.loads(delivery.body) | {"zzz": 1})
        await world.handled()
        assert len(await world.runs()) == 1


async def test_a_comment_in_the_same_second_as_a_push_runs_nothing(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        await world.handled()
        head = await world.github.push(REPOSITORY, number, EVIL, author="ada")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "no command")
        await world.github.webhooks_sent()
        payload = json.loads(world.github.deliveries[-1].body)
        pushed = json.loads([each for each in world.github.deliveries if each.action == "synchronize"][-1].body)
        payload["comment"] |= {"body": "/gibil test", "created_at": pushed["pull_request"]["updated_at"]}
        world.github.deliver("issue_comment", payload)
        await world.handled()
        assert await world.runs() == []
        assert head in world.answers(number)


async def test_a_push_and_its_reversal_before_the_delivery_run_nothing(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=ONLY_TEST) as world:
        number = await own_fork(world)
        await world.handled()
        head = world.github.head_sha(REPOSITORY, number)
        with world.bot_is_down() as missed:
            world.github.comment(REPOSITORY, number, "ann", "/gibil test")
            await world.github.push(REPOSITORY, number, EVIL, author="mallory")
            await world.github.reset_branch(REPOSITORY, number, head, "mallory")
        await world.back_up([each for each in missed if each.event == "pull_request"])
        await world.back_up([each for each in missed if each.event == "issue_comment"])
        assert await world.runs() == []


async def test_a_late_push_delivery_does_not_run_a_former_head(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows={"auto.yml": WORKFLOWS["auto.yml"]}) as world:
        number = await own_branch(world)
        await world.handled()
        with world.bot_is_down() as missed:
            await world.github.push(REPOSITORY, number, {"one.md": "1\n"}, author="ann")
            head = await world.github.push(REPOSITORY, number, {"two.md": "2\n"}, author="ann")
        await world.back_up(missed)
        assert [run.source.sha for run in await world.runs()][1:] == [head]


async def test_an_edited_comment_or_review_is_not_a_command(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        comment = world.github.comment(REPOSITORY, number, "ann", "looks good")
        review = world.github.review(REPOSITORY, number, "ann", "looks good")
        await world.handled()
        world.github.edit_comment(comment.id, "/gibil test", "ann")
        world.github.edit_review(REPOSITORY, review, "/gibil test")
        await world.handled()
        assert await world.runs() == []


async def test_a_review_of_an_older_commit_is_no_command_for_the_newer_one(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        old = world.github.head_sha(REPOSITORY, number)
        head = await world.github.push(REPOSITORY, number, EVIL, author="ada")
        await world.handled()
        world.github.review(REPOSITORY, number, "ann", "/gibil test", commit_sha=old)
        await world.handled()
        assert await world.runs() == []
        assert head in world.answers(number)


# --- an empty store: newly installed, or lost ----------------------------------------------------------------------------


async def test_with_an_empty_store_a_command_on_a_branch_runs_with_secrets(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        with world.bot_is_down() as missed:
            number = await own_branch(world)
            world.github.comment(REPOSITORY, number, "eve", "what is this?")
        await world.back_up(missed, redeliver=False)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = await world.runs()
        assert (run.source.trust, run.plan.secrets) == (Trust.TRUSTED, ("DEPLOY",))


async def test_with_an_empty_store_an_app_that_pushed_the_branch_is_recognized(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        with world.bot_is_down() as missed:
            world.github.add_user("renovate[bot]", "Bot")
            await world.github.push(REPOSITORY, "x", GOOD, author="renovate[bot]")
            number = await world.github.open_from(REPOSITORY, REPOSITORY, "x", "ann")
        await world.back_up(missed, redeliver=False)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = await world.runs()
        assert (run.source.trust, run.plan.secrets) == (Trust.UNTRUSTED, ())


async def test_with_an_empty_store_no_fork_is_trusted(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=ONLY_TEST) as world:
        with world.bot_is_down() as missed:
            number = await own_fork(world)
        await world.back_up(missed, redeliver=False)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        (run,) = await world.runs()
        assert run.source.trust is Trust.UNTRUSTED


@pytest.mark.parametrize("opens", [own_branch, own_fork, outsiders_fork])
async def test_with_an_empty_store_a_push_after_a_late_command_is_recognized(tmp_path: Path, opens: object) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=ONLY_TEST) as world:
        with world.bot_is_down() as missed:
            number = await opens(world)  # type: ignore[operator]
        await world.back_up(missed, redeliver=False)
        with world.bot_is_down() as missed:
            world.github.comment(REPOSITORY, number, "ann", "/gibil test")
            await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.back_up([each for each in missed if each.event == "issue_comment"])
        assert await world.runs() == []
        assert world.github.head_sha(REPOSITORY, number) in world.answers(number)


async def test_re_run_and_retest_work_after_the_store_was_lost(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await own_branch(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs("failure")
        check = next(run for run in world.github.check_runs(REPOSITORY) if run.name == "gibil / test")
        async with bot_on(world.github, world.settings, f"sqlite:///{tmp_path}/new.db") as fresh:
            fresh.github.rerequest_check_run(check.id, "mallory")
            await fresh.handled()
            assert await fresh.runs() == []
            fresh.github.rerequest_check_run(check.id, "ann")
            await fresh.handled()
            fresh.github.rerequest_suite(REPOSITORY, check.head_sha, "ann")
            await fresh.handled()
            assert [run.plan.workflow for run in await fresh.runs()] == ["test"]
            assert {run.source.pull_request.number for run in await fresh.runs()} == {number}
        async with bot_on(world.github, world.settings, f"sqlite:///{tmp_path}/newer.db") as fresh:
            fresh.github.rerequest_suite(REPOSITORY, check.head_sha, "ann")
            await fresh.handled()
            assert sorted(run.plan.workflow for run in await fresh.runs()) == ["auto", "test"]
        async with bot_on(world.github, world.settings, f"sqlite:///{tmp_path}/newest.db") as fresh:
            fresh.github.comment(REPOSITORY, number, "ann", "/gibil retest")
            await fresh.handled()
            assert sorted(run.plan.workflow for run in await fresh.runs()) == ["auto", "test"]


async def test_a_re_run_of_a_removed_workflow_is_answered(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs()
        (tmp_path / "workflows" / "test.yml").rename(tmp_path / "workflows" / "check.yml")
        world.github.rerequest_check_run(world.github.check_runs(REPOSITORY)[0].id, "ann")
        await world.handled()
        assert len(await world.runs()) == 1
        assert "there is no workflow 'test'" in world.answers(number)


async def test_a_removed_workflow_does_not_block_the_retest_of_others(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await own_branch(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs("failure")
        (tmp_path / "workflows" / "auto.yml").unlink()
        world.github.comment(REPOSITORY, number, "ann", "/gibil retest")
        await world.handled()
        assert [run.plan.workflow for run in await world.runs()][2:] == ["test"]
        assert "there is no workflow 'auto'" in world.answers(number)


async def test_two_pull_requests_of_one_branch_are_re_run_separately(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, ALLOW, workflows=ONLY_TEST) as world:
        first = await own_branch(world)
        second = await world.github.open_from(REPOSITORY, REPOSITORY, "topic", "mallory")
        for number in (first, second):
            world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs()
        world.github.rerequest_suite(REPOSITORY, world.github.head_sha(REPOSITORY, first), "ann")
        await world.handled()
        trusts = {(run.source.pull_request.number, run.source.trust) for run in await world.runs()}
        assert trusts == {(first, Trust.TRUSTED), (second, Trust.UNTRUSTED)}
        assert len(await world.runs()) == 4


async def test_retest_uses_the_new_base_branch(tmp_path: Path) -> None:
    grouped = "on: {command: test}\nconcurrency: 'deploy-${{ github.base_ref }}'\ntasks:\n  - {name: only, run: 'exit 1'}\n"
    async with intake_bot(tmp_path, workflows={"test.yml": grouped}) as world:
        await world.github.push(REPOSITORY, "release", {"r.md": "r\n"}, author="ada")
        number = await own_branch(world)
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        await world.finish_runs("failure")
        await world.github.retarget(REPOSITORY, number, "release")
        world.github.comment(REPOSITORY, number, "ann", "/gibil retest")
        await world.handled()
        old, new = await world.runs()
        assert (old.plan.github["base_ref"], old.plan.concurrency_group) == ("main", "deploy-main")
        assert (new.plan.github["base_ref"], new.plan.concurrency_group) == ("release", "deploy-release")
        assert new.source.pull_request.base_ref == "release"


async def test_a_merge_queues_check_is_closed_at_once(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await own_branch(world)
        await world.handled()
        sha = await world.github.queue_merge(REPOSITORY, number)
        await world.handled()
        checks = {run.name: (run.conclusion, run.summary) for run in world.github.check_runs(REPOSITORY, sha)}
        assert set(checks) == {"gibil / test", "gibil / auto"}
        assert checks["gibil / test"][0] == "failure"
        assert "required checks of the merge queue" in str(checks["gibil / test"][1])


async def test_an_ordinary_command_sends_no_more_requests_than_needed(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        await world.handled()
        before = sum(world.client.requests.values())
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        asked = sum(world.client.requests.values()) - before
        # permission, eyes, pull request, the tree of the base branch, check run
        assert asked == 5


@pytest.mark.parametrize("moves", [False, True])
async def test_the_time_of_a_comment_is_fetched_if_the_payload_lacks_it(tmp_path: Path, moves: bool) -> None:
    async with intake_bot(tmp_path, workflows=ONLY_TEST) as world:
        number = await own_branch(world)
        await world.handled()
        with world.bot_is_down() as missed:
            world.github.comment(REPOSITORY, number, "ann", "/gibil test")
            if moves:
                await world.github.push(REPOSITORY, number, EVIL, author="ada")
        await world.back_up(missed, redeliver=False)
        payload = json.loads(next(each for each in missed if each.event == "issue_comment").body)
        del payload["comment"]["created_at"], payload["issue"]["updated_at"]
        world.github.deliver("issue_comment", payload)
        await world.handled()
        assert len(await world.runs()) == (0 if moves else 1)
