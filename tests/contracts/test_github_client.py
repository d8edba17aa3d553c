"""The client against the GitHub double, over real HTTP: its guarantees when GitHub fails, rejects, limits or loses requests."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from gibil_bot.demo.git_store import Link
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.server import serving
from gibil_bot.errors import GitHubError, InvalidWorkflow, NotAskedYet
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.api.session import Session
from gibil_bot.github.api.workflow_files import ObjectCache
from gibil_bot.model import (
    CheckRunOutput,
    CheckRunUpdate,
    CommentUpdate,
    DueNotification,
    Notification,
    NotificationUpdate,
    Person,
    Priority,
    ReactionUpdate,
    Repository,
    ReviewComment,
    ReviewUpdate,
    UnusableFile,
)
from gibil_bot.planning.schema import parse_workflow
from gibil_bot.ports import GitHub, Publisher
from tests.doubles.patience import patient

REPO = "ada/engine"
MARKER = "<!-- gibil:1:1:test -->"
REVIEW = "<!-- gibil-review:00ff -->"


@dataclass
class Clock:
    """Time that passes only in `sleep`, so that a slow computer doesn't shorten a wait."""

    ahead_s: float = 0.0
    slept: list[float] = field(default_factory=list)

    def monotonic(self) -> float:
        return 1000.0 + self.ahead_s

    def now(self) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.ahead_s += seconds
        await asyncio.sleep(0)


@dataclass
class Scene:
    github: GitHubDouble
    client: GitHubClient
    clock: Clock
    number: int
    sha: str

    @property
    def installation(self) -> int:
        return self.github.installation(REPO).id

    def asked(self, method: str, ending: str) -> int:
        return sum(1 for request in self.github.requests if request.method == method and request.path.endswith(ending))

    def check(self, **changes: Any) -> Notification:
        update = CheckRunUpdate(
            name="gibil / test",
            head_sha=self.sha,
            external_id="00ff00ff00ff00ff",
            status="in_progress",
            output=CheckRunOutput(title="Running", summary="so far"),
        )
        return self.notification("check:00ff", replace(update, **changes))

    def comment(self, text: str = "hello", marker: str = MARKER, **changes: Any) -> Notification:
        update = CommentUpdate(number=self.number, marker=marker, body=f"{marker}\n{text}")
        return self.notification("comment:1:1:test", replace(update, **changes))

    def reaction(self, comment_id: int, content: str, *, is_review_comment: bool = False) -> Notification:
        update = ReactionUpdate(comment_id=comment_id, is_review_comment=is_review_comment, content=content)
        return self.notification(f"reaction:{comment_id}:{content}", update)

    def review(self, *comments: ReviewComment, **changes: Any) -> Notification:
        update = ReviewUpdate(
            number=self.number,
            marker=REVIEW,
            commit_sha=self.sha,
            body=f"{REVIEW}\nSee the lines.",
            without_lines=f"{REVIEW}\nREADME.md, line 1: faster?",
            comments=comments,
        )
        return self.notification("review:00ff", replace(update, **changes))

    def notification(self, key: str, update: NotificationUpdate) -> Notification:
        return Notification(key=key, installation_id=self.installation, repository=REPO, update=update)

    def conversation(self) -> list[str]:
        return [comment.body for comment in self.github.comments(REPO, self.number)]


def due(
    notification: Notification,
    *,
    remote_id: int | None = None,
    attempts: int = 0,
    failures: int = 0,
    priority: Priority = Priority.RESULT,
) -> DueNotification:
    return DueNotification(
        notification=notification, revision=1, remote_id=remote_id, attempts=attempts, failures=failures, priority=priority
    )


@contextlib.asynccontextmanager
async def client_of(github: GitHubDouble, clock: Clock, **options: Any) -> AsyncIterator[GitHubClient]:
    arguments: dict[str, Any] = {
        "url": github.url,
        "app_id": str(github.app_id),
        "private_key": github.private_key_pem,
        "now": clock.now,
        "monotonic": clock.monotonic,
        "sleep": clock.sleep,
    }
    client = GitHubClient(Session(**(arguments | options)))
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    clock = Clock()
    async with GitHubDouble.start(tmp_path) as github:
        await github.add_repository(REPO, {"README.md": "An engine\n"})
        number = await github.open_pull_request(REPO, "faster", {"README.md": "A faster engine\n"}, "ada")
        async with client_of(github, clock) as client:
            yield Scene(github, client, clock, number, github.head_sha(REPO, number))


def test_the_client_implements_the_port(scene: Scene) -> None:
    def both(asks: GitHub, tells: Publisher) -> None:
        """Let the type checker compare every signature."""

    both(scene.client, scene.client)


def test_importing_the_client_imports_no_slow_module() -> None:
    slow = "('githubkit', 'httpx', 'pydantic')"
    script = f"import sys, gibil_bot.github.api.client; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patient(60), check=True)
    assert done.stdout.strip() == "[]"


# --- queries ----------------------------------------------------------------------------------------------------------


async def test_permission_is_queried_every_time(scene: Scene) -> None:
    scene.github.add_user("bob")
    scene.github.set_permission(REPO, "bob", "write")
    assert await scene.client.permission(scene.installation, REPO, "bob") == "write"
    scene.github.set_permission(REPO, "bob", "none")
    assert await scene.client.permission(scene.installation, REPO, "bob") in ("none", "read")
    assert await scene.client.permission(scene.installation, REPO, "ada") == "admin"


@pytest.mark.parametrize("login", ["nobody-of-that-name", "", ".", "..", "a/../../ada", "ada?x=1", "ada#"])
async def test_an_unknown_user_has_no_permission(scene: Scene, login: str) -> None:
    assert await scene.client.permission(scene.installation, REPO, login) in ("none", "read")


@pytest.mark.parametrize("repository", ["ada", "ada/engine/x", "../engine", "ada/..", "ada/engine?x", ""])
async def test_a_repository_name_cannot_redirect_a_request(scene: Scene, repository: str) -> None:
    before = len(scene.github.requests)
    with pytest.raises(GitHubError):
        await scene.client.pull_request(scene.installation, repository, 1)
    assert len(scene.github.requests) == before


