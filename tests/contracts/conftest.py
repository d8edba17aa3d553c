"""Fixtures that several contracts share."""

from tests.contracts.shells import far, shell
from tests.doubles.hetzner_kit import double, provider

__all__ = ["double", "far", "provider", "shell"]
