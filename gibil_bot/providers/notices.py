"""What a provider reports while a caller waits for it longer than usual."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from gibil_bot.ports import Provider

Tell = Callable[[str], None]


@runtime_checkable
class Noticing(Protocol):
    """A provider that reports to all `listeners` what it is doing when that is rare and takes long."""

    listeners: dict[Tell, set[str]]
    """Listener → the messages that it has received"""


@contextlib.contextmanager
def notices(provider: Provider, tell: Tell) -> Iterator[None]:
    """Call `tell` with what the provider reports during the block, if it is one that reports."""
    if not isinstance(provider, Noticing):
        yield
        return
    provider.listeners[tell] = set()
    try:
        yield
    finally:
        del provider.listeners[tell]
