"""Fixtures that faults share with the contracts."""

from tests.doubles.hetzner_kit import double

__all__ = ["double"]
