"""What a provider has to say while a caller waits for it longer than usual."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from gibil_bot.ports import Provider

Tell = Callable[[str], None]


@runtime_checkable
class Noticing(Protocol):
    """A provider that tells all of `listeners` what it is doing when that takes long and is seldom done."""

    listeners: dict[Tell, set[str]]
    """Listener → what it was told already"""


@contextlib.contextmanager
def notices(provider: Provider, tell: Tell) -> Iterator[None]:
    """Hear what the provider is doing for as long as the block lasts; nothing from providers that say nothing."""
    if not isinstance(provider, Noticing):
        yield
        return
    provider.listeners[tell] = set()
    try:
        yield
    finally:
        del provider.listeners[tell]
