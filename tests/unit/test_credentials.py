"""Which token is used, where it is found, and that it is sent to its own host only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gibil_bot.commits.credentials import find_credential, for_git
from gibil_bot.commits.pull_requests import github_repository
from gibil_bot.errors import GitHubError, UsageError
from tests.doubles.programs import add_programs, write_program

API, SERVER = "https://api.github.com", "https://ghe.example.com/api/v3"
URL = "https://github.com/ada/engine.git"


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Remove the token, gh and credential helpers of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith(("GH_", "GITHUB_", "GIT_"))]:
        monkeypatch.delenv(name)
    add_programs(tmp_path / "bin", "git", "sh", "cat")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


def a_gh(tmp_path: Path, token: str) -> None:
    write_program(tmp_path / "bin" / "gh", f'[ "$*" = "auth token --hostname github.com" ] && echo {token}')


def a_helper(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, password: str) -> Path:
    """Configure a git credential helper that has one password and records what it is asked to store."""
    stored = tmp_path / "stored"
    helper = tmp_path / "helper"
    known = f"echo username=ada; echo password={password}" if password else ":"
    helper.write_text(f'#!/bin/sh\nif [ "$1" = get ]; then {known}; else cat >>{stored}; fi\n')
    helper.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[credential]\n\thelper = {helper}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    return stored


async def source(github_url: str = API) -> tuple[str, str]:
    found = await find_credential(github_url, "ada/engine")
    assert found.token.reveal() not in repr(found)
    return found.source, found.token.reveal()


async def test_the_environment_comes_first_then_gh_then_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(GitHubError, match=r"set GH_TOKEN, or log in with `gh auth login --hostname github\.com`"):
        await source()
    a_helper(monkeypatch, tmp_path, "gits")
    assert await source() == ("git's credential helper", "gits")
    a_gh(tmp_path, "ghs")
    assert await source() == ("gh", "ghs")
    monkeypatch.setenv("GITHUB_TOKEN", "second")
    assert await source() == ("GITHUB_TOKEN", "second")
    monkeypatch.setenv("GH_TOKEN", "first")
    assert await source() == ("GH_TOKEN", "first")


async def test_a_token_for_github_com_is_never_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GH_TOKEN", "first")
    with pytest.raises(GitHubError, match=r"set GH_ENTERPRISE_TOKEN.*GH_TOKEN is for github\.com"):
        await source(SERVER)
    monkeypatch.setenv("GITHUB_ENTERPRISE_TOKEN", "theirs")
    assert await source(SERVER) == ("GITHUB_ENTERPRISE_TOKEN", "theirs")
    assert await source("https://api.octocorp.ghe.com") == ("GH_TOKEN", "first")


def fill(environment: dict[str, str], url: str) -> str:
    """Return the credentials that git would send to the address with that environment, and report them to git as accepted."""
    env = {**os.environ, **environment, "GIT_TERMINAL_PROMPT": "0"}
    asked = subprocess.run(["git", "credential", "fill"], input=f"url={url}\n\n", capture_output=True, text=True, env=env)
    subprocess.run(["git", "credential", "approve"], input=asked.stdout, text=True, env=env, check=True)
    return dict(line.partition("=")[::2] for line in asked.stdout.splitlines()).get("password", "")


async def test_git_gets_the_token_for_one_host_and_does_not_store_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.abbrev")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "11")
    assert await for_git(URL, API) == {}
    stored = a_helper(monkeypatch, tmp_path, "")
    monkeypatch.setenv("GH_TOKEN", "lent")
    lent = dict(await for_git(URL, API))
    assert "lent" not in [value for name, value in lent.items() if name.startswith("GIT_")]
    assert fill(lent, URL) == "lent"
    assert not stored.exists()
    for elsewhere in ("https://gist.github.com/x", "http://github.com/ada/engine", "https://github.com.evil.example/x"):
        assert fill(lent, elsewhere) == ""
        assert await for_git(elsewhere, API) == {}
    for other in ("git@github.com:ada/engine.git", "/srv/engine.git"):
        assert await for_git(other, API) == {}


async def test_gits_own_credentials_are_preferred_to_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stored = a_helper(monkeypatch, tmp_path, "mine")
    monkeypatch.setenv("GH_TOKEN", "lent")
    assert await for_git(URL, API) == {}
    assert not stored.exists()


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("https://github.com/ada/engine.git", API),
        ("https://GitHub.com/ada/engine/", API),
        ("git@github.com:ada/engine.git", API),
        ("github.com:ada/engine", API),
        ("ssh://git@github.com/ada/engine.git", API),
        ("ssh://git@ssh.github.com:443/ada/engine.git", API),
        ("https://ghe.example.com/ada/engine", SERVER),
        ("ssh://git@ghe.example.com:2222/ada/engine.git", SERVER),
        ("git@ssh.example.com:ada/engine", "https://ssh.example.com/api/v3"),
        ("http://127.0.0.1:4711/ada/engine.git", "http://127.0.0.1:4711"),
    ],
)
def test_every_address_of_a_repository_is_recognized(url: str, api: str) -> None:
    assert github_repository(url, api) == "ada/engine"


@pytest.mark.parametrize(
    "url",
    [
        "/srv/git/engine.git", "work", "https://gitlab.com/ada/engine.git", "https://github.com.evil.example/ada/engine",
        "https://evil.example/github.com/ada/engine", "git@gitlab.com:ada/engine.git", "https://github.com/ada",
        "https://github.com/ada/engine/tree/main", "https://github.com/ada/..", "https://github.com:8443/ada/engine",
        "https://gist.github.com/ada/engine",
    ],
)  # fmt: skip
def test_a_repository_outside_the_configured_github_is_rejected(url: str) -> None:
    with pytest.raises(UsageError, match="gibil push"):
        github_repository(url, API)