async def test_a_pull_request_is_read_in_its_current_state(scene: Scene) -> None:
    pull = await scene.client.pull_request(scene.installation, REPO, scene.number)
    assert (pull.number, pull.head_sha, pull.head_ref, pull.base_ref, pull.is_open) == (1, scene.sha, "faster", "main", True)
    scene.github.close_pull_request(REPO, scene.number)
    assert not (await scene.client.pull_request(scene.installation, REPO, scene.number)).is_open


async def test_the_pull_requests_of_a_commit_are_found_also_when_it_is_in_a_fork(scene: Scene) -> None:
    forked = await scene.github.open_pull_request(REPO, "fix", {"a.py": "1\n"}, "eve", fork=True)
    sha = scene.github.head_sha(REPO, forked)
    assert [pull.number for pull in await scene.client.pull_requests_of(scene.installation, REPO, scene.sha)] == [1]
    (pull,) = await scene.client.pull_requests_of(scene.installation, REPO, sha)
    assert (pull.number, pull.head_repository) == (forked, "eve/engine")
    assert await scene.client.pull_requests_of(scene.installation, REPO, "0" * 40) == []


async def test_the_pusher_of_a_branch_is_returned_only_for_the_newest_push(scene: Scene) -> None:
    repository = Repository(id=7, full_name=REPO, clone_url=f"{scene.github.url}/{REPO}.git", default_branch="main")
    scene.github.add_user("robot[bot]", "Bot")
    sha = await scene.github.push(REPO, "a/#c&ref=main", {"a.py": "1\n"}, author="robot[bot]")
    found = await scene.client.branch_push(scene.installation, repository, "a/#c&ref=main", sha)
    assert found is not None
    assert (found.repository_id, found.branch, found.sha) == (7, "a/#c&ref=main", sha)
    assert found.pusher == Person(login="robot[bot]", is_bot=True)
    newer = await scene.github.push(REPO, "a/#c&ref=main", {"a.py": "2\n"}, author="eve")
    assert await scene.client.branch_push(scene.installation, repository, "a/#c&ref=main", sha) is None
    assert await scene.client.branch_push(scene.installation, repository, "absent", newer) is None


@pytest.mark.parametrize("status", [403, 404])
async def test_a_github_without_activity_leaves_the_pusher_unknown(scene: Scene, status: int) -> None:
    repository = Repository(id=7, full_name=REPO, clone_url=f"{scene.github.url}/{REPO}.git", default_branch="main")
    scene.github.fault("GET", r"/activity$", "error_before", status=status)
    assert await scene.client.branch_push(scene.installation, repository, "faster", scene.sha) is None


async def test_only_this_apps_check_runs_of_a_commit_are_returned(scene: Scene) -> None:
    assert await scene.client.check_runs(scene.installation, REPO, scene.sha) == []
    await scene.client.publish(due(scene.check()))
    assert [name for name, _ in await scene.client.check_runs(scene.installation, REPO, scene.sha)] == ["gibil / test"]
    assert await scene.client.check_runs(scene.installation, REPO, "0" * 40) == []


async def test_a_workflow_file_may_be_a_link_only_to_a_file_of_its_repository(scene: Scene) -> None:
    sha = await scene.github.push(
        REPO,
        "links",
        {
            "ci/ok.yml": "name: ok\n",
            ".gibil.yml": Link("ci/ok.yml"),
            ".gibil/workflows/good.yml": Link("../../ci/ok.yml"),
            ".gibil/workflows/out.yml": Link("/etc/hostname"),
            ".gibil/workflows/dangling.yml": Link("nothing"),
            ".gibil/workflows/folder.yml": Link("../../ci"),
        },
    )
    files = await scene.client.workflow_files(scene.installation, REPO, sha)
    good = {path for path, content in files.items() if not isinstance(content, UnusableFile)}
    assert (good, files[".gibil.yml"]) == ({".gibil.yml", ".gibil/workflows/good.yml"}, b"name: ok\n")
    assert len(files) == 5
    for path in set(files) - good:
        with pytest.raises(InvalidWorkflow, match="symbolic link that doesn't lead to a file of this repository"):
            parse_workflow(path, files[path])
    await scene.github.push(REPO, "folder", {".gibil/workflows": Link("../ci"), "ci/ok.yml": "name: ok\n"})
    files = await scene.client.workflow_files(scene.installation, REPO, "folder")
    assert [isinstance(content, UnusableFile) for content in files.values()] == [True]


async def test_workflow_files_of_a_ref_are_read(scene: Scene) -> None:
    assert await scene.client.workflow_files(scene.installation, REPO, "main") == {}
    large = b"#" * 200_000
    huge = b"# " + b"x" * 2_000_000
    sha = await scene.github.push(
        REPO,
        "main",
        {
            ".gibil.yml": "name: one\n",
            ".gibil/workflows/docs.yml": "name: docs\n",
            ".gibil/workflows/a b#?.yaml": b"name: \xff\n",
            ".gibil/workflows/large.yml": large,
            ".gibil/workflows/huge.yml": huge,
            ".gibil/workflows/README.md": "no workflow",
            ".gibil/workflows/deep/x.yml": "name: deeper\n",
        },
    )
    expected = {
        ".gibil.yml": b"name: one\n",
        ".gibil/workflows/docs.yml": b"name: docs\n",
        ".gibil/workflows/a b#?.yaml": b"name: \xff\n",
        ".gibil/workflows/large.yml": large[: 64 * 1024 + 1],
        ".gibil/workflows/huge.yml": huge[: 64 * 1024 + 1],
    }
    assert await scene.client.workflow_files(scene.installation, REPO, sha) == expected
    before = scene.client.requests.total()
    assert await scene.client.workflow_files(scene.installation, REPO, sha) == expected
    assert scene.client.requests.total() == before + 1, "only the root tree"
    await scene.github.push(REPO, "main", {"engine.py": "changed\n"})
    assert await scene.client.workflow_files(scene.installation, REPO, "main") == expected
    assert scene.client.requests.total() == before + 2, "the workflow files did not change"
    await scene.github.push(REPO, "main", {".gibil.yml": "name: two\n"})
    assert (await scene.client.workflow_files(scene.installation, REPO, "main"))[".gibil.yml"] == b"name: two\n"
    assert scene.client.requests.total() == before + 4, "the root tree and the new file"


