"""What commenters can cost: without permission next to nothing, with permission at most a limit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.patience import patient

QUICK = "name: Quick\non: {command: quick}\ntasks:\n  - {name: only, run: 'true'}\n"
# A provider that doesn't answer: no machine is created, and the checked behaviour comes before that.
NO_MACHINES = {"GIBIL_PROVIDER": "hetzner", "HCLOUD_TOKEN": "none", "HCLOUD_ENDPOINT": "http://127.0.0.1:9/v1"}


def _writes(world: Journey, ending: str) -> int:
    return sum(1 for each in world.github.requests if each.method == "POST" and each.path.endswith(ending))


async def test_comments_without_permission_do_not_delay_a_permitted_users_result(tmp_path: Path) -> None:
    settings = {**NO_MACHINES, "GIBIL_COMMANDS_PER_HOUR": "200"}
    async with journey(tmp_path, workflows={"quick.yml": QUICK}, settings=settings) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        for _ in range(100):
            world.github.comment(REPOSITORY, number, "mallory", "/gibil quick")
        await world.github.webhooks_sent()
        begun = time.monotonic()
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        await world.seen(lambda: world.github.check_runs(REPOSITORY), 60)
        assert time.monotonic() - begun < patient(20)
        replies = [comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]
        assert sum("commands need write permission" in reply.body for reply in replies) == 1
        assert _writes(world, "/reactions") <= 102
        assert _writes(world, "/comments") <= 3


@pytest.mark.usefixtures("local_machines")
async def test_commands_above_the_limit_get_one_answer_and_start_nothing_but_cancel_still_works(tmp_path: Path) -> None:
    settings = {"GIBIL_COMMANDS_PER_HOUR": "2"}
    async with journey(tmp_path, workflows={"quick.yml": QUICK}, settings=settings) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        for _ in range(8):
            world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        answer = await world.answer(number, having="limit of 2 commands an hour")
        assert "GIBIL_COMMANDS_PER_HOUR" in answer.body
        await world.github.webhooks_sent()
        await world.all_published()
        assert len(world.github.check_runs(REPOSITORY)) == 2
        replies = [comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]
        assert sum("limit of 2 commands" in reply.body for reply in replies) == 1
        world.github.rerequest_check_run(world.github.check_runs(REPOSITORY)[0].id, "ada")
        await world.github.webhooks_sent()
        await world.all_published()  # a cancellation before this would also cancel the unhandled re-run
        world.github.comment(REPOSITORY, number, "ada", "/gibil cancel")
        await world.answer(number, having="Nothing is running or queued")
        assert len(world.github.check_runs(REPOSITORY)) == 2
