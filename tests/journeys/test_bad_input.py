"""Bad input is rejected and has no other effect: the bot that got all of it still works."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, Journey, journey

pytestmark = pytest.mark.usefixtures("local_machines")

QUICK = "name: Quick\non: {command: quick}\ntasks:\n  - {name: only, run: 'true'}\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)


def _without_optional_fields(body: bytes) -> bytes:
    """Return the payload with only the fields that a comment needs."""
    full = json.loads(body)
    return json.dumps(
        {
            "action": "created",
            "installation": {"id": full["installation"]["id"]},
            "repository": {k: full["repository"][k] for k in ("id", "full_name", "clone_url")},
            "issue": {"number": full["issue"]["number"], "pull_request": {}},
            "comment": {"id": full["comment"]["id"], "body": full["comment"]["body"], "user": {"login": "ada"}},
        }
    ).encode()


async def _send_everything_bad(world: Journey, number: int) -> None:
    deliver = world.github.deliver
    for event in ("issue_comment", "pull_request", "check_run", "check_suite", "pull_request_review_comment"):
        for body in (b"{}", b'{"action": "created"}', b'{"action": 1, "repository": []}', b'{"installation": null}'):
            deliver(event, body)
    deliver("an_event_that_we_never_heard_of", b'{"action": "created"}')
    deliver("issue_comment", b"{" * 50)
    deliver("issue_comment", b'{"action": "\xff"}')
    world.github.comment(REPOSITORY, number, "ada", "/gibil " + "x" * 1_000_000)
    world.github.comment(REPOSITORY, number, "ada", "`" * 500_000 + "\n/gibil \x00\n" + "> /gibil quick\n" * 20_000)
    await world.github.webhooks_sent()


async def test_a_bot_still_works_after_handling_all_kinds_of_bad_input(tmp_path: Path) -> None:
    files = {"README.md": "x\n", ".gibil/workflows/bomb.yml": BOMB, ".gibil/workflows/big.yml": "# " + "x" * 70_000}
    async with journey(tmp_path, files, workflows={"quick.yml": QUICK}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "b", {"engine.py": "POWER = 2\n"}, "ada")
        await _send_everything_bad(world, number)
        assert {d.status_code for d in world.github.deliveries} <= {202, 400}
        await world.all_published()
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()
        problems = await world.answer(number, having="bomb.yml")
        assert "64 KiB" in problems.body
        assert "Traceback" not in world.bot.text()


async def test_a_payload_without_any_optional_field_is_accepted(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "b", {"engine.py": "POWER = 2\n"}, "ada")
        await world.github.webhooks_sent()
        world.github.fail_deliveries(1)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        await world.github.webhooks_sent()
        lost = next(d for d in world.github.deliveries if d.event == "issue_comment")
        # With its own GUID, because the bot asks GitHub for lost deliveries.
        world.github.deliver("issue_comment", _without_optional_fields(lost.body), guid=lost.guid)
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()
