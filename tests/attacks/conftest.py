"""Fixtures that several attack tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.contracts.shells import shell
from tests.doubles.machines import LocalLodging, guest_lodging

__all__ = ["lodging", "shell"]


@pytest.fixture
async def lodging(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    """Local machines in a new data directory; other tests may share the daemon."""
    async with guest_lodging(tmp_path_factory) as lodging:
        yield lodging
