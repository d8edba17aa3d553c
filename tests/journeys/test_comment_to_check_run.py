"""From a comment to a check run, with no machine left at the provider: the complete main journey."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, journey

pytestmark = pytest.mark.usefixtures("local_machines")

GIBIL_YML = """\
tasks:
  - name: compile
    run: python3 -m compileall -q engine.py
  - name: greet
    run: |
      echo "working on $GIBIL_PR_NUMBER of $GITHUB_REPOSITORY at $GITHUB_SHA"
      echo "### It was greeted" >> "$GITHUB_STEP_SUMMARY"
      echo "GREETING=hello" >> "$GITHUB_ENV"
  - name: use
    run: test "$GREETING" = hello && git rev-parse HEAD
"""
FILES = {"engine.py": "POWER = 1\n", ".gibil.yml": GIBIL_YML}


async def test_a_comment_becomes_a_completed_check_run_and_the_machine_is_destroyed(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        comment = world.github.comment(REPOSITORY, number, "ada", "/gibil test")

        check = await world.closed_check(number)
        await world.all_published()

        assert check.name == "gibil / test"
        assert check.conclusion == "success", check.text or check.summary
        assert check.head_sha == world.github.head_sha(REPOSITORY, number)
        shown = f"{check.summary}{check.text}"
        for name in ("compile", "greet", "use", "It was greeted"):
            assert name in shown
        assert {r.content for r in world.github.reactions(comment.id)} == {"eyes"}
        answers = [c for c in world.github.comments(REPOSITORY, number) if c.by_app]
        assert len(answers) == 1
        await world.assert_nothing_left()

        phases = [event["phase"] for event in world.bot.events(check.external_id)]
        assert phases[:5] == ["claimed", "forging", "forged", "cloning", "cloned"]
        assert phases[-3:] == ["burning", "burned", "finished"]


async def test_a_repeated_command_edits_the_comment_and_creates_a_new_check_run(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.closed_check(number)
        await world.all_published()
        # By another user, so that the comment changes even if both runs take equally long.
        world.github.set_permission(REPOSITORY, "grace", "write")
        world.github.comment(REPOSITORY, number, "grace", "again, please:\n\n/gibil test")
        await world.closed_check(number, count=2)
        await world.all_published()

        answers = [c for c in world.github.comments(REPOSITORY, number) if c.by_app]
        assert len(answers) == 1
        assert answers[0].edits >= 1


async def test_a_failing_task_fails_the_check_run_which_shows_the_end_of_its_output(tmp_path: Path) -> None:
    tasks = (
        "tasks:\n  - name: break\n    run: |\n      echo the reason\n"
        "      python3 -c 'import urllib.request as u; u.urlopen(\"https://10.9.8.7/\", timeout=1)' 2>/dev/null || exit 3\n"
        "  - {name: after, run: 'echo never'}\n"
    )
    async with journey(tmp_path, {**FILES, ".gibil.yml": tasks}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "worse", {"engine.py": "POWER = 0\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        check = await world.closed_check(number)
        assert check.conclusion == "failure"
        assert "the reason" in f"{check.summary}{check.text}"
        assert "gibil: blocked because they are not public: 10.9.8.7:443" in f"{check.text}"
        assert f"{check.summary}".count("GIBIL_EGRESS_ALLOW=10.9.8.7:443") == 1
        assert "never" not in f"{check.text}"
        await world.all_published()
        await world.assert_nothing_left()


async def test_a_user_without_write_permission_gets_one_line_and_no_machine(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.set_permission(REPOSITORY, "mallory", "read")
        comment = world.github.comment(REPOSITORY, number, "mallory", "/gibil test")
        answer = await world.answer(number, having="mallory")
        await world.all_published()
        assert "write" in answer.body
        assert {r.content for r in world.github.reactions(comment.id)} == {"confused"}
        assert world.github.check_runs(REPOSITORY) == []


async def test_untrusted_code_is_rejected_on_local_machines_if_the_operator_says_so(
    tmp_path: Path,
) -> None:
    async with journey(tmp_path, FILES, settings={"GIBIL_LOCAL_UNTRUSTED": "refuse"}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "x", {"engine.py": "POWER = 9\n"}, "mallory", fork=True)
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        answer = await world.answer(number, having="GIBIL_LOCAL_UNTRUSTED")
        assert "mallory" in answer.body
        await world.all_published()
        assert world.github.check_runs(REPOSITORY) == []


async def test_an_approved_commit_from_outside_runs_on_a_local_machine(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES) as world:
        number = await world.github.open_pull_request(REPOSITORY, "x", {"engine.py": "POWER = 9\n"}, "mallory", fork=True)
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        head = world.github.head_sha(REPOSITORY, number)
        await world.answer(number, having=f"/gibil approve {head}")
        await world.all_published()
        assert [(run.name, run.conclusion) for run in world.github.check_runs(REPOSITORY)] == [
            ("gibil / approval", "action_required")
        ]
        world.github.comment(REPOSITORY, number, "ada", f"/gibil approve {head}\n/gibil test")
        await world.closed_check(number, count=2)
        await world.all_published()
        conclusions = {run.name: run.conclusion for run in world.github.check_runs(REPOSITORY)}
        assert conclusions == {"gibil / approval": "success", "gibil / test": "success"}
        await world.assert_nothing_left()


async def test_untrusted_code_runs_without_secrets_if_the_operator_allows_it(tmp_path: Path) -> None:
    workflow = (
        "name: Probe\non: {command: probe}\nsecrets: [TOKEN]\ntasks:\n"
        "  - {name: look, run: 'echo \"token=[${TOKEN:-none}] trust=$GIBIL_TRUST\"'}\n"
    )
    settings = {"GIBIL_LOCAL_UNTRUSTED": "allow", "GIBIL_SECRET_TOKEN": "a-very-secret-value"}
    async with journey(tmp_path, FILES, settings=settings, workflows={"probe.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "x", {"engine.py": "POWER = 9\n"}, "mallory", fork=True)
        world.github.comment(REPOSITORY, number, "ada", "/gibil probe")
        check = await world.closed_check()
        await world.all_published()
        log = (world.bot.data_dir / "logs" / check.external_id / "0.log").read_text()
        assert "token=[none] trust=untrusted" in log


async def test_a_secret_reaches_the_task_but_no_log_and_not_github(tmp_path: Path) -> None:
    secret = "s3cr3t-Value-that-nobody-may-see"
    workflow = (
        "name: Probe\non: {command: probe}\nsecrets: [TOKEN]\ntasks:\n"
        '  - name: look\n    run: |\n      test -n "$TOKEN"\n      echo "plain $TOKEN"; printf %s "$TOKEN" | base64\n'
        '      echo "$TOKEN" >> $GITHUB_STEP_SUMMARY\n'
        + (
            "      export ask='import sys, urllib.request as u; u.urlopen(sys.argv[1])' https_proxy=http://127.0.0.1:3128\n"
            '      python3 -c "$ask" "https://$TOKEN.localhost/" 2>/dev/null || exit 1\n'
        )
    )
    async with journey(tmp_path, FILES, settings={"GIBIL_SECRET_TOKEN": secret}, workflows={"probe.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "x", {"engine.py": "POWER = 9\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil probe")
        check = await world.closed_check(number)
        await world.all_published()
        shown = f"{check.title}{check.summary}{check.text}" + "".join(c.body for c in world.github.comments(REPOSITORY, number))
        assert "plain ***" in shown
        assert "***.localhost:443" in shown, "a blocked host that is named after the secret"
        assert secret.lower() not in shown.lower()
    for path in world.bot.data_dir.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert secret not in world.bot.text()


@pytest.mark.parametrize("line", ["/gibil tset", "/gibil test shard=2", "/gibil test 'half"])
async def test_an_unknown_command_is_answered_with_the_existing_ones(tmp_path: Path, line: str) -> None:
    async with journey(tmp_path, FILES) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        comment = world.github.comment(REPOSITORY, number, "ada", line)
        answer = await world.answer(number)
        await world.all_published()
        assert "test" in answer.body
        assert "confused" in {r.content for r in world.github.reactions(comment.id)}
        assert world.github.check_runs(REPOSITORY) == []


async def test_help_lists_the_commands_of_this_repository(tmp_path: Path) -> None:
    docs = (
        "name: Build the docs\non: {command: docs}\ninputs:\n  browser: {default: firefox}\n"
        "tasks:\n  - {name: a, run: 'true'}\n"
    )
    async with journey(tmp_path, {**FILES, ".gibil/workflows/docs.yml": docs}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil help")
        answer = await world.answer(number, having="docs")
        assert "browser=firefox" in answer.body
        assert "test" in answer.body
        await world.all_published()


async def test_a_broken_workflow_file_of_the_base_branch_is_reported_with_its_line(tmp_path: Path) -> None:
    broken = "name: Broken\non: {command: broken}\ntaks:\n  - {name: a, run: 'true'}\n"
    async with journey(tmp_path, {**FILES, ".gibil/workflows/broken.yml": broken}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        answer = await world.answer(number, having="broken.yml")
        assert ":3:1:" in answer.body
        assert "tasks" in answer.body
        await world.all_published()


async def test_workflows_are_read_from_the_base_branch_only(tmp_path: Path) -> None:
    evil = "tasks:\n  - {name: evil, run: 'echo owned'}\n"
    async with journey(tmp_path, FILES) as world:
        number = await world.github.open_pull_request(REPOSITORY, "evil", {".gibil.yml": evil}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        check = await world.closed_check(number)
        assert "owned" not in f"{check.summary}{check.text}"
        assert "compile" in f"{check.summary}{check.text}"
        await world.all_published()