async def test_workflow_files_are_read_from_a_branch_with_a_slash_in_its_name(scene: Scene) -> None:
    await scene.github.push(REPO, "release/1.0", {".gibil.yml": "name: old\n"})
    assert await scene.client.workflow_files(scene.installation, REPO, "release/1.0") == {".gibil.yml": b"name: old\n"}


async def test_cached_workflow_files_are_not_returned_after_access_is_revoked(scene: Scene) -> None:
    await scene.github.push(REPO, "main", {".gibil.yml": "name: one\n"})
    installation = scene.installation
    assert await scene.client.workflow_files(installation, REPO, "main")
    scene.github.uninstall(REPO)
    with pytest.raises(GitHubError):
        await scene.client.workflow_files(installation, REPO, "main")


@pytest.mark.parametrize("status", [404, 409, 422])
async def test_workflow_files_are_read_by_path_when_the_tree_is_unreadable(scene: Scene, status: int) -> None:
    await scene.github.push(REPO, "main", {".gibil.yml": "name: one\n", ".gibil/workflows/a.yml": "name: a\n"})
    scene.github.fault("GET", r"/git/trees/", "error_before", status=status)
    files = await scene.client.workflow_files(scene.installation, REPO, "main")
    assert files == {".gibil.yml": b"name: one\n", ".gibil/workflows/a.yml": b"name: a\n"}


def test_the_object_cache_is_bounded_in_objects_and_bytes() -> None:
    cache = ObjectCache(most_objects=3, most_bytes=100)
    for number in range(5):
        cache.put(1, REPO, str(number), b"x" * 10)
    assert (len(cache), cache.size, cache.get(1, REPO, "1"), cache.get(1, REPO, "2")) == (3, 30, None, b"x" * 10)
    cache.put(1, REPO, "large", b"x" * 85)
    assert (len(cache), cache.size, cache.get(1, REPO, "2")) == (2, 95, b"x" * 10), (
        "the least recently used objects are removed"
    )
    cache.put(1, REPO, "too large", b"x" * 101)
    assert (len(cache), cache.size) == (0, 0)
    cache.put(1, REPO, "0", b"one")
    cache.put(1, REPO, "0", b"three")
    assert (len(cache), cache.size) == (1, 5)


def test_the_object_cache_is_separate_for_each_installation_and_repository() -> None:
    cache = ObjectCache()
    cache.put(1, REPO, "0", b"x")
    assert (cache.get(2, REPO, "0"), cache.get(1, "ada/other", "0"), cache.get(1, REPO, "0")) == (None, None, b"x")


async def test_at_most_thirty_workflow_files_are_requested(scene: Scene) -> None:
    await scene.github.push(REPO, "main", {f".gibil/workflows/w{n:03}.yml": f"name: {n}\n" for n in range(40)})
    files = await scene.client.workflow_files(scene.installation, REPO, "main")
    assert list(files) == [f".gibil/workflows/w{n:03}.yml" for n in range(30)]


async def test_one_failing_file_fails_the_read_and_cancels_the_other_requests(scene: Scene) -> None:
    await scene.github.push(REPO, "main", {f".gibil/workflows/w{n}.yml": f"name: {n}\n" for n in range(5)})
    scene.github.fault("GET", r"/git/blobs/", "error_before", times=100)
    with pytest.raises(GitHubError) as caught:
        await scene.client.workflow_files(scene.installation, REPO, "main")
    assert caught.value.retry_after_s is not None
    assert len(asyncio.all_tasks()) < 10


async def test_who_am_i_returns_the_slug(scene: Scene) -> None:
    assert await scene.client.who_am_i() == "gibil"


async def test_who_am_i_explains_an_authentication_failure(scene: Scene) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.TraditionalOpenSSL
    other = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
    with_words = {
        "GIBIL_GITHUB_PRIVATE_KEY": {"private_key": other},
        "whole .pem file": {"private_key": "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n"},
        "GIBIL_GITHUB_APP_ID": {"app_id": "1"},
        "GIBIL_GITHUB_URL": {"url": scene.github.url + "/not/here"},
        "didn't answer": {"url": "http://127.0.0.1:9"},
    }
    for words, options in with_words.items():
        async with client_of(scene.github, Clock(), **options) as client:
            with pytest.raises(GitHubError, match=words) as caught:
                await client.who_am_i()
            assert "\n" not in str(caught.value)
            assert "AAAA" not in str(caught.value)


async def test_who_am_i_reports_a_wrong_clock(scene: Scene) -> None:
    scene.github.fault("GET", "/app$", "unauthorized", times=9)
    scene.clock.ahead_s = -900
    with pytest.raises(GitHubError, match=r"clock is \d+ s behind"):
        await scene.client.who_am_i()


# --- tokens -----------------------------------------------------------------------------------------------------------


async def test_concurrent_queries_share_one_token(scene: Scene) -> None:
    await asyncio.gather(*(scene.client.pull_request(scene.installation, REPO, 1) for _ in range(20)))
    assert scene.asked("POST", "/access_tokens") == 1


async def test_a_token_is_renewed_before_it_expires(scene: Scene) -> None:
    await scene.client.pull_request(scene.installation, REPO, 1)
    scene.clock.ahead_s += 3400
    await scene.client.pull_request(scene.installation, REPO, 1)
    assert scene.asked("POST", "/access_tokens") == 1
    scene.clock.ahead_s += 120
    await scene.client.pull_request(scene.installation, REPO, 1)
    assert scene.asked("POST", "/access_tokens") == 2


