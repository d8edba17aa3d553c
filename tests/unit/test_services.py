"""Services as values: which are supported on which machines, and the message about those that aren't."""

from __future__ import annotations

import subprocess

import pytest

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.planning.services import (
    ServiceCapabilities,
    check_services,
    distribution_versions,
    full_name,
    image_version,
    services_script,
)
from gibil_bot.planning.workflow import RepositoryFile
from tests.doubles.patience import patient

BOOKWORM = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n'
LOCAL = ServiceCapabilities(containers=False, versions=distribution_versions(BOOKWORM, ""))
POSTGRES = "env: {POSTGRES_PASSWORD: x}"


def file(services: str) -> RepositoryFile:
    return parse_repository_file(".gibil.yml", f"services:\n  db: {{{services}}}\n".encode())


def refusal(services: str, grounds: ServiceCapabilities = LOCAL) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        check_services(file(services), grounds)
    assert str(caught.value).startswith(".gibil.yml:2:3: the service 'db': ")
    return caught.value.problem.partition("'db': ")[2]


def unreadable(services: str) -> str:
    with pytest.raises(InvalidWorkflow) as caught:
        file(services)
    return caught.value.problem


@pytest.mark.parametrize(
    "services",
    [
        f'image: "postgres:15", {POSTGRES}',
        f'image: "docker.io/library/postgres:15.2-alpine", {POSTGRES}, ports: ["15432:5432"]',
        f"image: postgres, {POSTGRES}",
        f'image: "postgres:latest", {POSTGRES}, ports: [5432]',
        'image: "redis:7"',
        'image: "mariadb:10.11", env: {MARIADB_ROOT_PASSWORD: x, MARIADB_DATABASE: y}',
    ],
)
def test_services_of_the_distribution_are_accepted(services: str) -> None:
    check_services(file(services), LOCAL)


def test_services_unsupported_on_local_machines_are_rejected_with_a_remedy() -> None:
    assert refusal(f'image: "postgres:16", {POSTGRES}') == (
        "this distribution has postgres 15, not 16; write image: postgres:15, or use the cloud"
    )
    assert "local machines run no containers" in refusal('image: "ghcr.io/ada/postgres:15", ports: [5432]')
    assert "run gibil as root" in refusal(
        f"image: postgres, {POSTGRES}", ServiceCapabilities(containers=False, many_users=False)
    )
    assert refusal("image: redis, env: {REDIS_PASSWORD: x}").startswith("REDIS_PASSWORD has no effect without containers")
    assert "write ports: [5432]" in refusal(f"image: postgres, {POSTGRES}, ports: [5433]")
    assert refusal('image: "mysql:8", env: {MYSQL_ROOT_PASSWORD: x}') == (
        "this distribution has MariaDB instead; write image: mariadb:10.11"
    )


def test_machines_with_containers_accept_every_image() -> None:
    check_services(file('image: "ghcr.io/ada/search:8", ports: [9200], env: {A: b}'), ServiceCapabilities(containers=True))
    check_services(file(f'image: "postgres:16", {POSTGRES}'), ServiceCapabilities(containers=True))


def test_services_that_cannot_start_anywhere_are_rejected_when_the_file_is_read() -> None:
    assert "doesn't start without a password" in unreadable("image: postgres")
    assert "ports are required" in unreadable("image: elasticsearch")
    assert "the highest port is 65535" in unreadable("image: redis, ports: [65536]")
    assert "needs the key 'image'" in unreadable("ports: [1]")
    assert unreadable("image: redis}\n  other: {image: redis") == "'db' already has the port 6379; write PORT:6379"


def test_with_another_package_source_the_version_is_not_checked_in_advance() -> None:
    assert "postgres" not in distribution_versions(BOOKWORM, "deb https://apt.postgresql.org/pub/repos/apt bookworm-pgdg main")
    assert distribution_versions("ID=alpine\nVERSION_ID=3.20\n", "") == {}


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("postgres", ""),
        ("postgres:latest", ""),
        ("postgres:16-alpine", "16"),
        ("host:5000/redis", ""),
        ("redis:7.2.4", "7.2.4"),
    ],
)
def test_the_version_of_an_image_is_the_start_of_its_tag(image: str, version: str) -> None:
    assert image_version(image) == version


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("redis", "docker.io/library/redis"),
        ("postgres:16-alpine", "docker.io/library/postgres:16-alpine"),
        ("ada/search:8", "docker.io/ada/search:8"),
        ("docker.io/library/redis:7", "docker.io/library/redis:7"),
        ("ghcr.io/ada/search@sha256:00", "ghcr.io/ada/search@sha256:00"),
        ("host:5000/redis", "host:5000/redis"),
        ("localhost/redis", "localhost/redis"),
    ],
)
def test_an_image_without_a_registry_gets_the_default_one(image: str, full: str) -> None:
    assert full_name(image) == full


def test_values_are_never_executed_by_the_script() -> None:
    evil = "it's $(touch /nowhere/x) `id` \\"
    text = f'services:\n  db: {{image: postgres, env: {{POSTGRES_PASSWORD: "{evil.replace(chr(92), chr(92) * 2)}"}}}}\n'
    script = services_script(parse_repository_file(".gibil.yml", text.encode()).services)
    assert script is not None
    # The service's own settings, read by a shell, without the rest of the script.
    settings = script[script.rindex("\n(\n") : script.rindex("    start ")] + ')\nprintf %s "${password-gone}"'
    shown = settings.replace(")\nprintf", '    printf %s "$password"\n)\nprintf', 1)
    done = subprocess.run(["sh", "-euc", shown], capture_output=True, text=True, timeout=patient(10), check=True)
    assert done.stdout == evil + "gone"
