"""Agents that change nothing: a review on lines of the diff, and an explanation of a failed run. On real machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, journey

pytestmark = pytest.mark.usefixtures("local_machines")

REVIEW = """\
on: {command: review}
inputs: {focus: {type: text}}
comment: on-failure
tasks:
  - name: review
    agent:
      engine: command
      output: review
      prompt: "Review it. ${{ inputs.focus }}"
      command: |
        prompt=$(cat)
        file=$(printf %s "$prompt" | grep -o '/root/[^ ,]*findings.json' | head -1)
        case $prompt in *'the power'*) focus='the power' ;; esac
        printf '{"summary": "About %s.", "findings": [
          {"path": "engine.py", "line": 1, "text": "@ada: is it too much? <img src=x>"},
          {"path": "README.md", "line": 9, "text": "It should say so."}]}' "$focus" >"$file"
        echo changed >>engine.py
"""
EXPLAIN = """\
on: {command: explain}
tasks:
  - agent:
      engine: command
      prompt: Explain it.
      context: last-failure
      output: answer
      command: |
        cat >prompt
        grep -q 'the reason is 42' prompt && echo "It failed because of 42."
"""
TEST = "on: {command: test}\ntasks: [{run: echo the reason is 42; exit 1}]\n"


async def test_a_review_comments_on_lines_and_an_explanation_knows_the_failed_run(tmp_path: Path) -> None:
    workflows = {"review.yml": REVIEW, "explain.yml": EXPLAIN, "test.yml": TEST}
    async with journey(tmp_path, {"engine.py": "POWER = 1\n"}, workflows=workflows) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil review\nthe power")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.closed_check(count=2)
        await world.all_published()

        (review,) = world.github.reviews(REPOSITORY, number)
        assert (review.state, review.commit_sha) == ("commented", before), world.bot.text()
        assert "2 findings in" in review.body
        assert "> About the power." in review.body
        assert "**`README.md`, line 9**\n\n> It should say so." in review.body
        (comment,) = [each for each in world.github.comments(REPOSITORY, number) if each.lines is not None]
        assert (comment.path, comment.body) == ("engine.py", "@\u200bada: is it too much? <\u200bimg src=x>")
        conclusions = {check.name: check.conclusion for check in world.github.check_runs(REPOSITORY)}
        assert conclusions == {"gibil / review": "success", "gibil / test": "failure"}

        world.github.comment(REPOSITORY, number, "ada", "/gibil explain")
        check = await world.closed_check(count=3)
        assert (check.name, check.conclusion) == ("gibil / explain", "success"), f"{check.summary}\n{world.bot.text()}"
        assert "It failed because of 42." in f"{check.summary}{check.text}"
        assert world.github.head_sha(REPOSITORY, number) == before
        await world.assert_nothing_left()