async def test_a_revoked_token_is_replaced_once(scene: Scene) -> None:
    await scene.client.pull_request(scene.installation, REPO, 1)
    assert scene.github.revoke_tokens() == 1
    assert await scene.client.publish(due(scene.comment())) is not None
    assert scene.asked("POST", "/access_tokens") == 2
    assert len(scene.conversation()) == 1


async def test_a_token_that_is_rejected_twice_is_an_error(scene: Scene) -> None:
    scene.github.fault("GET", "/pulls/1$", "unauthorized", times=99)
    with pytest.raises(GitHubError) as caught:
        await scene.client.pull_request(scene.installation, REPO, 1)
    assert caught.value.status == 401
    assert scene.asked("GET", "/pulls/1") == 2
    assert scene.asked("POST", "/access_tokens") == 2


async def test_a_clone_token_can_only_read_one_repository(scene: Scene) -> None:
    other = await scene.github.add_repository("ada/secret", {"x": "y"}, private=True)
    home = scene.github.state.repository(REPO)
    repository = Repository(id=home.id, full_name=REPO, clone_url="https://x/y", default_branch="main")
    token = await scene.client.clone_token(scene.installation, repository)
    again = await scene.client.clone_token(scene.installation, repository)
    assert token != again, "never shared between machines"
    headers = {"Authorization": f"token {token}"}
    async with httpx.AsyncClient(base_url=scene.github.url, headers=headers, trust_env=False) as http:
        assert (await http.get(f"/repos/{REPO}/contents/README.md")).status_code == 200
        assert (await http.get(f"/repos/{other.full_name}/contents/x")).status_code == 404
        written = await http.post(f"/repos/{REPO}/issues/1/comments", json={"body": "x"})
        assert written.status_code in (403, 404)
    wider = await scene.client.clone_token(scene.installation, repository, ("secret",))
    headers = {"Authorization": f"token {wider}"}
    async with httpx.AsyncClient(base_url=scene.github.url, headers=headers, trust_env=False) as http:
        for name, path in ((REPO, "README.md"), (other.full_name, "x")):
            assert (await http.get(f"/repos/{name}/contents/{path}")).status_code == 200
    with pytest.raises(GitHubError) as caught:
        await scene.client.clone_token(scene.installation, repository, ("unknown",))
    assert caught.value.status == 422
    await scene.client.revoke_token(wider)
    async with httpx.AsyncClient(base_url=scene.github.url, headers=headers, trust_env=False) as http:
        assert (await http.get(f"/repos/{REPO}/contents/README.md")).status_code == 401


async def test_revoking_never_raises(scene: Scene) -> None:
    await scene.client.revoke_token("ghs_nonsense")
    scene.github.fault("DELETE", "/installation/token", "drop_before", times=9)
    await scene.client.revoke_token("ghs_nonsense")


# --- publishing --------------------------------------------------------------------------------------------------------


async def test_a_check_run_is_created_and_then_updated(scene: Scene) -> None:
    number = await scene.client.publish(due(scene.check()))
    done = scene.check(status="completed", conclusion="success", completed_at="2026-01-01T00:00:00Z")
    assert await scene.client.publish(due(done, remote_id=number, attempts=1)) == number
    (run,) = scene.github.check_runs(REPO, scene.sha)
    assert (run.id, run.status, run.conclusion, run.external_id) == (number, "completed", "success", "00ff00ff00ff00ff")


FAILURES_AFTER = ["error_after", "drop_after", "hang_after"]


async def test_nothing_is_written_once_the_claim_of_a_notification_has_ended(scene: Scene) -> None:
    """It is asked directly before each write, so also after waiting, searching and a failure."""
    number = await scene.client.publish(due(scene.check()))
    done = scene.check(status="completed", conclusion="success")
    scene.github.fault("PATCH", "/check-runs/", "error_before")
    holds = iter([True, False])
    with pytest.raises(NotAskedYet, match="another one may send it"):
        await scene.client.publish(due(done, remote_id=number), holds=lambda: next(holds))
    (run,) = scene.github.check_runs(REPO, scene.sha)
    assert run.status != "completed"
    for notification in (scene.comment(), scene.review(ON_LINE_1)):
        with pytest.raises(NotAskedYet):
            await scene.client.publish(due(notification, attempts=1), holds=lambda: False)
    assert scene.conversation() == []


@pytest.mark.parametrize("kind", FAILURES_AFTER)
@pytest.mark.parametrize("what", ["check", "comment"])
async def test_a_write_whose_response_was_lost_is_found_and_not_repeated(
    tmp_path: Path, scene: Scene, kind: str, what: str
) -> None:
    notification = scene.check() if what == "check" else scene.comment()
    route = "/check-runs$" if what == "check" else "/comments$"
    scene.github.fault("POST", route, kind, seconds=2)
    async with client_of(scene.github, scene.clock, read_timeout_s=0.3) as client:
        with pytest.raises(GitHubError) as caught:
            await client.publish(due(notification))
        assert caught.value.retry_after_s is not None
        assert scene.asked("POST", route[:-1]) <= 1, "a POST is never repeated blindly"
        newer = scene.check(status="queued") if what == "check" else scene.comment("newer")
        number = await client.publish(due(newer, attempts=1))
    assert number is not None
    if what == "check":
        (run,) = scene.github.check_runs(REPO, scene.sha)
        assert (run.id, run.status) == (number, "queued")
    else:
        assert scene.conversation() == [f"{MARKER}\nnewer"]


@pytest.mark.parametrize("kind", ["error_before", "drop_before"])
async def test_a_write_that_had_no_effect_is_created_by_the_next_attempt(scene: Scene, kind: str) -> None:
    scene.github.fault("POST", "/check-runs$", kind)
    with pytest.raises(GitHubError):
        await scene.client.publish(due(scene.check()))
    assert await scene.client.publish(due(scene.check(), attempts=1)) is not None
    assert len(scene.github.check_runs(REPO, scene.sha)) == 1


