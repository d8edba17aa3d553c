"""An approval lets one commit run, without secrets, until the next push. No trick extends it to another commit."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.model import Trust
from tests.attacks.test_trust_of_code import EVIL, by_app, outsiders_fork
from tests.doubles.intake import REPOSITORY, IntakeBot, intake_bot


def approve(world: IntakeBot, number: int, sha: str, author: str = "ann", more: str = "") -> None:
    world.github.comment(REPOSITORY, number, author, f"/gibil approve {sha}{more}")


@pytest.mark.parametrize("digits", [40, 7])
async def test_an_approved_commit_runs_without_secrets(tmp_path: Path, digits: int) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        head = world.github.head_sha(REPOSITORY, number)
        await world.handled()
        assert world.approvals(number) == [(head, "action_required")]
        check = world.github.check_runs(REPOSITORY)[0]
        assert f"/gibil approve {head}" in f"{check.summary}"
        approve(world, number, head[:digits].upper())
        await world.handled()
        assert world.approvals(number) == [(head, "success")]
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.handled()
        runs = await world.runs()
        assert [(run.plan.workflow, run.source.trust, run.plan.secrets) for run in runs] == [
            ("auto", Trust.UNTRUSTED, ()),
            ("test", Trust.UNTRUSTED, ()),
        ]


async def test_an_approval_and_a_command_in_one_comment_run_the_command(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, world.github.head_sha(REPOSITORY, number), more="\n/gibil test")
        await world.handled()
        assert sorted(run.plan.workflow for run in await world.runs()) == ["auto", "test"]


async def test_an_approved_run_can_be_re_run_and_retested(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, world.github.head_sha(REPOSITORY, number))
        await world.handled()
        await world.finish_runs("failure")
        check = next(run for run in world.github.check_runs(REPOSITORY) if run.name == "gibil / auto")
        world.github.rerequest_check_run(check.id, "ann")
        await world.handled()
        await world.finish_runs("failure")
        world.github.comment(REPOSITORY, number, "ann", "/gibil retest")
        await world.handled()
        assert [run.source.trust for run in await world.runs()] == [Trust.UNTRUSTED] * 3


async def test_an_approval_of_a_former_head_is_rejected_with_the_current_one(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        old = world.github.head_sha(REPOSITORY, number)
        head = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        approve(world, number, old, more="\n/gibil test")
        await world.handled()
        assert await world.runs() == []
        assert f"/gibil approve {head}" in world.answers(number)
        assert (head, "action_required") in world.approvals(number)
        assert (head, "success") not in world.approvals(number)


@pytest.mark.parametrize("sha", ["", "abc123", "HEAD", "main", "0" * 40, "..", "refs/heads/topic", "*", "0123456789abcdefg"])
async def test_an_approval_of_another_commit_than_the_head_is_rejected(tmp_path: Path, sha: str) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, sha, more="\n/gibil test")
        await world.handled()
        assert await world.runs() == []
        assert world.github.head_sha(REPOSITORY, number) in world.answers(number)


async def test_six_digits_are_not_enough(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, world.github.head_sha(REPOSITORY, number)[:6])
        await world.handled()
        assert await world.runs() == []


@pytest.mark.parametrize("author", ["mallory", "eve"])
async def test_a_user_without_write_permission_cannot_approve(tmp_path: Path, author: str) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, world.github.head_sha(REPOSITORY, number), author)
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert await world.runs() == []


async def test_the_next_push_ends_an_approval(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, world.github.head_sha(REPOSITORY, number))
        await world.handled()
        ran = len(await world.runs())
        head = await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert len(await world.runs()) == ran
        assert world.approvals(number)[-1] == (head, "action_required")


async def test_a_force_push_back_to_an_approved_commit_does_not_revive_the_approval(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approved = world.github.head_sha(REPOSITORY, number)
        approve(world, number, approved)
        await world.handled()
        ran = len(await world.runs())
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.github.reset_branch(REPOSITORY, number, approved, "mallory")
        await world.handled()
        assert world.github.head_sha(REPOSITORY, number) == approved
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert len(await world.runs()) == ran
        assert (approved, "action_required") in world.approvals(number)


async def test_an_approval_delivered_after_a_push_approves_nothing(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        head = world.github.head_sha(REPOSITORY, number)
        await world.handled()
        with world.bot_is_down() as missed:
            approve(world, number, head)
            await world.github.push(REPOSITORY, number, EVIL, author="mallory")
            await world.github.reset_branch(REPOSITORY, number, head, "mallory")
        await world.back_up([each for each in missed if each.event == "pull_request"])
        await world.back_up([each for each in missed if each.event == "issue_comment"])
        world.github.comment(REPOSITORY, number, "ann", "/gibil test")
        await world.handled()
        assert await world.runs() == []
        assert "was pushed to after that comment" in world.answers(number)


async def test_an_approval_redelivered_after_a_push_approves_nothing(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        approve(world, number, world.github.head_sha(REPOSITORY, number))
        await world.handled()
        ran = len(await world.runs())
        (delivery,) = [
            each for each in world.github.deliveries if each.event == "issue_comment" and b"/gibil approve" in each.body
        ][:1]
        await world.github.push(REPOSITORY, number, EVIL, author="mallory")
        await world.handled()
        world.github.redeliver(delivery.id)
        world.github.deliver("issue_comment", delivery.body)
        await world.handled()
        assert len(await world.runs()) == ran


async def test_an_approval_applies_to_its_own_pull_request_only(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        first = await outsiders_fork(world)
        approve(world, first, world.github.head_sha(REPOSITORY, first))
        await world.handled()
        ran = len(await world.runs())
        second = await world.github.open_from(REPOSITORY, "mallory/engine", "topic", "mallory")
        world.github.comment(REPOSITORY, second, "ann", "/gibil test")
        await world.handled()
        assert len(await world.runs()) == ran


async def test_a_closed_pull_request_cannot_be_approved(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        world.github.close_pull_request(REPOSITORY, number)
        await world.handled()
        approve(world, number, world.github.head_sha(REPOSITORY, number))
        await world.handled()
        assert "is closed" in world.answers(number)
        assert (world.github.head_sha(REPOSITORY, number), "success") not in world.approvals(number)


async def test_the_check_run_asks_once_for_each_commit(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        for _ in range(3):
            world.github.comment(REPOSITORY, number, "ann", "/gibil test")
            await world.handled()
        (check,) = world.github.check_runs(REPOSITORY)
        assert (check.conclusion, check.updates) == ("action_required", 0)
        world.github.rerequest_check_run(check.id, "ann")
        await world.handled()
        world.github.rerequest_suite(REPOSITORY, check.head_sha, "ann")
        await world.handled()
        assert await world.runs() == []
        assert len(world.github.check_runs(REPOSITORY)) == 1
        assert world.answers(number).count("gibil-notice") == 1


async def test_an_approval_starts_the_waiting_workflows_of_an_apps_branch(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await by_app(world)
        await world.handled()
        for _ in range(2):
            approve(world, number, world.github.head_sha(REPOSITORY, number))
            await world.handled()
        assert [(run.plan.workflow, run.plan.secrets) for run in await world.runs()] == [("auto", ())]


async def test_an_approval_is_void_when_its_author_loses_write_permission(tmp_path: Path) -> None:
    async with intake_bot(tmp_path) as world:
        number = await outsiders_fork(world)
        await world.handled()
        sha = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ann", f"/gibil approve {sha}")
        await world.handled()
        before = await world.runs()
        world.github.set_permission(REPOSITORY, "ann", "read")
        world.github.close_pull_request(REPOSITORY, number, "mallory")
        world.github.reopen_pull_request(REPOSITORY, number, "mallory")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.handled()
        assert len(before) == len(await world.runs()) == 1
        world.github.comment(REPOSITORY, number, "ada", f"/gibil approve {sha}\n/gibil test")
        await world.handled()
        assert [run.plan.workflow for run in await world.runs()] == ["auto", "test"]
