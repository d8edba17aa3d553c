"""A user's pull request at GitHub is opened once, even if a response is lost, and every rejection has a clear message."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.config import Secret
from gibil_bot.errors import GitHubError
from gibil_bot.github.api.user_pull_requests import NewPullRequest, PullRequests
from tests.contracts.double_kit import REPOSITORY, App, signed_in

WISH = NewPullRequest(
    repository=REPOSITORY, head_repository=REPOSITORY, head="topic", base="main", title="Better", body="Why", draft=False
)


@contextlib.asynccontextmanager
async def asking(app: App, token: str | None = None, **options: Any) -> AsyncIterator[PullRequests]:
    pulls = PullRequests(
        app.github.url, Secret(token or app.github.personal_token("ada")), "GH_TOKEN", sleep=no_wait, **options
    )
    try:
        yield pulls
    finally:
        await pulls.close()


async def no_wait(seconds: float) -> None:
    """Return at once instead of waiting."""


@contextlib.asynccontextmanager
async def topic(tmp_path: Path) -> AsyncIterator[App]:
    async with signed_in(tmp_path) as app:
        await app.github.push(REPOSITORY, "topic", {"a": "1"})
        yield app


def changed(**changes: Any) -> NewPullRequest:
    return dataclasses.replace(WISH, **changes)


def numbers(app: App) -> list[int]:
    return [pull.number for pull in app.github.state.repository(REPOSITORY).pull_requests()]


@pytest.mark.parametrize("kind", ["error_before", "error_after", "drop_before", "drop_after"])
async def test_a_lost_response_does_not_open_a_second_pull_request(tmp_path: Path, kind: str) -> None:
    async with topic(tmp_path) as app, asking(app) as pulls:
        app.github.fault("POST", "/pulls$", kind, times=2)
        found, is_new = await pulls.create(WISH)
        assert (found.number, found.draft, is_new) == (1, False, True)
        assert found.url == f"{app.github.url}/{REPOSITORY}/pull/1"
        assert numbers(app) == [1]


async def test_an_unreachable_github_is_reported_as_retryable(tmp_path: Path) -> None:
    async with topic(tmp_path) as app, asking(app) as pulls:
        app.github.fault("POST", "/pulls$", "error_before", times=9)
        with pytest.raises(GitHubError, match="answers 502") as caught:
            await pulls.create(WISH)
        assert caught.value.retry_after_s
        assert numbers(app) == []
        url = app.github.url
    unreachable = PullRequests(url, Secret("x"), "GH_TOKEN", sleep=no_wait)
    with pytest.raises(GitHubError, match="doesn't answer"):
        await unreachable.repository(REPOSITORY)
    await unreachable.close()


async def test_an_existing_pull_request_is_found_and_not_changed(tmp_path: Path) -> None:
    async with topic(tmp_path) as app, asking(app) as pulls:
        assert await pulls.find(REPOSITORY, REPOSITORY, "topic", "main") is None
        first, _ = await pulls.create(WISH)
        assert await pulls.create(changed(title="Other", body="", draft=True)) == (first, False)
        assert await pulls.find(REPOSITORY, REPOSITORY, "topic", "main") == first
        assert app.github.pull_request(REPOSITORY, 1).title == "Better"


async def test_a_branch_that_github_does_not_show_yet_is_waited_for(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:

        async def pushed_meanwhile(seconds: float) -> None:
            await app.github.push(REPOSITORY, "topic", {"a": "1"})

        pulls = PullRequests(app.github.url, Secret(app.github.personal_token("ada")), "gh", sleep=pushed_meanwhile)
        assert (await pulls.create(WISH))[0].number == 1
        await pulls.close()


async def test_a_repository_gets_githubs_spelling_of_its_name(tmp_path: Path) -> None:
    async with topic(tmp_path) as app, asking(app) as pulls:
        place = await pulls.repository("ADA/Engine")
        assert (place.full_name, place.default_branch, place.is_archived) == (REPOSITORY, "main", False)
        assert (place.is_fork, place.parent, place.root) == (False, None, REPOSITORY)
        app.github.state.repository(REPOSITORY).archived = True
        assert (await pulls.repository(REPOSITORY)).is_archived
        with pytest.raises(GitHubError, match="archived so is read-only"):
            await pulls.create(WISH)


async def test_a_rejection_is_reported_with_a_remedy_and_without_the_token(tmp_path: Path) -> None:
    async with topic(tmp_path) as app:
        github = app.github
        await github.add_repository("eve/secret", {"a": "1"}, private=True)
        github.set_permission(REPOSITORY, "tom", "read")
        github.state.repository(REPOSITORY).drafts = False
        good, tom = github.personal_token("ada"), github.personal_token("tom")
        output = {}
        for name, token, changes in (
            ("token", "github_pat_made_up", {}),
            ("permission", tom, {}),
            ("hidden", good, {"repository": "eve/secret"}),
            ("base", good, {"base": "absent"}),
            ("nothing", good, {"head": "main"}),
            ("draft", good, {"draft": True}),
            ("stranger", good, {"head_repository": "tom/other"}),
            ("other", good, {"title": "x" * 300}),
        ):
            async with asking(app, token) as pulls:
                with pytest.raises(GitHubError) as caught:
                    await pulls.create(changed(**changes))
                assert token not in f"{caught.value!r} {caught.value.__context__!r} {vars(pulls)!r}"
                output[name] = (caught.value.status, caught.value.message)
        expected = {
            "token": (401, "doesn't accept the token from GH_TOKEN"),
            "permission": (403, "you need write access"),
            "hidden": (404, "the permission Pull requests: write"),
            "base": (422, "--base"),
            "nothing": (422, "already has every commit of"),
            "draft": (422, "doesn't support draft pull requests"),
            "stranger": (422, "doesn't accept pull requests from topic of tom/other"),
            "other": (422, "title is too long"),
        }
        assert {name: (status, expected[name][1] in text) for name, (status, text) in output.items()} == {
            name: (status, True) for name, (status, _) in expected.items()
        }, output
        assert numbers(app) == []


async def test_a_fork_reports_its_parent_if_the_token_can_read_it(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app, asking(app, app.github.personal_token("tom")) as pulls:
        await app.github.fork(REPOSITORY, "eve")
        await app.github.fork("eve/engine", "tom")
        place = await pulls.repository("tom/engine")
        assert (place.is_fork, place.parent, place.root) == (True, "eve/engine", REPOSITORY)
        app.github.state.repository("eve/engine").private = app.github.state.repository(REPOSITORY).private = True
        place = await pulls.repository("tom/engine")
        assert (place.is_fork, place.parent, place.root) == (True, None, None)


async def test_a_branch_is_found_by_its_exact_name_only(tmp_path: Path) -> None:
    async with topic(tmp_path) as app, asking(app) as pulls:
        await app.github.push(REPOSITORY, "release/1.x", {"a": "1"})
        names = ("topic", "release/1.x", "release", "topi", "Topic")
        assert [await pulls.has_branch(REPOSITORY, name) for name in names] == [True, True, False, False, False]


async def test_a_pull_request_from_a_fork_is_opened_and_found_by_its_fork(tmp_path: Path) -> None:
    async with topic(tmp_path) as app, asking(app, app.github.personal_token("tom")) as pulls:
        github = app.github
        github.set_permission(REPOSITORY, "tom", "write")
        for owner, name in (("tom", None), ("ada", "spare")):
            fork = await github.fork(REPOSITORY, owner, name)
            await github.push(fork.full_name, "topic", {"a": owner})
        github.set_permission("ada/spare", "tom", "write")
        opened = [await pulls.create(changed(head_repository=name)) for name in (REPOSITORY, "tom/engine", "ada/spare")]
        assert [(found.number, is_new) for found, is_new in opened] == [(1, True), (2, True), (3, True)]
        heads = [pull.head_repository for pull in github.state.repository(REPOSITORY).pull_requests()]
        assert [head.full_name for head in heads if head] == [REPOSITORY, "tom/engine", "ada/spare"]
        for number, name in enumerate((REPOSITORY, "tom/engine", "ada/spare"), 1):
            found = await pulls.find(REPOSITORY, name, "topic", "main")
            assert found is not None
            assert found.number == number
        assert (await pulls.create(changed(head_repository="ada/spare")))[1] is False
        assert await pulls.find("tom/engine", "tom/engine", "topic", "main") is None


async def test_a_short_limit_is_waited_for_and_a_long_one_is_reported(tmp_path: Path) -> None:
    async with topic(tmp_path) as app, asking(app) as pulls:
        app.github.fault("POST", "/pulls$", "secondary_limit", seconds=2)
        assert (await pulls.create(WISH))[1]
        app.github.fault("GET", "/pulls$", "secondary_limit", seconds=90)
        with pytest.raises(GitHubError, match="try again in 90 s") as caught:
            await pulls.find(REPOSITORY, REPOSITORY, "topic", "main")
        assert caught.value.retry_after_s == 90