@pytest.mark.parametrize("kind", ["error_before", "error_after", "drop_before", "drop_after"])
async def test_an_update_is_retried_because_it_is_idempotent(scene: Scene, kind: str) -> None:
    number = await scene.client.publish(due(scene.check()))
    scene.github.fault("PATCH", "/check-runs/", kind, times=2)
    assert await scene.client.publish(due(scene.check(status="completed", conclusion="failure"), remote_id=number)) == number
    assert scene.github.check_runs(REPO)[0].conclusion == "failure"


async def test_the_retry_delay_grows_with_repeated_failures(scene: Scene) -> None:
    waits = []
    for attempts in range(8):
        scene.github.fault("GET", "/check-runs$", "error_before", times=4)
        scene.github.fault("POST", "/check-runs$", "error_before")
        with pytest.raises(GitHubError) as caught:
            await scene.client.publish(due(scene.check(), attempts=attempts, failures=attempts))
        waits.append(caught.value.retry_after_s or 0)
        scene.github.clear_faults()
    assert waits == sorted(waits)
    assert waits[-1] > 30 * waits[0]
    assert waits[-1] <= 300


async def test_a_check_run_of_another_app_is_not_adopted(scene: Scene) -> None:
    first = await scene.client.publish(due(scene.check(external_id="aaaaaaaaaaaaaaaa")))
    second = await scene.client.publish(due(scene.check(), attempts=3))
    assert first != second
    assert await scene.client.publish(due(scene.check(), attempts=3)) == second


async def test_another_users_comment_with_the_marker_is_never_edited(scene: Scene) -> None:
    theirs = scene.github.comment(REPO, scene.number, "eve", f"{MARKER}\nmine!")
    number = await scene.client.publish(due(scene.comment(), attempts=1))
    assert number not in (None, theirs.id)
    assert theirs.body == f"{MARKER}\nmine!"


async def test_task_output_that_contains_a_marker_does_not_overwrite_a_comment(scene: Scene) -> None:
    first = await scene.client.publish(due(scene.comment(f"output:\n{MARKER[:-8]}docs -->")))
    docs = scene.comment("docs", marker=f"{MARKER[:-8]}docs -->")
    assert await scene.client.publish(due(docs, attempts=1)) not in (None, first)


async def test_a_comment_is_found_among_hundreds(scene: Scene) -> None:
    own = await scene.client.publish(due(scene.comment()))
    for index in range(150):
        scene.github.comment(REPO, scene.number, "bob", f"chatter {index}")
    late = await scene.client.publish(due(scene.comment(marker="<!-- late -->")))
    for index in range(120):
        scene.github.comment(REPO, scene.number, "bob", f"more {index}")
    assert await scene.client.publish(due(scene.comment("new"), attempts=1)) == own
    assert await scene.client.publish(due(scene.comment("new", marker="<!-- late -->"), attempts=1)) == late
    before = scene.client.requests["GET /repos/{repository}/issues/{number}/comments"]
    assert await scene.client.publish(due(scene.comment(marker="<!-- never -->"), attempts=1)) is not None
    assert scene.client.requests["GET /repos/{repository}/issues/{number}/comments"] - before <= 10


async def test_a_deleted_comment_is_created_again(scene: Scene) -> None:
    number = await scene.client.publish(due(scene.comment()))
    assert number is not None
    scene.github.delete_comment(number)
    again = await scene.client.publish(due(scene.comment("again"), remote_id=number, attempts=1))
    assert again not in (None, number)
    assert scene.conversation() == [f"{MARKER}\nagain"]


async def test_an_update_of_a_missing_comment_creates_nothing(scene: Scene) -> None:
    green = scene.comment("green", only_if_exists=True)
    assert await scene.client.publish(due(green)) is None
    assert scene.conversation() == []
    number = await scene.client.publish(due(scene.comment("red")))
    assert await scene.client.publish(due(green)) == number, "found although its id is unknown"
    assert await scene.client.publish(due(green, remote_id=number)) == number
    assert scene.conversation() == [f"{MARKER}\ngreen"]
    scene.github.delete_comment(number or 0)
    assert await scene.client.publish(due(green, remote_id=number, attempts=2)) is None
    assert scene.conversation() == []


@pytest.mark.parametrize("is_review_comment", [False, True])
async def test_a_reaction_may_be_published_twice(scene: Scene, is_review_comment: bool) -> None:
    say = scene.github.review_comment if is_review_comment else scene.github.comment
    comment = say(REPO, scene.number, "ada", "/gibil test")
    notification = scene.reaction(comment.id, "eyes", is_review_comment=is_review_comment)
    scene.github.fault("POST", "/reactions$", "error_after")
    first = await scene.client.publish(due(notification))
    assert await scene.client.publish(due(notification, attempts=1)) == first
    assert [reaction.content for reaction in scene.github.reactions(comment.id)] == ["eyes"]


ON_LINE_1 = ReviewComment(path="README.md", line=1, body="faster?")


async def test_a_review_comments_on_lines_of_both_sides_and_decides_nothing(scene: Scene) -> None:
    lines = {"f.txt": "".join(f"{n}\n" for n in range(30))}
    await scene.github.push(REPO, "main", lines)
    number = await scene.github.open_pull_request(REPO, "edit", {"f.txt": lines["f.txt"].replace("20\n", "twenty\n")}, "ada")
    comments = (
        ReviewComment(path="f.txt", line=22, start_line=21, body="both"),
        ReviewComment(path="f.txt", line=21, side="LEFT", body="gone"),
    )
    sha = scene.github.head_sha(REPO, number)
    new = await scene.client.publish(due(scene.review(*comments, number=number, commit_sha=sha)))
    (review,) = scene.github.reviews(REPO, number)
    assert (review.id, review.state, review.commit_sha, review.body) == (new, "commented", sha, f"{REVIEW}\nSee the lines.")
    placed = [comment.lines for comment in scene.github.comments(REPO, number) if comment.lines is not None]
    assert [(each.review, each.start_line, each.line, each.side) for each in placed] == [
        (new, 21, 22, "RIGHT"),
        (new, None, 21, "LEFT"),
    ]


