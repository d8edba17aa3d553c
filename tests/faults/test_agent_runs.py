"""Bots are killed and stopped, machines are lost and budgets end while agents work: the agents' work isn't done twice."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from gibil_bot.demo.records import CheckRun
from gibil_bot.providers.local.provider import LocalProvider
from tests.doubles.bot import REPOSITORY, Journey
from tests.doubles.patience import patient
from tests.journeys.test_agents import ASK, NEEDS_CURL, agents, workflow

pytestmark = [pytest.mark.usefixtures("local_machines"), NEEDS_CURL]

# After the agent's work it takes a second, so that it can be interrupted.
CHECK = """\
test ! -e /root/starts || for i in $(seq 20); do echo "check $i"; sleep 0.05; done
grep -q 'POWER = 3' engine.py || { echo 'POWER is wrong'; exit 1; }
"""
# It notes what may steer it all the time.
ROUNDS = f"""\
cat >/root/prompt
echo start >>/root/starts
n=$(wc -l </root/starts)
echo "start $n: $(grep -c 'POWER is wrong' /root/prompt), $(grep -c 'check 20' /root/prompt)"
if test $n = 2; then git checkout -q engine.py; fi
ask() {{
  {ASK.replace(chr(10), chr(10) + "  ")}
}}
(while cat CLAUDE.md >>/root/steering 2>&1 || true; do sleep 0.02; done) &
until ask >/dev/null 2>&1; do sleep 0.1; done
kill $!
if test $n = 1; then sed -i 's/= 2/= 4/' engine.py; else sed -i 's/= 2/= 3/' engine.py; fi
echo "end $n: $(grep -v cat: /root/steering | sort -u)"
"""


async def printed(world: Journey, text: str, name: str = "1.log") -> Path:
    """Wait until the log of a task contains the text; return its path."""
    async with asyncio.timeout(patient(30)):
        while True:
            for path in (world.bot.data_dir / "logs").glob(f"*/{name}"):
                if text in path.read_text():
                    return path
            await asyncio.sleep(0.02)  # another process's file: there is no event to wait for


def lines_of(log: Path) -> list[str]:
    """Return the lines of an agent's log without those that say what was spent."""
    return [line.strip() for line in log.read_text().splitlines() if line and "until now" not in line]


async def test_an_agents_work_goes_on_when_the_bot_is_killed_and_stopped(tmp_path: Path) -> None:
    files = {"engine.py": "POWER = 1\n", "test.sh": CHECK, "CLAUDE.md": "the base's words\n"}
    async with agents(tmp_path, {"fix.yml": workflow(ROUNDS)}, files=files, GIBIL_LOCAL_UNTRUSTED="allow") as (world, model):
        changed = {"engine.py": "POWER = 2\n", "CLAUDE.md": "the fork's words\n"}
        number = await world.github.open_pull_request(REPOSITORY, "topic", changed, "mallory", fork=True)
        before = world.github.head_sha(REPOSITORY, number)
        model.fault("silence", times=1)
        model.fault("silence", after=1, times=2)
        world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
        await model.wait_for(lambda: len(model.calls) == 1)
        assert await world.bot.stop() == 0  # while the program waits for its model
        await world.bot.start()
        await printed(world, "check 3\n")
        await world.bot.kill()  # while the check runs
        await world.bot.start()
        await model.wait_for(lambda: len(model.calls) == 3)
        await world.seen(lambda: "2 calls, about" in f"{world.github.check_runs(REPOSITORY)[0].summary}")
        await world.bot.kill()  # while the program of the second round has undone the changes of the first
        log = await printed(world, "gibil: round 2")
        shutil.rmtree(log.parent)  # as on another host that continues the run
        await world.bot.start()
        await printed(world, "gibil: round 2")
        model.released.set()
        check = await world.closed_check()
        await world.all_published()
        assert check.conclusion == "success", f"{check.summary}\n{check.text}\n{world.bot.text()}"
        checked = [f"check {i}" for i in range(1, 21)]
        assert lines_of(log) == [
            "start 1: 1, 0",
            "end 1: the base's words",
            "gibil: test, after round 1",
            *checked,
            "POWER is wrong",
            "gibil: round 2 of 2",
            "start 2: 1, 1",
            "end 2: the base's words",
            "gibil: test, after round 2",
            *checked,
        ]
        # Calls that were cut count as estimates.
        assert "The agent made test pass after 2 rounds." in f"{check.summary}"
        assert "4 calls, about" in f"{check.summary}"
        assert "The result is a patch" in f"{check.summary}"
        assert "CLAUDE.md" not in f"{check.text}"
        assert world.github.head_sha(REPOSITORY, number) == before
        await world.assert_nothing_left()


# Each attempt asks its model until it has an answer.
ATTEMPT = f"""\
cat >/dev/null
echo start >>/root/starts
echo "start $(wc -l </root/starts)"
ask() {{
  {ASK.replace(chr(10), chr(10) + "  ")}
}}
until ask >/dev/null 2>&1; do sleep 0.1; done
sed -i 's/= 2/= 3/' engine.py
case $(hostname) in *-1) seq 50 >>notes.txt ;; esac
echo repaired
"""


def side_by_side(command: str, number: int = 3, more: str = "") -> str:
    keys = f"attempts: {number}\n      choose: sh test.sh\n{more}"
    return workflow(command).replace("until: test\n      rounds: 2\n", keys).replace("if: failure()", "if: always()")


def without_failures(text: str) -> str:
    return text.replace("run: sh test.sh}", "run: sh test.sh, continue-on-error: true}")


