"""Fixtures that several fault tests share."""

from tests.doubles.hetzner_kit import double

__all__ = ["double"]