@pytest.mark.parametrize("kind", FAILURES_AFTER)
async def test_a_review_whose_response_was_lost_is_not_submitted_twice(scene: Scene, kind: str) -> None:
    scene.github.fault("POST", "/reviews$", kind, seconds=2)
    async with client_of(scene.github, scene.clock, read_timeout_s=0.3) as client:
        with pytest.raises(GitHubError):
            await client.publish(due(scene.review(ON_LINE_1)))
        number = await client.publish(due(scene.review(ON_LINE_1), attempts=1))
    assert [review.id for review in scene.github.reviews(REPO, scene.number)] == [number]
    assert await scene.client.publish(due(scene.review(), remote_id=number, attempts=2)) == number
    assert scene.asked("POST", "/reviews") == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ReviewComment(path="README.md", line=99, body="x"),
        ReviewComment(path="missing.md", line=1, body="x"),
        ReviewComment(path="README.md", line=1, start_line=0, body="x"),
    ],
)
async def test_a_line_outside_of_the_diff_moves_all_comments_to_the_reviews_text(scene: Scene, wrong: ReviewComment) -> None:
    number = await scene.client.publish(due(scene.review(ON_LINE_1, wrong)))
    (review,) = scene.github.reviews(REPO, scene.number)
    assert (review.id, review.body) == (number, f"{REVIEW}\nREADME.md, line 1: faster?")
    assert scene.github.comments(REPO, scene.number) == []


async def test_a_review_of_a_commit_that_was_replaced_has_no_lines(scene: Scene) -> None:
    await scene.github.push(REPO, "faster", {"README.md": "Another engine\n"}, force=True)
    await scene.client.publish(due(scene.review(ON_LINE_1)))
    (review,) = scene.github.reviews(REPO, scene.number)
    assert (review.state, review.body) == ("commented", f"{REVIEW}\nREADME.md, line 1: faster?")
    assert review.commit_sha == scene.github.head_sha(REPO, scene.number)


async def test_another_users_review_with_the_marker_is_not_mistaken_for_the_apps(scene: Scene) -> None:
    theirs = scene.github.review(REPO, scene.number, "eve", f"{REVIEW}\nmine!")
    number = await scene.client.publish(due(scene.review(ON_LINE_1), attempts=1))
    assert number not in (None, theirs.id)


async def test_a_permanently_rejected_write_is_not_retried(scene: Scene) -> None:
    refused = [
        scene.check(head_sha="0" * 40),
        scene.check(status="completed", conclusion="splendid"),
        scene.comment("x" * 70_000),
        scene.comment(number=4711),
        replace(scene.comment(), repository="ada/gone"),
    ]
    for notification in refused:
        with pytest.raises(GitHubError) as caught:
            await scene.client.publish(due(notification))
        assert caught.value.retry_after_s is None, caught.value
        assert caught.value.status in (404, 410, 422)


async def test_an_uninstalled_app_is_not_queried_again(scene: Scene) -> None:
    notification = scene.comment()
    scene.github.uninstall(REPO)
    with pytest.raises(GitHubError) as caught:
        await scene.client.publish(due(notification))
    assert caught.value.retry_after_s is None


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_a_short_limit_is_waited_for_in_the_request(scene: Scene) -> None:
    scene.github.fault("POST", "/comments$", "secondary_limit", seconds=3)
    assert await scene.client.publish(due(scene.comment())) is not None
    assert max(scene.clock.slept) == pytest.approx(3, abs=0.5)
    assert len(scene.conversation()) == 1


@pytest.mark.parametrize(("kind", "seconds"), [("primary_limit", 1200), ("secondary_limit", 90)])
async def test_a_long_limit_is_raised_and_pauses_the_whole_installation(scene: Scene, kind: str, seconds: float) -> None:
    scene.github.fault("POST", "/check-runs$", kind, seconds=seconds)
    with pytest.raises(GitHubError) as caught:
        await scene.client.publish(due(scene.check()))
    assert caught.value.retry_after_s == pytest.approx(seconds, abs=3)
    before = len(scene.github.requests)
    with pytest.raises(GitHubError) as paused:
        await scene.client.pull_request(scene.installation, REPO, 1)
    assert paused.value.retry_after_s is not None
    assert len(scene.github.requests) == before, "no request was sent"
    assert await scene.client.who_am_i() == "gibil", "the App itself has a separate limit"
    scene.clock.ahead_s += seconds + 2
    assert await scene.client.publish(due(scene.check(), attempts=1)) is not None


async def test_a_limit_without_a_time_waits_a_minute_and_doubles(scene: Scene) -> None:
    waits = []
    for _ in range(4):
        scene.github.fault("POST", "/check-runs$", "secondary_limit_bare")
        with pytest.raises(GitHubError) as caught:
            await scene.client.publish(due(scene.check()))
        waits.append(caught.value.retry_after_s)
        scene.clock.ahead_s += (caught.value.retry_after_s or 0) + 1
    assert waits == [60, 120, 240, 480]
    assert await scene.client.publish(due(scene.check())) is not None
    scene.github.fault("POST", "/check-runs$", "secondary_limit_bare")
    with pytest.raises(GitHubError) as caught:
        await scene.client.publish(due(scene.check()))
    assert caught.value.retry_after_s == 60, "a success resets the delay"


async def test_comments_may_burst_and_are_then_a_second_apart(scene: Scene) -> None:
    began = scene.clock.monotonic()
    for number in range(20):
        await scene.client.publish(due(scene.comment(marker=f"<!-- {number} -->")))
    assert scene.clock.slept == []
    for number in range(20, 26):
        await scene.client.publish(due(scene.comment(marker=f"<!-- {number} -->")))
    assert scene.clock.monotonic() - began >= 5
    assert len(scene.conversation()) == 26