async def destroy(world: Journey, name: str) -> None:
    provider = LocalProvider(world.bot.data_dir)
    try:
        assert await provider.destroy(name)
    finally:
        await provider.close()


async def test_attempts_go_on_when_the_bot_is_killed_and_one_of_their_machines_is_lost(tmp_path: Path) -> None:
    async with agents(tmp_path, {"fix.yml": without_failures(side_by_side(ATTEMPT))}) as (world, model):
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        model.fault("silence", times=3)
        world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
        await model.wait_for(lambda: len(model.calls) == 3)
        names = await world.machines()
        assert len(names) == 4
        (lost,) = (name for name in names if name.endswith("-1-3"))
        await destroy(world, lost)
        log = await printed(world, "gibil: attempt 3: ")
        await world.bot.kill()
        assert sorted(await world.machines()) == sorted({*names} - {lost})
        await world.bot.start()
        check = await world.closed_check()
        await world.all_published()
        assert check.conclusion == "success", f"{check.summary}\n{check.text}\n{world.bot.text()}"
        assert "Attempt 2 of 3 was used: the smallest change of 2 that passed." in f"{check.summary}"
        assert len(model.calls) == 5
        for attempt in (1, 2):
            assert lines_of(log.parent / f"1-{attempt}.log") == ["start 1", "repaired"]
        assert len(list(log.parent.glob("1-*.patch"))) == 2
        assert log.read_text().count("gibil: attempt 3: ") == 1
        await world.assert_nothing_left()


async def test_agents_end_when_their_run_or_commit_or_budget_or_time_does(tmp_path: Path) -> None:
    loops = ATTEMPT.replace("until ask >/dev/null 2>&1; do sleep 0.1; done", "while ask >/dev/null; do :; done; exit 1")
    hangs = "cat >/dev/null\nif test -e /root/worked; then sleep 600; fi\ntouch /root/worked\nsed -i 's/= 2/= 4/' engine.py"
    hanging = workflow(hangs).replace("      model: claude-sonnet-4-5\n", "")
    hanging = hanging.replace("failure()", "failure()\n    timeout-minutes: 0.1")
    workflows = {
        "fix.yml": workflow(ATTEMPT),
        "two.yml": side_by_side(ATTEMPT, 2).replace("{command: fix}", "{command: two}"),
        "loop.yml": side_by_side(loops, 2, "      budget: 0.01\n").replace("{command: fix}", "{command: loop}"),
        "hang.yml": hanging.replace("{command: fix}", "{command: hang}"),
    }
    async with agents(tmp_path, workflows) as (world, model):
        numbers = [
            await world.github.open_pull_request(
                REPOSITORY, f"topic-{index}", {"engine.py": "POWER = 2\n", "number.txt": f"{index}\n"}, "ada"
            )
            for index in range(len(workflows))
        ]
        heads = [world.github.head_sha(REPOSITORY, number) for number in numbers]

        def closed() -> list[CheckRun] | None:
            checks = [world.github.check_runs(REPOSITORY, head) for head in heads]
            return [check for (check,) in checks] if all(each and each[0].status == "completed" for each in checks) else None

        model.fault("silence", times=3)
        world.github.comment(REPOSITORY, numbers[0], "ada", "/gibil fix")
        world.github.comment(REPOSITORY, numbers[1], "ada", "/gibil two")
        await model.wait_for(lambda: len(model.calls) == 3)
        await world.github.push(REPOSITORY, numbers[0], {"engine.py": "POWER = 3\n"})
        world.github.comment(REPOSITORY, numbers[1], "ada", "/gibil cancel")
        world.github.comment(REPOSITORY, numbers[2], "ada", "/gibil loop")
        world.github.comment(REPOSITORY, numbers[3], "ada", "/gibil hang")
        await world.seen(closed)
        await world.all_published()
        await world.assert_nothing_left()
        checks = closed()
        assert checks is not None
        superseded, cancelled, exceeded, timed_out = checks
        assert [check.conclusion for check in checks] == ["cancelled", "cancelled", "failure", "failure"], world.bot.text()
        assert "superseded by" in f"{superseded.summary}"
        for check in (superseded, cancelled):
            assert "call, about" in f"{check.summary}", check.summary
        assert (await world.closed_check(numbers[0])).conclusion == "success"
        assert "None of the 2 attempts passed." in f"{exceeded.summary}"
        assert "the budget of this task is 0.01 USD" in f"{exceeded.summary}"
        assert "The agent was stopped after 6.0 s, the task" in f"{timed_out.summary}"
        assert "gibil: round 2 of 2" in (await printed(world, "test, after round 1")).read_text()


async def test_a_lost_machine_is_replaced_once_and_its_calls_count(tmp_path: Path) -> None:
    once = ATTEMPT.replace(
        "until ask >/dev/null 2>&1; do sleep 0.1; done", "ask >/dev/null\nuntil ask >/dev/null; do sleep 0.1; done"
    )
    async with agents(tmp_path, {"fix.yml": workflow(once)}) as (world, model):
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        model.fault("silence", after=1, times=1)
        world.github.comment(REPOSITORY, number, "ada", "/gibil fix")
        await model.wait_for(lambda: len(model.calls) == 2)
        (name,) = await world.machines()
        await destroy(world, name)
        check = await world.closed_check()
        await world.all_published()
        assert check.conclusion == "success", f"{check.summary}\n{check.text}\n{world.bot.text()}"
        assert "everything was restarted on a new one" in f"{check.summary}"
        assert "4 calls, about" in f"{check.summary}"
        await world.assert_nothing_left()
