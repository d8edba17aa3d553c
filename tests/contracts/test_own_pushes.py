"""Commits that the bot pushed for a run: what they start, how often, and who counts as their pusher."""

from __future__ import annotations

from pathlib import Path

from gibil_bot.model import Claim, CommitProgress, Conclusion, Trust
from gibil_bot.runs.rate_limit import own_push
from tests.contracts.store_nouns import Clock
from tests.doubles.databases import open_store
from tests.doubles.intake import REPOSITORY, IntakeBot, intake_bot

TASKS = "tasks: [{run: 'true'}]\n"
WORKFLOWS = {
    "fix.yml": f"on: {{command: fix}}\n{TASKS}commit: Fix\n",
    "auto.yml": f"on: pull_request\n{TASKS}",
    "again.yml": f"on: {{own-push: {{max-attempts: 2}}}}\n{TASKS}",
}


async def push_as_bot(world: IntakeBot, number: int, claim: Claim, text: str) -> None:
    """Push as the App, for that run; the event arrives after the run has stored the commit, as in a real run."""
    bot = world.github.state.bot.login
    with world.bot_is_down() as missed:
        sha = await world.github.push(REPOSITORY, number, {"a.txt": text}, author=bot)
        await world.github.webhooks_sent()
    await world.store.runs.save_commit(claim, CommitProgress(phase="created", created=sha, expected=claim.run.source.sha))
    await world.back_up(missed)


async def fixing(world: IntakeBot) -> tuple[int, Claim]:
    """Return a pull request of ada, and the claim of a run that commits to it."""
    number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.txt": "0"}, "ada")
    await world.handled()
    await world.finish_runs()
    world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
    await world.handled()
    claim = await world.store.runs.claim("the test", lease_s=600.0, max_machines=100)
    assert claim is not None
    return number, claim


async def test_own_commits_start_only_what_asks_for_them_and_a_loop_is_stopped(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=WORKFLOWS) as world:
        number, claim = await fixing(world)
        for text in ("1", "2", "3", "4"):
            await push_as_bot(world, number, claim, text)
        names = [run.plan.workflow for run in await world.runs(number)]
        assert (names.count("again"), names.count("auto"), names.count("fix")) == (2, 1, 1)
        fix = await world.store.runs.get(claim.run.id)
        assert fix is not None
        assert fix.cancel_reason is None  # its own push doesn't supersede it
        assert world.answers(number).count("wasn't started: commits of Apps have started it 2 times") == 1


async def test_own_commits_of_a_trusted_run_count_as_pushed_by_its_requester(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=WORKFLOWS) as world:
        number, claim = await fixing(world)
        await push_as_bot(world, number, claim, "1")
        again = (await world.runs(number))[-1]
        assert (again.plan.workflow, again.source.actor, again.source.trust) == ("again", "ada", Trust.TRUSTED)
        world.github.set_permission(REPOSITORY, "ann", "write")
        world.github.comment(REPOSITORY, number, "ann", "/gibil fix")
        await world.handled()
        assert (await world.runs(number))[-1].source.trust is Trust.TRUSTED


async def test_a_push_of_another_app_does_not_count_as_an_own_push(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=WORKFLOWS) as world:
        number, _ = await fixing(world)
        world.github.add_user("renovate[bot]", "Bot")
        await world.github.push(REPOSITORY, number, {"a.txt": "x"}, author="renovate[bot]")
        await world.handled()
        names = [run.plan.workflow for run in await world.runs(number)]
        assert "again" not in names


PING_PONG = {
    "fix.yml": f"on: {{command: fix, pull_request: [synchronize]}}\n{TASKS}commit: Fix\n",
    "ping.yml": f"on: {{own-push: {{max-attempts: 2}}}}\n{TASKS}commit: Ping\n",
    "pong.yml": f"on: {{own-push: {{max-attempts: 3}}}}\n{TASKS}commit: Pong\n",
}


async def test_workflows_that_answer_each_others_commits_stop_at_their_limits(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=PING_PONG) as world:
        number, claim = await fixing(world)
        text = 0
        waiting = [claim]
        while waiting:  # every run commits
            claim = waiting.pop()
            text += 1
            await push_as_bot(world, number, claim, str(text))
            await world.store.runs.finish(claim, Conclusion.SUCCESS, [])
            while found := await world.store.runs.claim("the test", lease_s=600.0, max_machines=100):
                waiting.append(found)
        names = [run.plan.workflow for run in await world.runs(number)]
        # A workflow of pull requests that changes them isn't started by its own commit.
        assert (names.count("fix"), names.count("ping"), names.count("pong")) == (1, 2, 3)
        for workflow, most in (("ping", 2), ("pong", 3)):
            stopped = f"The workflow `{workflow}` wasn't started: commits of Apps have started it {most} times"
            assert world.answers(number).count(stopped) == 1


async def test_a_commit_of_a_forgotten_run_starts_nothing_else(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=WORKFLOWS) as world:
        number, claim = await fixing(world)
        await world.github.push(REPOSITORY, number, {"a.txt": "1"}, author=world.github.state.bot.login)
        await world.handled()
        assert [run.plan.workflow for run in await world.runs(number)] == ["auto", "fix"]
        fix = await world.store.runs.get(claim.run.id)
        assert fix is not None
        assert fix.cancel_reason is None


async def test_the_limit_of_own_pushes_holds_within_any_hour(database_url: str, clock: Clock) -> None:
    store = await open_store(database_url, clock=clock)
    try:

        async def starts() -> list[tuple[bool, bool]]:
            found = [await own_push(store.inbox, 1, 7, "again", 2) for _ in range(3)]
            return [(spending.allowed, spending.first_refusal) for spending in found]

        assert await starts() == [(True, False), (True, False), (False, True)]
        clock.advance(3599)
        assert await starts() == [(False, False)] * 3
        clock.advance(1)
        assert await starts() == [(True, False), (True, False), (False, True)]
        assert (await own_push(store.inbox, 1, 8, "again", 2)).allowed
    finally:
        await store.close()
