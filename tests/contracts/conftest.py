"""Fixtures that several contract tests share."""

import pytest

from tests.contracts.shells import far, shell
from tests.contracts.store_nouns import Clock
from tests.doubles.databases import database_url
from tests.doubles.hetzner_kit import double, provider

__all__ = ["clock", "database_url", "double", "far", "provider", "shell"]


@pytest.fixture
def clock() -> Clock:
    return Clock()
