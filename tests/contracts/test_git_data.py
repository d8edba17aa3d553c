"""Commits through the Git database API: the client and the double, and the commits of a real repository written with them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.commits.checks import CommitPolicy
from gibil_bot.commits.writing import NotWritten, git_data_for_head, write
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.records import DEFAULT_PERMISSIONS
from gibil_bot.errors import GitHubError, NotFastForward, NoWriteAccess, RefRejected
from gibil_bot.github.api.client import GitHubClient
from gibil_bot.github.api.git_data import GitDataClient, _Commit
from gibil_bot.github.api.http import Answer, Request
from gibil_bot.model import CommitPlan
from gibil_bot.ports import GitCommit, GitData, TreeEntry
from gibil_bot.runs.commit_steps import CommitTools
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import Target
from tests.contracts.double_kit import App, signed_in
from tests.contracts.store_nouns import new_run
from tests.contracts.test_github_client import Clock, client_of
from tests.doubles.repositories import git

REPO = "ada/engine"
FILES = {"README.md": "An engine\n", "src/wheel.py": "TEETH = 12\n", "run.sh": "#!/bin/sh\necho hello\n", "old/gone": "x\n"}
RUN_URL = "https://bot.dev/runs/1"


class Reader(GitDataClient):
    """The client, with what only tests ask it. `calls`: the number of requests, without repetitions."""

    calls = 0

    async def commit(self, repository: str, sha: str) -> GitCommit | None:
        answer = await self._get("/repos/{repository}/git/commits/{sha}", {"repository": repository, "sha": sha})
        return answer.read(_Commit).value() if answer.status < 400 else None

    async def _ask(self, request: Request) -> Answer:
        self.calls += 1
        return await super()._ask(request)


@dataclass
class Scene:
    github: GitHubDouble
    client: GitHubClient
    data: Reader
    head: str
    tree: str

    @property
    def installation(self) -> int:
        return self.github.installation(REPO).id

    async def commit(self, path: str = "a", text: str = "1", parent: str = "") -> str:
        """Create a commit with one more file."""
        before = await self.data.commit(REPO, parent or self.head)
        assert before is not None
        tree = await self.data.create_tree(REPO, before.tree, [TreeEntry(path=path, text=text)])
        return (await self.data.create_commit(REPO, f"Add {path}", tree, [before.sha])).sha


@contextlib.asynccontextmanager
async def opened(folder: Path, permissions: Mapping[str, str] = DEFAULT_PERMISSIONS) -> AsyncIterator[Scene]:
    async with GitHubDouble.start(folder, permissions=permissions) as github:
        await github.add_repository(REPO, FILES)
        async with client_of(github, Clock()) as client:
            data = Reader(client._session, github.installation(REPO).id)
            head = await data.ref(REPO, "main")
            commit = await data.commit(REPO, head or "")
            assert commit is not None
            yield Scene(github, client, data, commit.sha, commit.tree)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with opened(tmp_path / "github") as scene:
        yield scene


def bare(scene: Scene, folder: Path) -> Path:
    """Return a checkout of the repository at GitHub."""
    source = scene.github._hub.git.path(REPO)
    git(folder.parent, "clone", "-q", str(source), str(folder))
    return folder


async def test_the_client_implements_the_port(scene: Scene) -> None:
    data: GitData = scene.data
    assert await data.may_write()
    assert await scene.data.commit(REPO, "0" * 40) is None
    assert await data.ref(REPO, "absent/branch") is None
    assert await data.installation_of(REPO) == scene.installation
    ada = scene.github.add_user("ada")
    assert str(await data.noreply_address("ADA")).startswith(f"{ada.id}+ada@users.noreply.")
    assert await data.noreply_address("nobody") is None


async def test_a_commit_without_custom_author_is_verified(scene: Scene) -> None:
    sha = await scene.commit()
    found = await scene.data.commit(REPO, sha)
    assert found is not None
    assert found.verified
    text = await scene.github._hub.git.commit_text(REPO, sha)
    bot = scene.github.state.bot
    assert f"author {bot.login} <{bot.id}+{bot.login}@users.noreply.github.com>" in text
    assert "committer GitHub <noreply@github.com>" in text


@pytest.mark.parametrize("custom", ["author", "committer", "signature"])
async def test_a_commit_with_a_custom_author_is_not_verified(tmp_path: Path, custom: str) -> None:
    async with signed_in(tmp_path) as app:
        person = {"name": "Bo", "email": "bo@example.com"}
        sha, tree = await head_of(app)
        body = {"message": "x", "tree": tree, "parents": [sha], custom: "-----BEGIN" if custom == "signature" else person}
        answer = await app.ask("POST", f"/repos/{REPO}/git/commits", token=await app.token(), json=body)
        assert answer.status_code == 201
        assert answer.json()["verification"]["verified"] is False


async def head_of(app: App) -> tuple[str, str]:
    ref = (await app.ask("GET", f"/repos/{REPO}/git/ref/heads/main")).json()["object"]["sha"]
    commit = (await app.ask("GET", f"/repos/{REPO}/git/commits/{ref}")).json()
    return ref, commit["tree"]["sha"]


async def test_the_double_rejects_objects_as_github_does(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        token, absent = await app.token(), "1" * 40
        head, tree = await head_of(app)
        entry = {"path": "a", "mode": "100644", "type": "blob"}
        for path, body, message in (
            ("trees", {"tree": []}, "Invalid tree info"),
            ("trees", {"tree": [entry | {"content": "x"}], "base_tree": absent}, "base_tree is not a valid tree oid"),
            ("trees", {"tree": [entry | {"sha": absent}]}, f"tree.sha {absent} is not a valid blob"),
            ("trees", {"tree": [entry | {"sha": tree}]}, f"tree.sha {tree} is not a valid blob"),
            ("trees", {"tree": [entry | {"sha": None}], "base_tree": tree}, "GitRPC::BadObjectState"),
            ("trees", {"tree": [entry]}, "Must supply either tree.sha or tree.content"),
            ("trees", {"tree": [entry | {"sha": tree, "content": "x"}]}, "Must supply either tree.sha or tree.content"),
            ("trees", {"tree": [entry | {"path": "a/.GIT/config", "content": "x"}]}, "malformed path component"),
            ("trees", {"tree": [entry | {"path": "/a", "content": "x"}]}, "cannot start with a slash"),
            ("commits", {"message": "x", "tree": head, "parents": []}, "Tree SHA does not exist"),
            ("commits", {"message": "x", "tree": tree, "parents": [absent]}, "Parent SHA does not exist"),
            ("commits", {"tree": tree}, "Validation Failed"),
            ("blobs", {"content": "%%", "encoding": "base64"}, "Validation Failed"),
            ("refs", {"ref": "refs/heads/main", "sha": head}, "Reference already exists"),
            ("refs", {"ref": "main", "sha": head}, "at least two slashes"),
            ("refs", {"ref": "refs/heads/new", "sha": absent}, "Object does not exist"),
            ("refs", {"ref": "refs/heads/a..b", "sha": head}, "not a valid ref name"),
        ):
            answer = await app.ask("POST", f"/repos/{REPO}/git/{path}", token=token, json=body)
            assert (answer.status_code, message in answer.json()["message"]) == (422, True), (body, answer.text)
        for branch, sha, message in (
            ("absent", head, "Reference does not exist"),
            ("main", absent, "Object does not exist"),
        ):
            answer = await app.ask("PATCH", f"/repos/{REPO}/git/refs/heads/{branch}", token=token, json={"sha": sha})
            assert (answer.status_code, answer.json()["message"]) == (422, message)


async def test_a_branch_moves_only_forward_from_the_expected_head(scene: Scene) -> None:
    ours, theirs = await scene.commit("ours"), await scene.commit("theirs")
    await scene.data.move_ref(REPO, "main", theirs, expected=scene.head)
    assert await scene.data.ref(REPO, "main") == theirs
    for expected in (None, scene.head):
        with pytest.raises(NotFastForward):
            await scene.data.move_ref(REPO, "main", ours, expected=expected)
    assert await scene.data.ref(REPO, "main") == theirs


async def test_of_two_moves_at_the_same_time_one_succeeds_and_the_other_finds_the_branch_moved(scene: Scene) -> None:
    """GitHub has another message for a write that loses the race than for a head that is no ancestor."""
    head = scene.head
    for round_ in range(4):
        one, two = [await scene.commit(f"{name} {round_}", parent=head) for name in ("one", "two")]
        moves = (scene.data.move_ref(REPO, "main", sha, expected=head) for sha in (one, two))
        ends = await asyncio.gather(*moves, return_exceptions=True)
        assert [type(end) for end in ends if end is not None] == [NotFastForward], ends
        head = one if ends[0] is None else two
        assert await scene.data.ref(REPO, "main") == head


async def test_a_new_branch_that_two_create_at_the_same_time_is_created_once(scene: Scene) -> None:
    ours = await scene.commit("ours")
    await asyncio.gather(*(scene.data.create_ref(REPO, "topic", ours) for _ in range(4)))
    assert await scene.data.ref(REPO, "topic") == ours


async def test_a_branch_that_was_reset_is_not_restored(scene: Scene) -> None:
    first = await scene.commit("first")
    await scene.data.create_ref(REPO, "topic", scene.head)
    ours = await scene.commit("second", parent=first)
    with pytest.raises(NotFastForward, match="has moved"):
        await scene.data.move_ref(REPO, "topic", ours, expected=first)


@pytest.mark.parametrize("kind", ["error_before", "error_after", "drop_before", "drop_after"])
async def test_a_lost_response_moves_a_branch_once(scene: Scene, kind: str) -> None:
    ours = await scene.commit("ours")
    for method, path in (("PATCH", "/git/refs/heads/main$"), ("POST", "/git/refs$"), ("POST", "/pulls$")):
        scene.github.fault(method, path, kind)
    await scene.data.create_ref(REPO, "copy", ours)
    await scene.data.move_ref(REPO, "main", ours, expected=scene.head)
    assert await scene.data.ref(REPO, "main") == await scene.data.ref(REPO, "copy") == ours
    later = await scene.commit("later", parent=ours)
    await scene.data.create_ref(REPO, "gibil/fix", later)
    number, url = await scene.data.open_pull_request(REPO, head="gibil/fix", base="main", title="Fix")
    assert await scene.data.open_pull_request(REPO, head="gibil/fix", base="main", title="Fix") == (number, url)
    assert len(scene.github.state.repository(REPO).pull_requests()) == 1
    assert len(scene.github.state.repository(REPO).activity) == 3


async def test_a_repeated_move_succeeds_after_someone_pushed_on_top(scene: Scene) -> None:
    ours = await scene.commit("ours")
    await scene.data.move_ref(REPO, "main", ours, expected=scene.head)
    await scene.github.push(REPO, "main", {"more": "1"})
    for expected in (scene.head, None):
        await scene.data.move_ref(REPO, "main", ours, expected=expected)
    assert await scene.data.contains(REPO, "main", ours)
    assert not await scene.data.contains(REPO, "main", await scene.commit("other"))


async def test_a_protected_branch_is_reported_with_githubs_rule(scene: Scene) -> None:
    ours = await scene.commit("ours")
    scene.github.protect_branch(REPO, "main")
    with pytest.raises(RefRejected, match=r"main of ada/engine was not changed.*must be made through a pull request") as caught:
        await scene.data.move_ref(REPO, "main", ours)
    assert not isinstance(caught.value, NotFastForward)


async def test_an_app_that_may_only_read_is_recognized_before_and_at_a_write(tmp_path: Path) -> None:
    async with opened(tmp_path, {**DEFAULT_PERMISSIONS, "contents": "read"}) as scene:
        assert not await scene.data.may_write()
        with pytest.raises(NoWriteAccess, match="contents: write"):
            await scene.data.create_blob(REPO, b"x")
        scene.github.grant(REPO, DEFAULT_PERMISSIONS)
        await scene.client._session.pause(61)
        assert await scene.data.may_write()
        await scene.data.create_blob(REPO, b"x")


async def test_workflows_need_their_own_permission(scene: Scene) -> None:
    workflow = [TreeEntry(path=".github/workflows/ci.yml", text="on: push\n")]
    with pytest.raises(NoWriteAccess, match="workflows: write"):
        await scene.data.create_tree(REPO, scene.tree, workflow)


async def test_a_rate_limit_is_waited_for(scene: Scene) -> None:
    scene.github.fault("POST", "/git/blobs$", "secondary_limit", seconds=90)
    assert await scene.data.create_blob(REPO, b"x") == "c1b0730e0133447badcfd47fd144e254807b06e1"
    before = scene.data.calls
    assert await scene.data.create_blob(REPO, b"x") == "c1b0730e0133447badcfd47fd144e254807b06e1"
    assert scene.data.calls == before + 1


# --- forks


@pytest.mark.parametrize(
    ("installed", "may_edit", "apps_edit", "writable"),
    [
        (True, False, False, True),
        (False, True, True, True),
        (False, True, False, False),
        (False, False, True, None),
    ],
)
async def test_a_fork_is_written_where_github_permits_it(
    scene: Scene, installed: bool, may_edit: bool, apps_edit: bool, writable: bool | None
) -> None:
    github = scene.github
    number = await github.open_pull_request(REPO, "topic", {"a": "1"}, "bob", fork=True)
    github.set_maintainer_edits(REPO, number, allowed=may_edit)
    github.allow_apps_to_edit_forks(allowed=apps_edit)
    if installed:
        github.install("bob/engine")
    pull = await scene.client.pull_request(scene.installation, REPO, number)
    chosen = await git_data_for_head(scene.data, pull, REPO, scene.installation)
    if writable is None:
        assert chosen is None
        return
    assert chosen is not None
    data = Reader(scene.client._session, chosen)
    head = await data.commit("bob/engine", pull.head_sha)
    assert head is not None
    try:
        tree = await data.create_tree("bob/engine", head.tree, [TreeEntry(path="b", text="2")])
        commit = await data.create_commit("bob/engine", "Add b", tree, [pull.head_sha])
        await data.move_ref("bob/engine", "topic", commit.sha, expected=pull.head_sha)
    except NoWriteAccess:
        assert not writable
    else:
        assert writable
        assert github.head_sha(REPO, number) == commit.sha


async def test_maintainers_edit_only_the_branch_of_the_pull_request(scene: Scene) -> None:
    github = scene.github
    github.allow_apps_to_edit_forks()
    number = await github.open_pull_request(REPO, "topic", {"a": "1"}, "bob", fork=True)
    with pytest.raises(NoWriteAccess):
        await scene.data.move_ref("bob/engine", "main", github.head_sha(REPO, number))
    github.add_user("bob").type = "Organization"
    with pytest.raises(NoWriteAccess):
        await scene.data.create_blob("bob/engine", b"x")


# --- commits of a real repository


async def test_commits_keep_trees_modes_messages_and_number(scene: Scene, tmp_path: Path) -> None:
    work = bare(scene, tmp_path / "work")
    (work / "run.sh").chmod(0o755)
    (work / "link").symlink_to("README.md")
    (work / "picture").write_bytes(b"\x00\xff" * 100)
    (work / "old/gone").unlink()
    git(work, "mv", "src/wheel.py", "src/cog.py")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "Change much\n\nBecause.")
    (work / "src/cog.py").write_text("TEETH = 13\r\nÄ\n")
    git(work, "commit", "-qam", "Turn")
    git(work, "commit", "-q", "--allow-empty", "-m", "Nothing")
    head = git(work, "rev-parse", "HEAD")
    before = scene.data.calls
    written = await write(
        scene.data,
        REPO,
        work / ".git",
        base=scene.head,
        head=head,
        run_url=RUN_URL,
        co_author="ada <7+ada@users.noreply.github.com>",
    )
    # One blob (the picture; run.sh and README.md are known), two trees, three commits.
    assert scene.data.calls == before + 6
    found: list[GitCommit] = []
    theirs = written
    for ours in git(work, "rev-list", f"{scene.head}..{head}").split():
        commit = await scene.data.commit(REPO, theirs)
        assert commit is not None
        assert (commit.tree, commit.verified) == (git(work, "rev-parse", f"{ours}^{{tree}}"), True)
        found.insert(0, commit)
        (theirs,) = commit.parents
    assert (len(found), theirs) == (3, scene.head)
    text = await scene.github._hub.git.commit_text(REPO, found[0].sha)
    assert text.endswith(
        f"\n\nChange much\n\nBecause.\n\nCo-authored-by: ada <7+ada@users.noreply.github.com>\nGibil-Run: {RUN_URL}\n"
    )
    await scene.data.move_ref(REPO, "main", written, expected=scene.head)
    again = await write(scene.data, REPO, work / ".git", base=scene.head, head=head)
    trees = [await scene.data.commit(REPO, each) for each in (again, written)]
    assert len({tree.tree for tree in trees if tree is not None}) == 1


async def test_a_file_that_becomes_a_folder_is_written(scene: Scene, tmp_path: Path) -> None:
    work = bare(scene, tmp_path / "work")
    (work / "run.sh").unlink()
    (work / "run.sh").mkdir()
    (work / "run.sh/a").write_text("a\n")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "Swap")
    head = git(work, "rev-parse", "HEAD")
    written = await write(scene.data, REPO, work / ".git", base=scene.head, head=head)
    found = await scene.data.commit(REPO, written)
    assert found is not None
    assert found.tree == git(work, "rev-parse", "HEAD^{tree}")


async def test_twenty_files_take_two_requests(scene: Scene, tmp_path: Path) -> None:
    work = bare(scene, tmp_path / "work")
    for number in range(20):
        (work / f"src/{number}.py").write_text(f"X = {number}\n")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "Twenty")
    before = scene.data.calls
    await write(scene.data, REPO, work / ".git", base=scene.head, head=git(work, "rev-parse", "HEAD"))
    assert scene.data.calls == before + 2


async def test_a_text_that_is_not_preserved_is_sent_as_a_blob(scene: Scene, tmp_path: Path) -> None:
    """GitHub's answer to the tree is another hash: here because the double's tree fails once."""
    work = bare(scene, tmp_path / "work")
    (work / "new").write_text("x\n")
    git(work, "add", "-A")
    git(work, "commit", "-qm", "New")
    scene.github.fault("POST", "/git/trees$", "error_before", status=422)
    written = await write(scene.data, REPO, work / ".git", base=scene.head, head=git(work, "rev-parse", "HEAD"))
    found = await scene.data.commit(REPO, written)
    assert found is not None
    assert found.tree == git(work, "rev-parse", "HEAD^{tree}")


async def test_too_many_commits_and_none_are_rejected(scene: Scene, tmp_path: Path) -> None:
    work = bare(scene, tmp_path / "work")
    with pytest.raises(NotWritten, match="no new commit"):
        await write(scene.data, REPO, work / ".git", base=scene.head, head=scene.head)
    tip = scene.head
    for _ in range(101):
        tip = git(work, "commit-tree", "-p", tip, "-m", "x", f"{scene.head}^{{tree}}")
    with pytest.raises(NotWritten, match="more than 100"):
        await write(scene.data, REPO, work / ".git", base=scene.head, head=tip)


async def test_a_tree_with_errors_is_reported(scene: Scene) -> None:
    with pytest.raises(GitHubError, match="not a valid blob"):
        await scene.data.create_tree(REPO, None, [TreeEntry(path="a", sha="1" * 40)])


async def test_stored_changes_are_checked_and_written_without_a_machine_after_a_failed_fetch(
    scene: Scene, tmp_path: Path
) -> None:
    work = bare(scene, tmp_path / "work")
    (work / "src/wheel.py").write_text("TEETH = 13\n")
    git(work, "commit", "-qam", "Turn")
    head = git(work, "rev-parse", "HEAD")
    git(work, "update-ref", "refs/gibil/outgoing", head)
    number = await scene.github.open_pull_request(REPO, "topic", {"a": "1"}, "ada")
    found = await scene.client.repository(REPO)
    assert found is not None
    new = new_run("r1")
    pull = await scene.client.pull_request(scene.installation, REPO, number)
    source = replace(
        new.source, installation_id=scene.installation, repository=found[1], pull_request=pull, sha=scene.head, actor="ada"
    )
    runs = MemoryRuns()
    runs.queue(replace(new, source=source, plan=replace(new.plan, commit=CommitPlan(message="Tidy"))))
    claim = await runs.claim("a", lease_s=60, max_machines=1)
    assert claim is not None
    stored = tmp_path / "logs" / claim.run.id
    stored.mkdir(parents=True)
    git(work, "bundle", "create", "-q", str(stored / "changes.bundle"), "refs/gibil/outgoing", f"^{scene.head}")
    (stored / "changes.json").write_text(f'{{"base":"{scene.head}","head":"{head}"}}')
    tools = CommitTools(
        github=scene.client, git_data=scene.client.git_data, policy=CommitPolicy(), logs=tmp_path / "logs", public_url=""
    )
    scene.github.fault("GET", "/info/refs", "error_before")
    async with tools.steps(claim.run, Redactor([])) as steps:
        changes = await steps.collect(None, claim.run, scene.head)
        assert changes is not None
        assert (changes.base, changes.commits, changes.files) == (scene.head, 1, 1)
        created = await steps.create(claim.run, changes, Target(repository=REPO, branch="topic", head=pull.head_sha))
    written = await scene.data.commit(REPO, created)
    assert written is not None
    assert (written.parents, written.verified) == ((scene.head,), True)
