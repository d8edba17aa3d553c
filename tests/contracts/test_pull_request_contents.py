"""What an agent gets to know of a pull request, from the GitHub double over real HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from gibil_bot.agents.instructions import base_files, steering_globs
from gibil_bot.agents.pull_request import Trigger, pull_request_context
from gibil_bot.demo.git_store import Link
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.github.api import pull_request_contents
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.api.session import Session
from gibil_bot.model import Repository, Source, Trust

REPO = "ada/engine"
BASE = {
    "README.md": "An engine\n",
    "CLAUDE.md": "the base branch's\n",
    "docs/style.md": "style, see @more.md and @missing.md\n",
    "docs/more.md": "more, see @../CLAUDE.md\n",
    "AGENTS.md": Link("docs/guide.md"),
    "docs/guide.md": "linked\n",
    "deep/GEMINI.md": Link("../../outside"),
    "deep/QWEN.md": Link("/etc/passwd"),
    "deep/CLAUDE.md": Link("../docs"),
    ".claude/hooks/run": "#!/bin/sh\n",
    "big/AGENTS.md": "x" * 3_000_000,
}


@pytest.fixture
async def github(tmp_path: Path) -> AsyncIterator[GitHubDouble]:
    async with GitHubDouble.start(tmp_path) as double:
        await double.add_repository(REPO, BASE)
        for login, role in (("grace", "write"), ("eve", "read")):
            double.add_user(login)
            double.set_permission(REPO, login, role)
        yield double


@pytest.fixture
async def client(github: GitHubDouble) -> AsyncIterator[GitHubClient]:
    client = GitHubClient(Session(github.url, str(github.app_id), github.private_key_pem))
    yield client
    await client.close()


async def source(github: GitHubDouble, client: GitHubClient, number: int) -> Source:
    found = await client.repository(REPO)
    assert found is not None
    installation, repository = found
    assert isinstance(repository, Repository)
    pull = await client.pull_request(installation, REPO, number)
    return Source(
        installation_id=installation,
        repository=repository,
        pull_request=pull,
        sha=pull.head_sha,
        trust=Trust.UNTRUSTED,
        actor="ada",
    )


async def test_comments_count_if_their_authors_may_write_and_they_were_not_edited_since_the_request(
    github: GitHubDouble, client: GitHubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pull_request_contents, "_PER_PAGE", 3)
    number = await github.open_pull_request(REPO, "wheels", {"src/wheel.py": "1\n"}, "eve", fork=True, body="Eve's body")
    for count in range(10):
        github.comment(REPO, number, "grace", f"old {count}")
    github.comment(REPO, number, "eve", "by a stranger")
    github.comment(REPO, number, "renovate[bot]", "by an App")
    edited = github.comment(REPO, number, "grace", "edited later")
    earlier = github.comment(REPO, number, "grace", "edited before")
    github.review_comment(REPO, number, "ada", "on a line", path="src/wheel.py")
    github.advance(10)
    github.edit_comment(earlier.id, "edited before the request", "grace")
    github.advance(10)
    trigger = github.comment(REPO, number, "ada", "/gibil fix")
    github.comment(REPO, number, "grace", "in the same second")
    github.advance(10)
    github.edit_comment(edited.id, "hostile", "grace")
    github.edit_comment(trigger.id, "/gibil do something else", "ada")
    github.comment(REPO, number, "grace", "too late")

    text = await pull_request_context(
        client,
        await source(github, client, number),
        Trigger(at=trigger.created_at + timedelta(seconds=60), comment_id=trigger.id),
    )
    assert text.body == "Eve's body"
    assert [(each.author, each.text, each.path) for each in text.remarks] == [
        # The newest three pages of the conversation, of three comments each, and the review comment
        ("grace", "old 9", None), ("grace", "edited before the request", None), ("ada", "on a line", "src/wheel.py"),
    ]  # fmt: skip
    assert any(reason.startswith(f"Comment {edited.id} of grace was edited at ") for reason in text.left_out)
    assert "1 by people without write permission." in text.left_out
    assert len(text.left_out) == 2  # later comments aren't even named
    assert not text.is_diff_cut
    assert text.diff is not None
    assert b"+++ b/src/wheel.py" in text.diff


async def test_the_diff_is_that_of_the_runs_commit_since_the_merge_base(github: GitHubDouble, client: GitHubClient) -> None:
    number = await github.open_pull_request(REPO, "wheels", {"a": "1\n"}, "ada")
    run = await source(github, client, number)
    await github.push(REPO, "wheels", {"b": "2\n"})
    await github.push(REPO, "main", {"c": "3\n"})
    contents = client.pull_request_contents(run.installation_id)
    text = await pull_request_context(client, run, Trigger(at=run.pull_request.created_at or github.state.now() + timedelta(1)))
    assert text.diff is not None
    assert text.diff.count(b"diff --git") == 1
    assert b"+++ b/a" in text.diff
    assert await contents.diff(REPO, "main", run.sha, most_bytes=10) == text.diff[:10]
    assert await contents.diff(REPO, "main", "f" * 40, most_bytes=10) is None


async def test_instructions_come_from_the_base_branchs_tip(github: GitHubDouble, client: GitHubClient) -> None:
    number = await github.open_pull_request(REPO, "wheels", {"CLAUDE.md": "hostile", "sub/CLAUDE.md": "hostile"}, "ada")
    run = await source(github, client, number)
    tip = await github.push(REPO, "main", {"CLAUDE.md": "corrected: @docs/style.md\n", "RULES.txt": "rules\n"})
    found = await base_files(client, run, steering_globs(["RULES.txt"]))
    assert found.commit == tip
    assert {path: file.content for path, file in found.files.items()} == {
        "CLAUDE.md": b"corrected: `@docs/style.md`\n\n## docs/style.md\n\nstyle, see `@more.md` and `@missing.md`\n"
        b"\n## docs/more.md\n\nmore, see `@../CLAUDE.md`\n",
        "AGENTS.md": b"linked\n", ".claude/hooks/run": b"#!/bin/sh\n", "RULES.txt": b"rules\n",
    }  # fmt: skip
    assert found.files[".claude/hooks/run"].is_executable
    assert set(found.omitted) == {"big/AGENTS.md", "deep/GEMINI.md", "deep/QWEN.md", "deep/CLAUDE.md"}
    assert found.is_complete
