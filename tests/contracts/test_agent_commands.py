"""Commands of agents, from a comment to a waiting run or an answer; no machine is involved."""

from __future__ import annotations

from pathlib import Path

from gibil_bot.agents.pull_request import Trigger, pull_request_context
from gibil_bot.model import RequestText
from gibil_bot.runs.last_failure import failed_tasks, last_failed_run
from gibil_bot.workflows_dir import read_workflows, shipped_workflows
from tests.doubles.intake import REPOSITORY, intake_bot

SHIPPED = {name: data.decode() for name, data in read_workflows(shipped_workflows()).items()}


async def test_the_text_of_a_comment_becomes_the_prompt_of_a_waiting_run(tmp_path: Path) -> None:
    settings = {"GIBIL_MODEL_KEY_OPENAI": "k" * 20}
    async with intake_bot(tmp_path, settings, workflows=SHIPPED) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.py": "1\n"}, "ada")
        await world.handled()
        body = "Thanks!\n\n/gibil do Rename `a` to `b`,\nand adapt the tests.\n\n> now\n\n/gibil review"
        world.github.comment(REPOSITORY, number, "ann", body)
        await world.handled()
        do, review = await world.runs(number)
        assert do.plan.inputs == {"instruction": "Rename `a` to `b`,\nand adapt the tests."}
        agent = do.plan.tasks[0].agent
        assert agent is not None
        assert agent.prompt.startswith("Rename `a` to `b`,\nand adapt the tests.\n")
        assert agent.engine == "codex", "the first engine with a key"
        assert review.plan.inputs == {"focus": ""}
        world.github.comment(REPOSITORY, number, "ann", "/gibil do")
        world.github.comment(REPOSITORY, number, "ann", "/gibil do " + "x" * 8001)
        world.github.comment(REPOSITORY, number, "ann", "/gibil help")
        await world.handled()
        answers = world.answers(number)
        assert "`/gibil do` needs `instruction` (what to change): write it after the command" in answers
        assert "`instruction` has 8,001 characters, and may have 8,000" in answers
        assert "`/gibil do <\u200binstruction>`: Do: " in answers
        assert len(await world.runs(number)) == 2


async def test_an_agent_reads_what_its_comment_says_around_the_command_also_after_a_retest(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, {"GIBIL_MODEL_KEY_OPENAI": "k" * 20}, workflows=SHIPPED) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.py": "1\n"}, "ada")
        await world.handled()
        body = "> It breaks on tabs.\n\nTrue, and on `\\f`.\n\n/gibil fix\n\n/gibil test"
        asked = RequestText(author="ann", words="True, and on `\\f`.", quotes="> It breaks on tabs.")
        world.github.comment(REPOSITORY, number, "ann", body)
        await world.handled()
        assert [(run.plan.workflow, run.source.request) for run in await world.runs(number)] == [("fix", asked), ("test", None)]
        await world.finish_runs("failure")
        world.github.comment(REPOSITORY, number, "ada", "/gibil retest fix")
        await world.handled()
        await world.finish_runs("failure")
        world.github.comment(REPOSITORY, number, "ada", "Only the tabs.\n/gibil retest fix")
        await world.handled()
        again = [run.source.request for run in await world.runs(number) if run.plan.workflow == "fix"][1:]
        assert again == [asked, RequestText(author="ada", words="Only the tabs.")]


async def test_without_a_key_the_command_is_answered_at_once_and_nothing_waits(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, workflows=SHIPPED) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.py": "1\n"}, "ada")
        await world.handled()
        world.github.comment(REPOSITORY, number, "ann", "/gibil fix")
        await world.handled()
        assert "this bot has no key of a model's vendor. The operator sets GIBIL_MODEL_KEY_ANTHROPIC" in world.answers(number)
        assert await world.runs(number) == []


async def test_explain_is_about_the_newest_failed_run(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, {"GIBIL_MODEL_KEY_ANTHROPIC": "k" * 20}, workflows=SHIPPED) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.py": "1\n"}, "ada")
        await world.handled()
        repository = world.github.state.repository(REPOSITORY).id
        for command, conclusion in (("explain", ""), ("test", "success"), ("explain", ""), ("lint", "failure")):
            world.github.comment(REPOSITORY, number, "ann", f"/gibil {command}")
            await world.handled()
            await world.finish_runs(conclusion or "success")
        assert [run.plan.workflow for run in await world.runs(number)] == ["test", "lint"]
        assert world.answers(number).count("No run of this pull request has failed, so there is nothing to explain.") == 2
        world.github.comment(REPOSITORY, number, "ann", "/gibil explain")
        await world.handled()
        await world.finish_runs("failure")
        failed = await last_failed_run(world.store.runs, repository, number)
        assert failed is not None
        assert failed.plan.workflow == "lint", "the failed explanation doesn't count"
        (task,) = await failed_tasks(world.store.runs, failed)
        assert task.name == f"lint at {failed.source.sha[:7]}"


async def test_the_agent_knows_on_which_line_the_request_was_written(tmp_path: Path) -> None:
    async with intake_bot(tmp_path, {"GIBIL_MODEL_KEY_ANTHROPIC": "k" * 20}, workflows=SHIPPED) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"a.py": "1\n"}, "ada")
        await world.handled()
        for body, path in (("/gibil do this", "a.py"), ("/gibil fix", None)):
            if path is not None:
                world.github.review_comment(REPOSITORY, number, "ann", body, path=path)
            else:
                world.github.comment(REPOSITORY, number, "ann", body)
            await world.handled()
        places = []
        for run in await world.runs(number):
            trigger = Trigger(at=run.queued_at, comment_id=run.source.comment_id)
            places.append((await pull_request_context(world.client, run.source, trigger)).requested_at)
        assert places == ["a.py", ""]