async def test_a_steady_stream_of_writes_stays_within_githubs_rate(scene: Scene) -> None:
    number = await scene.client.publish(due(scene.check()))
    began = scene.clock.monotonic()
    written = 0
    while scene.clock.monotonic() - began < 120:
        await scene.client.publish(due(scene.check(), remote_id=number))
        written += 1
    assert 100 < written <= 100 + 120 * 3


async def test_results_never_wait_for_comments_or_reactions(scene: Scene) -> None:
    first = scene.github.comment(REPO, scene.number, "ada", "/gibil test")
    for content in ("eyes", "rocket", "heart", "laugh", "hooray", "confused", "+1", "-1") * 7:
        notification = scene.reaction(first.id, content)
        await scene.client.publish(due(notification, priority=Priority.REACTION))
    assert 0 < len(scene.clock.slept) < 10, "reactions leave half of the burst to other writes"
    for number in range(19):
        notification = scene.comment(marker=f"<!-- {number} -->")
        await scene.client.publish(due(notification, priority=Priority.COMMENT))
    before = len(scene.clock.slept)
    check_run = await scene.client.publish(due(scene.check()))
    for _ in range(20):
        await scene.client.publish(due(scene.check(), remote_id=check_run))
    assert len(scene.clock.slept) == before


async def test_progress_is_postponed_so_that_the_result_can_be_published(scene: Scene) -> None:
    number = await scene.client.publish(due(scene.check()))
    progress = due(scene.check(), remote_id=number, priority=Priority.PROGRESS)
    for _ in range(39):
        await scene.client.publish(progress)
    with pytest.raises(NotAskedYet) as caught:
        await asyncio.gather(*(scene.client.publish(progress) for _ in range(9)))
    assert caught.value.retry_after_s == 1
    assert scene.clock.slept == []
    await scene.client.publish(due(scene.check(status="completed", conclusion="success"), remote_id=number))
    assert scene.clock.slept == []


# --- responses that GitHub shouldn't send, made by respx below the client -----------------------------------------------


CANNED = "https://github.invalid/api/v3"


@contextlib.asynccontextmanager
async def canned(github: GitHubDouble) -> AsyncIterator[tuple[GitHubClient, respx.MockRouter, Clock]]:
    """A client whose GitHub is respx; only the key comes from the double."""
    clock = Clock()
    with respx.mock(assert_all_called=False) as router:
        token = {"token": "ghs_0123456789.abc-def", "expires_at": "2999-01-01T00:00:00Z"}
        router.post(f"{CANNED}/app/installations/1/access_tokens").respond(201, json=token)
        async with client_of(github, clock, url=CANNED) as client:
            yield client, router, clock


async def test_an_api_address_with_a_path_keeps_the_path(scene: Scene) -> None:
    async with canned(scene.github) as (client, router, _):
        route = router.get(f"{CANNED}/repos/ada/engine/collaborators/bob/permission").respond(200, json={"permission": "write"})
        assert await client.permission(1, REPO, "bob") == "write"
        headers = route.calls.last.request.headers
        assert headers["authorization"] == "token ghs_0123456789.abc-def"
        assert headers["x-github-api-version"] == "2022-11-28"


@pytest.mark.parametrize("level", ["maintain", "owner", "", "WRITE"])
async def test_an_unknown_permission_means_none(scene: Scene, level: str) -> None:
    async with canned(scene.github) as (client, router, _):
        router.get(url__regex=r".*/permission$").respond(200, json={"permission": level})
        assert await client.permission(1, REPO, "bob") == "none"


@pytest.mark.parametrize(
    "failure", [502, 500, httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("cut"), httpx.WriteError("cut")]
)
async def test_a_post_that_may_have_taken_effect_is_sent_once(scene: Scene, failure: int | Exception) -> None:
    async with canned(scene.github) as (client, router, _):
        effect = httpx.Response(failure) if isinstance(failure, int) else failure
        route = router.post(f"{CANNED}/repos/{REPO}/issues/1/comments").mock(side_effect=[effect] * 9)
        with pytest.raises(GitHubError) as caught:
            await client.publish(due(replace(scene.comment(), installation_id=1)))
        assert route.call_count == 1
        assert caught.value.retry_after_s is not None


async def test_a_post_that_was_never_sent_is_retried(scene: Scene) -> None:
    async with canned(scene.github) as (client, router, _):
        answers: list[httpx.Response | Exception] = [
            httpx.ConnectError("refused"),
            httpx.ConnectTimeout("slow"),
            httpx.Response(201, json={"id": 5}),
        ]
        route = router.post(f"{CANNED}/repos/{REPO}/issues/1/comments").mock(side_effect=answers)
        assert await client.publish(due(replace(scene.comment(), installation_id=1))) == 5
        assert route.call_count == 3


async def test_a_clone_token_with_write_access_is_revoked_and_rejected(scene: Scene) -> None:
    async with canned(scene.github) as (client, router, _):
        wide = {"token": "ghs_wide", "permissions": {"contents": "write", "metadata": "read"}}
        router.post(f"{CANNED}/app/installations/1/access_tokens").respond(201, json=wide)
        revoked = router.delete(f"{CANNED}/installation/token").respond(204)
        with pytest.raises(GitHubError, match="contents") as caught:
            await client.clone_token(1, Repository(id=9, full_name=REPO, clone_url="https://x/y", default_branch="main"))
        assert revoked.calls.last.request.headers["authorization"] == "token ghs_wide"
        assert "ghs_wide" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 60),
        ({"retry-after": "99999999999999999999"}, 60),
        ({"x-ratelimit-remaining": "0"}, 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "soon"}, 60),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9999999999"}, 3600),
        ({}, 60),
    ],
)
async def test_malformed_limit_headers_still_cause_a_wait(scene: Scene, headers: dict[str, str], wait: float) -> None:
    async with canned(scene.github) as (client, router, _):
        route = router.get(url__regex=r".*/permission$").respond(429, json={"message": "slow down"}, headers=headers)
        with pytest.raises(GitHubError) as caught:
            await client.permission(1, REPO, "bob")
        assert caught.value.retry_after_s == wait
        assert route.call_count == 1


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"null", b'{"permission": 5}', b"\xff", b"[" * 200_000])
async def test_an_unreadable_response_is_a_github_error(scene: Scene, content: bytes) -> None:
    async with canned(scene.github) as (client, router, _):
        router.get(url__regex=r".*/permission$").respond(200, content=content)
        with pytest.raises(GitHubError):
            await client.permission(1, REPO, "bob")


