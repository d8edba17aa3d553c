"""The double's REST API follows GitHub's rules: rejections, order of lists, effect of updates."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contracts.double_kit import FILES, REPOSITORY, App, signed_in

COMMENTS = f"/repos/{REPOSITORY}/issues/1/comments"
CHECK_RUNS = f"/repos/{REPOSITORY}/check-runs"


class Pull:
    """The App with a token, and one open pull request."""

    def __init__(self, app: App, token: str) -> None:
        self.app, self.token, self.github = app, token, app.github

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.app.ask(method, path, token=self.token, **options)

    @property
    def sha(self) -> str:
        return self.github.head_sha(REPOSITORY, 1)


async def pull_in(app: App, **options: Any) -> Pull:
    await app.github.open_pull_request(REPOSITORY, "topic", {"README.md": "Better\n"}, "bob", **options)
    return Pull(app, await app.token())


async def test_a_check_run_goes_through_its_states(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        body = {"name": "gibil / test", "head_sha": pull.sha, "external_id": "abc", "status": "queued"}
        made = await pull.ask("POST", CHECK_RUNS, json=body)
        assert made.status_code == 201
        assert made.json()["pull_requests"][0]["number"] == 1
        path = f"{CHECK_RUNS}/{made.json()['id']}"
        await pull.ask("PATCH", path, json={"status": "in_progress", "output": {"title": "1 of 2", "summary": "half"}})
        closed = await pull.ask("PATCH", path, json={"conclusion": "success"})
        assert (closed.json()["status"], closed.json()["conclusion"]) == ("completed", "success")
        assert closed.json()["completed_at"]
        assert closed.json()["output"]["title"] == "1 of 2"
        again = await pull.ask("PATCH", path, json={"status": "in_progress"})
        assert (again.json()["conclusion"], again.json()["completed_at"]) == (None, None)
        assert (await pull.ask("GET", path)).json()["external_id"] == "abc"
        assert pull.github.check_runs(REPOSITORY, pull.sha)[0].updates == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": None},
        {"head_sha": None},
        {"head_sha": "0" * 40},
        {"head_sha": "topic"},
        {"status": "completed"},
        {"status": "waiting"},
        {"conclusion": "stale"},
        {"conclusion": "passed"},
        {"completed_at": "2026-01-01T00:00:00Z"},
        {"started_at": "yesterday"},
        {"details_url": "ftp://example.com"},
        {"output": {"title": "only a title"}},
        {"output": {"summary": "only a summary"}},
        {"output": {"title": "t", "summary": "x" * 65_536}},
        {"output": {"title": "t", "summary": "s", "text": "x" * 65_536}},
        {"output": {"title": "t", "summary": "s", "annotations": [{}] * 51}},
        {"actions": [{"label": "a", "description": "b", "identifier": "c"}] * 4},
        {"actions": [{"label": "a" * 21, "description": "b", "identifier": "c"}]},
    ],
)
async def test_an_invalid_check_run_is_rejected(tmp_path: Path, wrong: dict[str, Any]) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        body = {"name": "gibil / test", "head_sha": pull.sha} | wrong
        answer = await pull.ask("POST", CHECK_RUNS, json=body)
        assert answer.status_code == 422, answer.text
        assert pull.github.check_runs(REPOSITORY) == []


async def test_the_largest_allowed_output_is_accepted(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        output = {"title": "t", "summary": "x" * 65_535, "text": "é" * 65_535}
        made = await pull.ask("POST", CHECK_RUNS, json={"name": "n", "head_sha": pull.sha, "output": output})
        assert made.status_code == 201


async def test_check_runs_are_listed_by_name_status_and_age(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        for name, external in (("a", "1"), ("a", "2"), ("b", "3")):
            await pull.ask("POST", CHECK_RUNS, json={"name": name, "head_sha": pull.sha, "external_id": external})
        await pull.ask("PATCH", f"{CHECK_RUNS}/{pull.github.check_runs(REPOSITORY)[2].id}", json={"conclusion": "failure"})

        async def listed(**query: str | int) -> list[str]:
            answer = await pull.ask("GET", f"/repos/{REPOSITORY}/commits/{pull.sha}/check-runs", params=query)
            return [run["external_id"] for run in answer.json()["check_runs"]]

        assert await listed() == ["3", "2"]
        assert await listed(filter="all") == ["3", "2", "1"]
        assert await listed(check_name="a", filter="all") == ["2", "1"]
        assert await listed(status="completed") == ["3"]
        assert await listed(filter="all", per_page=2, page=2) == ["1"]
        by_branch = await pull.ask("GET", f"/repos/{REPOSITORY}/commits/topic/check-runs")
        assert by_branch.json()["total_count"] == 2
        suites = await pull.ask("GET", f"/repos/{REPOSITORY}/commits/topic/check-suites")
        assert [suite["latest_check_runs_count"] for suite in suites.json()["check_suites"]] == [3]


async def test_checks_of_a_fork_name_no_pull_request(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app, fork=True)
        made = await pull.ask("POST", CHECK_RUNS, json={"name": "n", "head_sha": pull.sha})
        assert made.json()["pull_requests"] == []
        assert (await pull.ask("GET", f"/repos/{REPOSITORY}/commits/{pull.sha}/pulls")).json() == []
        listed = await pull.ask("GET", f"/repos/{REPOSITORY}/pulls", params={"head": "bob:topic"})
        assert [each["head"]["sha"] for each in listed.json()] == [pull.sha]
        assert listed.json()[0]["head"]["repo"]["full_name"] == "bob/engine"
        pull.github.delete_repository("bob/engine")
        alone = await pull.ask("GET", f"/repos/{REPOSITORY}/pulls/1")
        assert alone.json()["head"]["repo"] is None


async def test_the_pull_request_of_a_commit_is_found(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        first = pull.sha
        await pull.github.push(REPOSITORY, 1, {"more": "x"})
        for sha in (first, pull.sha):
            found = await pull.ask("GET", f"/repos/{REPOSITORY}/commits/{sha}/pulls")
            assert [each["number"] for each in found.json()] == [1]
        base = pull.github.pull_request(REPOSITORY, 1).base_sha
        assert (await pull.ask("GET", f"/repos/{REPOSITORY}/commits/{base}/pulls")).json() == []


async def test_comments_are_created_updated_listed_and_deleted(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        made = await pull.ask("POST", COMMENTS, json={"body": "one"})
        assert (made.status_code, made.json()["user"]["login"]) == (201, "gibil[bot]")
        assert made.json()["performed_via_github_app"]["slug"] == "gibil"
        for word in ("two", "three"):
            await pull.ask("POST", COMMENTS, json={"body": word})
        path = f"/repos/{REPOSITORY}/issues/comments/{made.json()['id']}"
        assert (await pull.ask("PATCH", path, json={"body": "one!"})).json()["body"] == "one!"
        listed = await pull.ask("GET", COMMENTS, params={"per_page": 2, "direction": "desc", "sort": "created"})
        assert [each["body"] for each in listed.json()] == ["one!", "two"]  # the list of one issue's comments can't be sorted
        assert 'rel="next"' in listed.headers["link"]
        assert 'rel="last"' in listed.headers["link"]
        following = await pull.ask("GET", listed.links["next"]["url"])
        assert [each["body"] for each in following.json()] == ["three"]
        everywhere = f"/repos/{REPOSITORY}/issues/comments"
        newest = await pull.ask("GET", everywhere, params={"sort": "created", "direction": "desc"})
        assert [each["body"] for each in newest.json()] == ["three", "two", "one!"]
        assert (await pull.ask("DELETE", path)).status_code == 204
        assert (await pull.ask("PATCH", path, json={"body": "x"})).status_code == 404
        assert [comment.body for comment in pull.github.comments(REPOSITORY, 1)] == ["two", "three"]


async def test_an_invalid_comment_is_rejected(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        assert (await pull.ask("POST", COMMENTS, json={"body": "x" * 65_536})).status_code == 201
        for wrong in ({"body": "x" * 65_537}, {"body": "  "}, {"body": 5}, {}):
            assert (await pull.ask("POST", COMMENTS, json=wrong)).status_code == 422
        assert (await pull.ask("POST", COMMENTS, content=b"{")).status_code == 400
        assert (await pull.ask("POST", COMMENTS, content=b"[]")).status_code == 400
        assert (await pull.ask("POST", COMMENTS.replace("/1/", "/9/"), json={"body": "x"})).status_code == 404
        too_long = (await pull.ask("POST", COMMENTS, json={"body": "x" * 65_537})).json()
        assert too_long["message"] == "Validation Failed"
        assert "too long" in too_long["errors"][0]["message"]


@pytest.mark.parametrize("review", [False, True])
async def test_a_repeated_reaction_exists_once(tmp_path: Path, review: bool) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        write = pull.github.review_comment if review else pull.github.comment
        comment = write(REPOSITORY, 1, "bob", "/gibil test")
        path = f"/repos/{REPOSITORY}/{'pulls' if review else 'issues'}/comments/{comment.id}/reactions"
        answers = [await pull.ask("POST", path, json={"content": "eyes"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [201, 200]
        assert answers[0].json()["id"] == answers[1].json()["id"]
        assert [reaction.content for reaction in pull.github.reactions(comment.id)] == ["eyes"]
        assert (await pull.ask("POST", path, json={"content": "tada"})).status_code == 422
        assert len((await pull.ask("GET", path)).json()) == 1
        assert (await pull.ask("DELETE", f"{path}/{answers[0].json()['id']}")).status_code == 204
        other = path.replace("/pulls/", "/issues/") if review else path.replace("/issues/", "/pulls/")
        assert (await pull.ask("POST", other, json={"content": "eyes"})).status_code == 404


async def test_files_and_directories_are_read_at_a_ref(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        contents = f"/repos/{REPOSITORY}/contents"
        main = await pull.ask("GET", f"{contents}/README.md")
        assert base64.b64decode(main.json()["content"]).decode() == FILES["README.md"]
        topic = await pull.ask("GET", f"{contents}/README.md", params={"ref": pull.sha})
        assert base64.b64decode(topic.json()["content"]) == b"Better\n"
        raw = await pull.ask("GET", f"{contents}/README.md", headers={"Accept": "application/vnd.github.raw+json"})
        assert raw.text == FILES["README.md"]
        folder = await pull.ask("GET", f"{contents}/src", params={"ref": "main"})
        assert [(each["type"], each["path"], each["size"]) for each in folder.json()] == [("file", "src/wheel.py", 11)]
        root = await pull.ask("GET", contents)
        assert [each["name"] for each in root.json()] == ["README.md", "run.sh", "src"]
        for missing in ("nothing", "src/nothing", "README.md/x", "*", ":(glob)**"):
            assert (await pull.ask("GET", f"{contents}/{missing}")).status_code == 404
        for ref in ("nothing", "--help", "main..topic"):
            assert (await pull.ask("GET", contents, params={"ref": ref})).status_code == 404


async def test_trees_and_blobs_are_read_by_their_hash(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        git = f"/repos/{REPOSITORY}/git"
        root = (await pull.ask("GET", f"{git}/trees/topic")).json()
        assert (root["truncated"], [(each["mode"], each["type"], each["path"]) for each in root["tree"]]) == (
            False,
            [("100644", "blob", "README.md"), ("100755", "blob", "run.sh"), ("040000", "tree", "src")],
        )
        assert (await pull.ask("GET", f"{git}/trees/{pull.sha}")).json()["tree"] == root["tree"]
        readme, _, source = root["tree"]
        inside = (await pull.ask("GET", f"{git}/trees/{source['sha']}")).json()["tree"]
        assert [(each["path"], each["size"]) for each in inside] == [("wheel.py", 11)]
        deep = (await pull.ask("GET", f"{git}/trees/topic", params={"recursive": "1"})).json()["tree"]
        assert [each["path"] for each in deep] == ["README.md", "run.sh", "src", "src/wheel.py"]
        raw = await pull.ask("GET", f"{git}/blobs/{readme['sha']}", headers={"Accept": "application/vnd.github.raw+json"})
        assert raw.content == b"Better\n"
        assert base64.b64decode((await pull.ask("GET", f"{git}/blobs/{readme['sha']}")).json()["content"]) == b"Better\n"
        for missing in ("trees/nothing", f"trees/{readme['sha']}", f"trees/{'0' * 40}", f"blobs/{'0' * 40}"):
            assert (await pull.ask("GET", f"{git}/{missing}")).status_code == 404


async def test_pull_requests_are_listed_newest_first_and_by_state(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        pull = await pull_in(app)
        await pull.github.open_pull_request(REPOSITORY, "second", {"b": "1"}, "ada", draft=True)
        issue = pull.github.open_issue(REPOSITORY, "ada")
        pull.github.close_pull_request(REPOSITORY, 1)

        async def numbers(**query: str) -> list[int]:
            answer = await pull.ask("GET", f"/repos/{REPOSITORY}/pulls", params=query)
            return [each["number"] for each in answer.json()]

        assert await numbers() == [2]
        assert await numbers(state="all") == [2, 1]
        assert await numbers(state="closed") == [1]
        assert (await pull.ask("GET", f"/repos/{REPOSITORY}/pulls/2")).json()["draft"] is True
        assert (await pull.ask("GET", f"/repos/{REPOSITORY}/pulls/{issue.number}")).status_code == 404


async def test_unknown_addresses_and_users_are_answered_as_by_github(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        for path in ("/nothing", "/app/nothing", "/users/nobody"):
            answer = await app.ask("GET", path)
            assert (answer.status_code, answer.json()["message"]) == (404, "Not Found")
            assert answer.json()["documentation_url"].startswith("https://docs.github.com")
        bot = await app.ask("GET", "/users/gibil[bot]")
        assert (bot.json()["type"], bot.json()["id"] == app.github.app_id) == ("Bot", False)
        nameless = httpx.Request("GET", f"{app.github.url}/rate_limit")
        assert (await app.http.send(nameless)).status_code == 403  # no User-Agent


async def test_the_activity_of_a_branch_lists_pushers_commits_and_times(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        first = await app.github.push(REPOSITORY, "topic", {"a": "1"}, author="bob")
        await app.github.push(REPOSITORY, "other", {"a": "1"}, author="bob")
        second = await app.github.push(REPOSITORY, "topic", {"a": "2"}, author="eve")
        token = await app.token()
        answer = await app.ask("GET", f"/repos/{REPOSITORY}/activity", token=token, params={"ref": "refs/heads/topic"})
        shown = [(each["activity_type"], each["before"], each["after"], each["actor"]["login"]) for each in answer.json()]
        assert shown == [("push", first, second, "eve"), ("branch_creation", "0" * 40, first, "bob")]
        newest = await app.ask(
            "GET", f"/repos/{REPOSITORY}/activity", token=token, params={"ref": "refs/heads/topic", "per_page": 1}
        )
        assert [each["after"] for each in newest.json()] == [second]
        repository = (await app.ask("GET", f"/repos/{REPOSITORY}", token=token)).json()
        assert repository["pushed_at"] == newest.json()[0]["timestamp"]


async def test_a_transferred_repository_keeps_its_id_and_its_pull_requests(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob", fork=True)
        before = app.github.pull_request(REPOSITORY, number).head_repository
        app.github.transfer_repository("bob/engine", "eve")
        await app.github.push(REPOSITORY, number, {"a": "2"}, author="eve")
        token = await app.token()
        head = (await app.ask("GET", f"/repos/{REPOSITORY}/pulls/{number}", token=token)).json()["head"]
        assert before is not None
        assert (head["repo"]["id"], head["repo"]["full_name"]) == (before.id, "eve/engine")
