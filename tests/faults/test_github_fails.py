"""Whatever fails at GitHub, it finally shows the true result, once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")

QUICK = "name: Quick\non: {command: quick}\ntasks:\n  - {name: only, run: 'echo done'}\n"
GATED = (
    "name: Gated\non: {command: gated}\ntasks:\n"
    "  - {name: wait, run: 'until test -e /root/go; do sleep 0.05; done; echo went on'}\n"
)


def _answers(world: Journey) -> list[int]:
    """Return the bot's responses to deliveries of commands; its own comments are delivered, too."""
    return [d.status_code for d in world.github.deliveries if d.event == "issue_comment" and b'"/gibil quick"' in d.body]


async def _pull_request(world: Journey) -> int:
    return await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")


@pytest.mark.parametrize("kind", ["error_after", "drop_after"])
async def test_a_write_that_took_effect_before_the_error_is_not_repeated(tmp_path: Path, kind: str) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await _pull_request(world)
        world.github.fault("POST", "/check-runs$", kind)
        world.github.fault("POST", f"/issues/{number}/comments$", kind)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()
        assert len(world.github.check_runs(REPOSITORY)) == 1
        assert len([comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]) == 1


async def test_tokens_revoked_during_a_run_are_replaced(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await _pull_request(world)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        await world.seen(lambda: world.github.check_runs(REPOSITORY))
        world.github.revoke_tokens()
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()
        assert len([comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]) == 1


async def test_a_secondary_limit_with_a_retry_after_is_waited_for(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await _pull_request(world)
        world.github.fault("PATCH", "/check-runs/", "secondary_limit", seconds=2.0)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()


async def test_a_request_that_hangs_for_thirty_seconds_delays_no_other(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        await world.github.add_repository("grace/compiler", {"README.md": "a compiler\n"})
        number = await _pull_request(world)
        other = await world.github.open_pull_request("grace/compiler", "b", {"a.txt": "x\n"}, "grace")
        world.github.fault("GET", f"/repos/{REPOSITORY}/collaborators/ada/permission", "hang", seconds=30.0)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        world.github.comment("grace/compiler", other, "grace", "/gibil quick")
        quick = await world.closed_check(other, repository="grace/compiler", timeout_s=15.0)
        assert quick.conclusion == "success"
        assert world.github.check_runs(REPOSITORY) == []
        world.github.clear_faults()
        slow = await world.closed_check(number, timeout_s=60.0)
        assert slow.conclusion == "success"
        await world.all_published()


async def test_a_failed_delivery_is_fetched_at_the_next_start(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await _pull_request(world)
        await world.github.webhooks_sent()
        await world.bot.stop()
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        await world.github.webhooks_sent()
        await world.bot.start()
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()


async def test_a_delivery_in_the_first_moment_of_the_start_is_accepted(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await _pull_request(world)
        await world.github.webhooks_sent()
        await world.bot.stop()
        host, port = world.bot.url.removeprefix("http://").split(":")
        await world.bot.start(wait=False)
        async with asyncio.timeout(patient(30)):
            while True:
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                    break
                except OSError:
                    await asyncio.sleep(0.005)  # another process's port: there is no event to wait for
        writer.close()
        await writer.wait_closed()
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        assert _answers(world) == [202]
        await world.all_published()


async def test_a_repeated_delivery_has_one_effect_with_the_same_and_with_another_guid(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await _pull_request(world)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        await world.closed_check(number)
        first = next(d for d in world.github.deliveries if d.event == "issue_comment")
        world.github.redeliver(first.id)
        world.github.deliver("issue_comment", first.body)
        await world.github.webhooks_sent()
        await world.all_published()
        assert _answers(world) == [202, 202, 202]
        assert len(world.github.check_runs(REPOSITORY)) == 1
        assert len([comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]) == 1
