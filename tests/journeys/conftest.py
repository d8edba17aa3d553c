"""Fixtures that several journeys share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cloud import Cloud, cloud
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.hetzner_guests import Image
from tests.doubles.machines import shared_folder


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
