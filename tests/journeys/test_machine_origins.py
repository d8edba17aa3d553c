"""Sources of a machine's code: public and private repositories, and checkouts; credentials stay on this host."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gibil_bot.commits.credentials import web_address
from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.machines.source import CodeSource, origin_url, read_source
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.githttp import GitServer
from tests.doubles.machines import shared_folder

TOKEN = "made-up-for-this-test"
GITHUB = "https://api.github.com"


@pytest.fixture
def line(tmp_path: Path) -> CommandLine:
    line = CommandLine(tmp_path)
    line.here.mkdir()
    return line


@pytest.fixture
def server(line: CommandLine) -> Iterator[GitServer]:
    """Serve ada/engine.git: `main` with a .gibil.yml, and `topic` one commit ahead."""
    work = line.repository("work", {"file": "1", ".gibil.yml": "tasks: [{run: test -f file}]\n"})
    line.git(work, "checkout", "-q", "-b", "topic")
    line.commit(work, {"file": "2"})
    (line.folder / "served" / "ada").mkdir(parents=True)
    line.git(line.folder, "clone", "-q", "--bare", str(work), "served/ada/engine.git")
    bare = line.folder / "served/ada/engine.git"
    line.git(bare, "symbolic-ref", "HEAD", "refs/heads/main")
    line.git(bare, "config", "uploadpack.allowFilter", "true")
    with GitServer(line.folder / "served") as server:
        yield server


async def source(repo: str, branch: str | None = None) -> CodeSource:
    async with read_source(repo, branch, GITHUB) as found:
        return found


async def test_only_head_and_file_of_a_public_repository_are_read_and_the_machine_clones_it(
    line: CommandLine, server: GitServer
) -> None:
    url = f"{server.url}/ada/engine.git"
    found = await source(url)
    assert (found.branch, found.clone_url, found.checkout) == ("main", url, None)
    assert found.sha == line.git(line.here / "work", "rev-parse", "main")
    assert found.file is not None
    assert found.file.tasks[0].run == "test -f file"
    topic = await source(url, "topic")
    assert (topic.branch, topic.sha) == ("topic", line.git(line.here / "work", "rev-parse", "topic"))
    with pytest.raises(UsageError, match="no branch absent"):
        await source(url, "absent")


async def test_a_private_repository_is_read_with_the_users_credentials_and_sent_from_here(
    line: CommandLine, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tokens["ada/engine.git"] = TOKEN
    url = f"{server.url}/ada/engine.git"
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    with pytest.raises(UsageError, match="can't read the repository"):
        await source(url)
    helper = line.folder / "gitconfig"
    helper.write_text(f'[credential]\n\thelper = "!f() {{ echo username=x-access-token; echo password={TOKEN}; }}; f"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(helper))
    async with read_source(url, "topic", GITHUB) as found:
        assert (found.clone_url, found.branch, found.remote_url) == (None, "topic", url)
        assert found.checkout is not None
        assert line.git(found.checkout, "rev-parse", found.sha) == found.sha
        assert TOKEN not in (found.checkout / "config").read_text()
    assert not found.checkout.exists(), "the copy exists only during the transfer"


async def test_a_checkout_is_read_in_place_also_a_bare_one_or_a_subfolder(line: CommandLine, server: GitServer) -> None:
    work = line.here / "work"
    (work / "deep" / "er").mkdir(parents=True)
    for place in (str(work), f"file://{work}", str(work / "deep" / "er")):
        found = await source(place, "main")
        assert (found.repo, found.branch, found.clone_url) == (str(work), "main", None)
    assert (await source(str(work))).branch == "topic"
    bare = await source(str(line.folder / "served/ada/engine.git"), "topic")
    assert bare.file is not None
    line.git(work, "remote", "add", "origin", "https://ada:hunter2@example.com/ada/engine.git")
    assert await origin_url(work) == "https://example.com/ada/engine.git"
    (line.here / "empty").mkdir()
    line.git(line.here / "empty", "init", "-q")
    for wrong in ("empty", "absent"):
        with pytest.raises(UsageError):
            await source(str(line.here / wrong))


async def test_a_broken_file_of_a_remote_repository_is_reported_with_its_position(line: CommandLine, server: GitServer) -> None:
    work = line.here / "work"
    line.commit(work, {".gibil.yml": "\n\ntasks: [{runn: x}]\n"})
    line.git(work, "push", "-q", str(line.folder / "served/ada/engine.git"), "HEAD:refs/heads/broken")
    with pytest.raises(InvalidWorkflow, match=r"\.gibil\.yml:3:"):
        await source(f"{server.url}/ada/engine.git", "broken")


@pytest.mark.parametrize("branch", ["", "-x", "a..b", "a b", "a:b", "x.lock", "a@{1}", "/a", "a/", "\n"])
async def test_an_invalid_branch_is_rejected(line: CommandLine, branch: str) -> None:
    with pytest.raises(UsageError, match="valid branch name"):
        await source(str(line.here), branch)


@pytest.mark.parametrize(
    "repo", ["ftp://example.com/x", "https://u:p@example.com/x", "ext::sh -c id", "a/b/c", "", "file://host/x"]
)
async def test_an_invalid_repository_is_rejected(repo: str) -> None:
    with pytest.raises(UsageError):
        await source(repo)


@pytest.mark.parametrize(
    ("api", "web"),
    [
        ("https://api.github.com", "https://github.com"),
        ("https://ghe.example.com/api/v3", "https://ghe.example.com"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
    ],
)
def test_owner_and_repo_refer_to_the_configured_github(api: str, web: str) -> None:
    assert web_address(api) == web


@pytest.mark.usefixtures("local_machines")
def test_the_machine_has_branch_history_and_origin_from_every_source(
    tmp_path_factory: pytest.TempPathFactory, line: CommandLine, server: GitServer
) -> None:
    work = line.here / "work"
    url = f"{server.url}/ada/engine.git"
    line.git(line.here, "clone", "-q", "--depth=1", "-b", "topic", f"file://{work}", "shallow")
    look = "git rev-parse --abbrev-ref HEAD && git rev-list --count HEAD && git remote get-url origin && cat file"
    with command_line(tmp_path_factory.mktemp("origins"), shared_folder(tmp_path_factory), own_daemon=True) as there:
        for name, repo, commits, remote in (
            ("cloned", url, "2", url),
            ("by-name", "ada/engine", "2", url),
            ("sent", str(work), "2", None),
            ("shallow", str(line.here / "shallow"), "1", f"file://{work}"),
        ):
            if remote is None:
                line.git(work, "remote", "add", "origin", "https://example.com/ada/engine.git")
                remote = "https://example.com/ada/engine.git"
            words = ("create", "--name", name, "--repo", repo, "--branch", "topic", "--wait", "tasks", "--json")
            made = there.gibil(*words, GIBIL_GITHUB_URL=server.url)
            assert made.returncode == 0, made.stderr
            assert there.gibil("run", name, f"cd /root/project && {look}").stdout.splitlines() == [
                "topic",
                commits,
                remote,
                "2",
            ]
