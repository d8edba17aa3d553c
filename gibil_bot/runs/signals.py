"""Wakes waiters after a write. Each has its own subscription, so that none misses what another one saw."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable

TOPICS = ("deliveries", "runs", "tellings")


class Subscription:
    """ports.ChangeSignal. Used from the event loop only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Until something was written since the last wait returned (True), or the time is up (False)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            if not self._event.is_set():
                return False
        self._event.clear()
        return True


class Signals:
    """All subscriptions. One without any reference left is forgotten."""

    def __init__(self) -> None:
        self._of: dict[str, weakref.WeakSet[Subscription]] = {topic: weakref.WeakSet() for topic in TOPICS}

    def subscribe(self, topic: str) -> Subscription:
        """Raises KeyError for a topic that is none."""
        subscription = Subscription()
        self._of[topic].add(subscription)
        return subscription

    def notify(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for subscription in self._of[topic]:
                subscription.notify()
