"""The double serves its repositories to the real git, and pull requests follow pushes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.double_kit import REPOSITORY, receiving, run_git, signed_in


def with_token(url: str, token: str) -> str:
    return url.replace("http://", f"http://x-access-token:{token}@")


@pytest.mark.parametrize("protocol", [0, 2])
async def test_a_pull_requests_head_can_be_fetched_from_the_base_repository(tmp_path: Path, protocol: int) -> None:
    async with signed_in(tmp_path) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"new.txt": "hello\n"}, "bob", fork=True)
        sha = app.github.head_sha(REPOSITORY, number)
        work = tmp_path / "work"
        work.mkdir()
        await run_git("init", "-q", ".", cwd=work)
        url = f"{app.github.url}/{REPOSITORY}.git"
        version = ("-c", f"protocol.version={protocol}")
        await run_git(*version, "fetch", "-q", "--depth=1", url, f"refs/pull/{number}/head", cwd=work)
        assert (await run_git("rev-parse", "FETCH_HEAD", cwd=work))[1].strip() == sha
        assert (await run_git("show", "FETCH_HEAD:new.txt", cwd=work))[1] == "hello\n"


@pytest.mark.parametrize("protocol", [0, 2])
async def test_a_commit_can_be_fetched_by_its_hash(tmp_path: Path, protocol: int) -> None:
    async with signed_in(tmp_path) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"new.txt": "1\n"}, "ada")
        first = app.github.head_sha(REPOSITORY, number)
        await app.github.push(REPOSITORY, number, {"new.txt": "2\n"})
        work = tmp_path / "work"
        await run_git("init", "-q", str(work), cwd=tmp_path)
        url = f"{app.github.url}/{REPOSITORY}.git"
        await run_git("-c", f"protocol.version={protocol}", "fetch", "-q", "--depth=1", url, first, cwd=work)
        assert (await run_git("rev-parse", "FETCH_HEAD", cwd=work))[1].strip() == first


async def test_a_forced_push_removes_the_commit_from_the_branch(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"new.txt": "1\n"}, "ada")
        first = app.github.head_sha(REPOSITORY, number)
        second = await app.github.push(REPOSITORY, number, {"new.txt": "2\n"}, force=True)
        await run_git("clone", "-q", "--branch", "topic", f"{app.github.url}/{REPOSITORY}.git", "clone", cwd=tmp_path)
        _, history = await run_git("rev-list", "HEAD", cwd=tmp_path / "clone")
        assert history.split()[0] == second
        assert first not in history
        assert len(history.split()) == 2


async def test_executable_bits_and_deletions_are_preserved(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.push(REPOSITORY, "main", {"src/wheel.py": None})
        await run_git("clone", "-q", f"{app.github.url}/{REPOSITORY}.git", "clone", cwd=tmp_path)
        assert (tmp_path / "clone" / "run.sh").stat().st_mode & 0o111
        assert not (tmp_path / "clone" / "src").exists()


async def test_a_private_repository_needs_a_token_that_covers_it(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        secret = await app.github.add_repository("ada/secret", {"a": "1"}, private=True)
        other = await app.github.add_repository("ada/other", {"a": "1"}, private=True)
        url = f"{app.github.url}/ada/secret.git"
        right = await app.token(repository_ids=[secret.id], permissions={"contents": "read"})
        wrong = await app.token(repository_ids=[other.id])
        blind = await app.token(repository_ids=[secret.id], permissions={"checks": "write"})
        assert "could not read Username" in (await run_git("ls-remote", url, cwd=tmp_path, ok=False))[1]
        assert "HEAD" in (await run_git("ls-remote", with_token(url, right), cwd=tmp_path))[1]
        assert "not found" in (await run_git("ls-remote", with_token(url, wrong), cwd=tmp_path, ok=False))[1]
        assert "403" in (await run_git("ls-remote", with_token(url, blind), cwd=tmp_path, ok=False))[1]
        await app.ask("DELETE", "/installation/token", token=right)
        assert (await run_git("ls-remote", with_token(url, right), cwd=tmp_path, ok=False))[0] != 0


async def test_a_push_over_http_updates_the_pull_request(tmp_path: Path) -> None:
    permissions = {"metadata": "read", "contents": "write", "checks": "write", "pull_requests": "write"}
    async with receiving() as receiver, signed_in(tmp_path, permissions=permissions, webhook_url=receiver.url) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"new.txt": "1\n"}, "ada")
        url = f"{app.github.url}/{REPOSITORY}.git"
        await run_git("clone", "-q", "--branch", "topic", url, "clone", cwd=tmp_path)
        clone = tmp_path / "clone"
        identity = ("-c", "user.name=bot", "-c", "user.email=bot@example.com")
        await run_git(*identity, "commit", "-q", "--allow-empty", "-m", "Fix", cwd=clone)
        sha = (await run_git("rev-parse", "HEAD", cwd=clone))[1].strip()
        reader = await app.token(permissions={"contents": "read"})
        refused = await run_git("push", "-q", with_token(url, reader), "HEAD:topic", cwd=clone, ok=False)
        assert "403" in refused[1]
        writer = await app.token()
        await run_git("push", "-q", with_token(url, writer), "HEAD:topic", cwd=clone)
        assert app.github.head_sha(REPOSITORY, number) == sha
        newest = app.github.state.repository(REPOSITORY).activity[-1]
        assert (newest.ref, newest.after, newest.actor.login) == ("refs/heads/topic", sha, "gibil[bot]")
        await app.github.webhooks_sent()
        assert "pull_request" in receiver.events()
        pulls = await run_git("push", with_token(url, writer), f"HEAD:refs/pull/{number}/head", cwd=clone, ok=False)
        assert "hidden ref" in pulls[1]


async def test_faults_apply_to_git_requests(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.fault("POST", r"/ada/engine\.git/git-upload-pack$", "error_before")
        url = f"{app.github.url}/{REPOSITORY}.git"
        broken = await run_git("-c", "protocol.version=0", "clone", "-q", url, "first", cwd=tmp_path, ok=False)
        assert broken[0] != 0
        assert "502" in broken[1]
        await run_git("clone", "-q", url, "second", cwd=tmp_path)
        assert (tmp_path / "second" / "README.md").read_text() == "An engine\n"
