"""Wakes waiters after a write. Each waiter has its own subscription, so none misses a write that another one saw."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable

TOPICS = ("deliveries", "runs", "notifications", "ledger")


class Subscription:
    """ports.ChangeSignal. Use it from the event loop only."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        self._event.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a write since the last wait returned (True), or for the timeout (False)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            if not self._event.is_set():
                return False
        self._event.clear()
        return True


class Signals:
    """All subscriptions. A subscription without any other reference is dropped."""

    def __init__(self) -> None:
        self._by_topic: dict[str, weakref.WeakSet[Subscription]] = {topic: weakref.WeakSet() for topic in TOPICS}

    def subscribe(self, topic: str) -> Subscription:
        """Create a subscription. Raises KeyError for an unknown topic."""
        subscription = Subscription()
        self._by_topic[topic].add(subscription)
        return subscription

    def notify(self, topics: Iterable[str]) -> None:
        for topic in topics:
            for subscription in self._by_topic[topic]:
                subscription.notify()
