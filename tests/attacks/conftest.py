"""Fixtures that attacks share with the contracts."""

from tests.contracts.shells import shell

__all__ = ["shell"]