async def test_a_token_in_an_error_message_is_masked(scene: Scene) -> None:
    async with canned(scene.github) as (client, router, _):
        printed = {"message": "bad ghs_16C7e42F.292c-6912E7\n\x1b[31mred", "errors": [{"field": "body", "code": "too_long"}]}
        router.get(url__regex=r".*/permission$").respond(422, json=printed)
        with pytest.raises(GitHubError) as caught:
            await client.permission(1, REPO, "bob")
        assert "16C7" not in str(caught.value)
        assert "6912E7" not in str(caught.value)
        assert "body too_long" in str(caught.value)
        assert "\x1b" not in str(caught.value)


async def test_a_token_is_never_sent_to_another_host_after_a_redirect(scene: Scene) -> None:
    async with canned(scene.github) as (client, router, _):
        router.get(url__regex=rf"{CANNED}/.*/permission$").respond(302, headers={"location": "https://elsewhere.invalid/x"})
        elsewhere = router.get("https://elsewhere.invalid/x").respond(200, json={"permission": "admin"})
        with contextlib.suppress(GitHubError):
            await client.permission(1, REPO, "bob")
        assert all("authorization" not in call.request.headers for call in elsewhere.calls)


# --- connection failures -----------------------------------------------------------------------------------------------


async def test_a_query_without_a_response_is_retried(scene: Scene) -> None:
    scene.github.fault("GET", "/pulls/1$", "error_before")
    scene.github.fault("GET", "/pulls/1$", "drop_before")
    scene.github.fault("GET", "/pulls/1$", "error_before", status=503)
    assert (await scene.client.pull_request(scene.installation, REPO, 1)).number == 1
    assert len(scene.clock.slept) == 3
    assert sum(scene.clock.slept) < 8


async def test_a_query_fails_after_four_attempts(scene: Scene) -> None:
    scene.github.fault("GET", "/pulls/1$", "error_before", times=99)
    with pytest.raises(GitHubError, match="502") as caught:
        await scene.client.pull_request(scene.installation, REPO, 1)
    assert caught.value.retry_after_s is not None
    assert scene.client.requests["GET /repos/{repository}/pulls/{number}"] == 4


@pytest.mark.parametrize(("kind", "timeout"), [("hang", "read_timeout_s"), ("slow_body", "total_timeout_s")])
async def test_every_wait_is_bounded(scene: Scene, kind: str, timeout: str) -> None:
    scene.github.fault("GET", "/pulls/1$", kind, times=99, seconds=1)
    async with client_of(scene.github, scene.clock, **{timeout: 0.2}) as client:
        with pytest.raises(GitHubError, match="didn't answer"):
            async with asyncio.timeout(patient(10)):
                await client.pull_request(scene.installation, REPO, 1)


async def test_a_cancelled_query_releases_its_connection_for_the_next_one(scene: Scene) -> None:
    scene.github.fault("POST", "/access_tokens$", "hang", seconds=0.5)
    asking = asyncio.create_task(scene.client.pull_request(scene.installation, REPO, 1))
    async with asyncio.timeout(patient(5)):
        while not scene.client.requests["POST /app/installations/{installation}/access_tokens"]:
            await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await scene.client.pull_request(scene.installation, REPO, 1)).number == 1


async def test_errors_never_contain_a_token_or_the_key(scene: Scene) -> None:
    scene.github.fault("GET", "/pulls/1$", "unauthorized", times=9)
    with pytest.raises(GitHubError) as caught:
        await scene.client.pull_request(scene.installation, REPO, 1)
    shown = repr(caught.value) + str(caught.value) + repr(scene.client) + repr(vars(scene.client))
    for token in scene.github.state.tokens:
        assert token not in shown
    assert "PRIVATE KEY" not in shown


# --- lost deliveries ----------------------------------------------------------------------------------------------------


async def test_failed_deliveries_are_listed_until_they_arrive(tmp_path: Path) -> None:
    clock = Clock()
    async with receiving() as receiver, GitHubDouble.start(tmp_path, webhook_url=receiver.url) as github:
        await github.add_repository(REPO, {"README.md": "x\n"})
        issue = github.open_issue(REPO, "ada")
        await github.webhooks_sent()
        since = datetime.now(UTC) - timedelta(minutes=5)
        async with client_of(github, clock) as client:
            assert await client.failed_deliveries(since) == []
            github.fail_deliveries(2)
            github.comment(REPO, issue.number, "ada", "lost")
            await github.webhooks_sent()
            github.comment(REPO, issue.number, "ada", "lost too")
            await github.webhooks_sent()
            github.comment(REPO, issue.number, "ada", "arrived")
            await github.webhooks_sent()
            arrived = len(receiver.got)
            failed = await client.failed_deliveries(since)
            assert [guid for _, guid in failed] == [each.guid for each in github.deliveries if not each.succeeded]
            assert len(failed) == 2
            assert await client.failed_deliveries(datetime.now(UTC) + timedelta(hours=1)) == []
            for number, _ in failed:
                await client.redeliver(number)
            await github.webhooks_sent()
            assert len(receiver.got) == arrived + 2
            assert await client.failed_deliveries(since) == []


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with serving(receiver) as url:
        receiver.url = f"{url}/webhook"
        yield receiver


@dataclass
class Receiver:
    """Receives webhooks and counts them."""

    url: str = ""
    got: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        self.got.append(scope["path"])
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})
