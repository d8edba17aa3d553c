"""Fixtures that several journeys share."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.doubles.cloud import Cloud, cloud
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.hetzner_guests import Image
from tests.doubles.machines import shared_folder

REGISTRIES = ("pypi.org", "registry.npmjs.org")


@pytest.fixture
def egress() -> str:
    """Return the list that lets machines reach the registries: empty, or the mirror that replaces them here."""
    addresses = set()
    for host in REGISTRIES:
        try:
            with socket.create_connection((host, 443), timeout=5) as connection:
                addresses.add(connection.getpeername()[0])
        except OSError as error:
            pytest.skip(f"{host} cannot be reached from here: {error}")
    return ",".join(sorted(address for address in addresses if not ip_address(address).is_global))


@pytest.fixture
def line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """The `gibil` command with a new data directory, on local machines."""
    with command_line(tmp_path, shared_folder(tmp_path_factory)) as line:
        yield line


@pytest.fixture
def hetzner(hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A Hetzner Cloud whose servers boot."""
    with cloud(tmp_path / "cloud", shared_folder(tmp_path_factory), hetzner_image) as hetzner:
        yield hetzner
