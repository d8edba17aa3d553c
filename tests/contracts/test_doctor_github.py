"""What `gibil doctor` reports about GitHub: the App's registration, or why GitHub didn't answer."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gibil_bot.cli.doctor import Finding, _github
from gibil_bot.config import Secret, Settings
from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.github.registration import shipped_manifest

REPOSITORY = "ada/engine"
MANIFEST = shipped_manifest()


def settings(folder: Path, github: GitHubDouble, **changes: object) -> Settings:
    words: dict[str, object] = {
        "data_dir": folder,
        "database_url": "",
        "github_url": github.url,
        "github_app_id": str(github.app_id),
        "github_private_key": Secret(github.private_key_pem),
        **changes,
    }
    return Settings(**words)  # type: ignore[arg-type]


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


async def test_an_app_registered_according_to_app_yml_passes(tmp_path: Path) -> None:
    double = GitHubDouble.start(tmp_path, permissions=MANIFEST.permissions, events=MANIFEST.events)
    async with double as github:
        github.webhook_url = "https://bot.acme.dev/webhook"
        found = await _github(settings(tmp_path, github, public_url="https://bot.acme.dev"))
        assert [finding for finding in found if not finding.ok or finding.fix] == []
        assert {finding.name for finding in found} == {"GitHub", "App permissions", "App events", "App webhook"}


async def test_missing_permissions_and_events_are_reported_with_the_settings_page(tmp_path: Path) -> None:
    permissions = {**MANIFEST.permissions, "checks": "read"}
    async with GitHubDouble.start(tmp_path, permissions=permissions, events=MANIFEST.events[1:]) as github:
        github.webhook_url = "https://bot.acme.dev/"
        found = by_name(await _github(settings(tmp_path, github)))
        assert "checks: write (has read)" in found["App permissions"].detail
        assert f"{github.url}/settings/apps/" in found["App permissions"].fix
        assert MANIFEST.events[0] in found["App events"].detail
        assert "whose path is not /webhook" in found["App webhook"].detail
        assert not any(found[name].ok for name in ("App permissions", "App events", "App webhook"))


async def test_failing_deliveries_are_reported_with_a_remedy(tmp_path: Path) -> None:
    async with GitHubDouble.start(tmp_path) as github:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        github.webhook_url = f"http://127.0.0.1:{port}/webhook"
        await github.add_repository(REPOSITORY, {"README.md": "an engine\n"})
        number = await github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        github.comment(REPOSITORY, number, "ada", "/gibil test")
        await github.webhooks_sent()
        found = by_name(await _github(settings(tmp_path, github)))["App deliveries"]
        assert not found.ok
        assert "issue_comment" in found.detail
        assert "can't reach" in found.fix or "proxy can't reach" in found.fix


async def test_no_answer_is_reported_as_a_network_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):  # a proxy would answer for the unknown host
        monkeypatch.delenv(variable, raising=False)
    async with GitHubDouble.start(tmp_path) as github:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", "http://no-such-host.invalid"):
            (found,) = await _github(settings(tmp_path, github, github_url=url))
            assert not found.ok
            assert "this host's network" in found.fix
            assert "GIBIL_GITHUB_URL" in found.fix
            assert "PRIVATE_KEY" not in found.fix
            assert "tried again" not in found.detail


async def test_a_wrong_key_is_reported_with_the_app_id(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    async with GitHubDouble.start(tmp_path) as github:
        (found,) = await _github(settings(tmp_path, github, github_private_key=Secret(key.decode())))
        assert not found.ok
        assert "GIBIL_GITHUB_APP_ID and GIBIL_GITHUB_PRIVATE_KEY" in found.fix
        assert "network" not in found.fix
