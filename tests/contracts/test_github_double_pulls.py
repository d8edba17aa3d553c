"""The double opens pull requests as GitHub does: who may open them, between which branches, and with which error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contracts.double_kit import REPOSITORY, App, receiving, run_git, signed_in

PULLS = f"/repos/{REPOSITORY}/pulls"
WISH = {"title": "Better", "head": "topic", "base": "main"}


async def open_one(app: App, token: str, **changes: Any) -> httpx.Response:
    return await app.ask("POST", PULLS, token=token, json={**WISH, **changes})


async def test_a_user_opens_a_pull_request_and_the_app_gets_a_delivery(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app, receiving() as receiver:
        app.github.webhook_url = receiver.url
        sha = await app.github.push(REPOSITORY, "topic", {"a": "1"})
        answer = await open_one(app, app.github.personal_token("ada"), body="Why", draft=True)
        assert answer.status_code == 201, answer.text
        pull = answer.json()
        assert (pull["number"], pull["state"], pull["draft"], pull["title"], pull["body"]) == (1, "open", True, "Better", "Why")
        assert (pull["head"]["label"], pull["head"]["sha"], pull["base"]["ref"]) == ("ada:topic", sha, "main")
        assert (pull["user"]["login"], pull["html_url"]) == ("ada", f"{app.github.url}/{REPOSITORY}/pull/1")
        await app.github.webhooks_sent()
        assert sorted(receiver.events()) == ["check_suite", "pull_request"]


async def test_head_and_base_have_one_open_pull_request_which_can_be_found(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        token = app.github.personal_token("ada")
        await app.github.push(REPOSITORY, "release", {"r": "1"})
        await app.github.push(REPOSITORY, "topic", {"a": "1"})
        assert (await open_one(app, token)).status_code == 201
        again = await open_one(app, token)
        assert again.status_code == 422
        assert again.json()["message"] == "Validation Failed"
        assert again.json()["errors"] == [
            {"resource": "PullRequest", "code": "custom", "message": "A pull request already exists for ada:topic."}
        ]
        assert (await open_one(app, token, head="ada:topic", base="release")).status_code == 201

        async def numbers(**query: str) -> list[int]:
            return [each["number"] for each in (await app.ask("GET", PULLS, token=token, params=query)).json()]

        assert await numbers(head="ada:topic", base="main", state="open") == [1]
        assert await numbers(head="ada:topic", base="release") == [2]
        assert await numbers(head="eve:topic") == []
        app.github.close_pull_request(REPOSITORY, 1)
        assert await numbers(head="ada:topic", base="main", state="open") == []
        assert (await open_one(app, token)).status_code == 201


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"head": "absent"}, {"resource": "PullRequest", "field": "head", "code": "invalid"}),
        ({"head": "eve:topic"}, {"resource": "PullRequest", "field": "head", "code": "invalid"}),
        ({"base": "absent"}, {"resource": "PullRequest", "field": "base", "code": "invalid"}),
        ({"head": "topic", "head_repo": "ada/absent"}, {"resource": "PullRequest", "field": "head", "code": "invalid"}),
        ({"head": "main"}, {"resource": "PullRequest", "code": "custom", "message": "No commits between main and main"}),
        ({"title": " "}, {"resource": "Issue", "code": "missing_field", "field": "title"}),
        (
            {"title": "x" * 257},
            {
                "resource": "Issue",
                "field": "title",
                "code": "custom",
                "message": "title is too long (maximum is 256 characters)",
            },
        ),
    ],
)
async def test_invalid_pull_requests_are_rejected(tmp_path: Path, changes: dict[str, str], error: dict[str, str]) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.push(REPOSITORY, "topic", {"a": "1"})
        answer = await open_one(app, app.github.personal_token("ada"), **changes)
        assert (answer.status_code, answer.json()["errors"]) == (422, [error])


async def test_a_draft_needs_a_repository_that_supports_drafts(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.push(REPOSITORY, "topic", {"a": "1"})
        app.github.state.repository(REPOSITORY).drafts = False
        token = app.github.personal_token("ada")
        refused = await open_one(app, token, draft=True)
        assert (refused.status_code, refused.json()["message"]) == (
            422,
            "Draft pull requests are not supported in this repository.",
        )
        assert (await open_one(app, token)).status_code == 201


async def test_a_users_token_has_the_rights_of_the_user_and_of_its_scopes(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        github = app.github
        await github.push(REPOSITORY, "topic", {"a": "1"})
        await github.add_repository("ada/secret", {"a": "1"}, private=True)
        github.set_permission(REPOSITORY, "tom", "read")
        github.set_permission(REPOSITORY, "wes", "write")
        narrow = github.personal_token("ada", permissions={"metadata": "read", "contents": "write"})
        other = github.personal_token("ada", only=["ada/secret"])
        tom, wes = github.personal_token("tom"), github.personal_token("wes")
        forbidden = "Resource not accessible by personal access token"
        for token, status in ((narrow, 403), (other, 403), (tom, 403), (wes, 201)):
            answer = await open_one(app, token)
            assert answer.status_code == status
            assert status == 201 or answer.json()["message"] == forbidden
        assert (await open_one(app, "github_pat_made_up")).json()["message"] == "Bad credentials"
        assert (await app.ask("POST", PULLS, json=WISH)).status_code == 401
        for token, status in ((other, 200), (narrow, 200), (wes, 404)):
            assert (await app.ask("GET", "/repos/ada/secret", token=token)).status_code == status
        github.state.personal_tokens[wes].revoked = True
        assert (await app.ask("GET", f"/repos/{REPOSITORY}", token=wes)).status_code == 401


async def test_a_fork_shows_its_parent_and_source_to_users_who_may_read_them(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.fork(REPOSITORY, "eve")
        await app.github.fork("eve/engine", "tom")

        async def shown(name: str) -> dict[str, Any]:
            pull = (await app.ask("GET", f"/repos/{name}", token=app.github.personal_token("tom"))).json()
            return {"fork": pull["fork"]} | {key: pull[key]["full_name"] for key in ("parent", "source") if key in pull}

        assert await shown(REPOSITORY) == {"fork": False}
        assert await shown("eve/engine") == {"fork": True, "parent": REPOSITORY, "source": REPOSITORY}
        assert await shown("tom/engine") == {"fork": True, "parent": "eve/engine", "source": REPOSITORY}
        app.github.state.repository(REPOSITORY).private = True
        assert await shown("tom/engine") == {"fork": True, "parent": "eve/engine"}


async def test_a_branch_can_be_queried_as_a_reference(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        sha = await app.github.push(REPOSITORY, "release/1.x", {"a": "1"})
        found = (await app.ask("GET", f"/repos/{REPOSITORY}/git/ref/heads/release/1.x")).json()
        assert (found["ref"], found["object"]["type"], found["object"]["sha"]) == ("refs/heads/release/1.x", "commit", sha)
        assert (await app.ask("GET", f"/repos/{REPOSITORY}/git/ref/heads/release")).status_code == 404


async def test_a_writer_of_a_fork_may_open_a_pull_request_in_its_parent(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        github = app.github
        await github.fork(REPOSITORY, "tom")
        await github.fork(REPOSITORY, "eve")
        sha = await github.push("tom/engine", "topic", {"a": "1"})
        tom, head = github.personal_token("tom"), "tom:topic"
        refused = [
            await open_one(app, token, head=head)
            for token in (github.personal_token("ada"), github.personal_token("tom", only=["tom/engine"]))
        ]
        assert {(answer.status_code, answer.json()["message"]) for answer in refused} == {
            (403, "Resource not accessible by personal access token")
        }
        nothing = await open_one(app, tom, head="tom:main")
        assert nothing.json()["errors"][0]["message"] == "No commits between ada:main and tom:main"
        pull = (await open_one(app, tom, head=head)).json()
        assert (pull["head"]["label"], pull["head"]["repo"]["full_name"], pull["head"]["sha"]) == (head, "tom/engine", sha)
        assert (pull["base"]["label"], pull["user"]["login"]) == ("ada:main", "tom")
        other = await app.ask("POST", "/repos/eve/engine/pulls", token=tom, json={**WISH, "head": head})
        assert other.json()["base"]["repo"]["full_name"] == "eve/engine"


async def test_a_pull_request_needs_read_access_to_both_private_branches(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.state.repository(REPOSITORY).private = True
        await app.github.push(REPOSITORY, "topic", {"a": "1"})
        blind = app.github.personal_token("ada", permissions={"metadata": "read", "pull_requests": "write"})
        refused = await open_one(app, blind)
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["message"] == "not all refs are readable"


async def test_git_accepts_a_users_token_and_a_push_needs_write_access(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.set_permission(REPOSITORY, "tom", "read")
        app.github.set_permission(REPOSITORY, "wes", "write")
        await run_git("clone", "-q", f"{app.github.url}/{REPOSITORY}.git", "work", cwd=tmp_path)
        statuses = {}
        for login in ("tom", "wes"):
            token = app.github.personal_token(login)
            url = f"{app.github.url}/{REPOSITORY}.git".replace("http://", f"http://{login}:{token}@")
            status, _ = await run_git("push", "-q", url, f"HEAD:refs/heads/{login}", cwd=tmp_path / "work", ok=False)
            statuses[login] = status == 0
        assert statuses == {"tom": False, "wes": True}
