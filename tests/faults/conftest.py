"""Fixtures that several fault tests share."""

from tests.doubles.databases import database_url
from tests.doubles.hetzner_kit import double

__all__ = ["database_url", "double"]
