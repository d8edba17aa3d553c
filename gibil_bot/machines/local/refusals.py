"""What a machine was kept from reaching, for whoever reads its output: a program often shows nothing of a proxy's answer."""

from __future__ import annotations

from collections import OrderedDict

from gibil_bot.model import Refusal, Refusals

MOST = 50
"""Endpoints that are remembered of one machine; the oldest are forgotten first."""


class RefusalLog:
    """The endpoints that one machine's egress proxy refused, each once, the newest last."""

    def __init__(self) -> None:
        self._count = 0
        self._seen: OrderedDict[tuple[str, int], tuple[int, Refusal]] = OrderedDict()
        self._forgotten = 0
        """The number of the newest refusal that is not remembered any more."""

    def add(self, refusal: Refusal) -> None:
        self._count += 1
        endpoint = refusal.host, refusal.port
        self._seen[endpoint] = self._count, refusal
        self._seen.move_to_end(endpoint)
        if len(self._seen) > MOST:
            _endpoint, (self._forgotten, _refusal) = self._seen.popitem(last=False)

    def since(self, number: int) -> Refusals:
        """What was refused after the `until` of an earlier answer; 0: all."""
        found = tuple(refusal for at, refusal in self._seen.values() if at > number)
        return Refusals(refused=found, more=self._forgotten > number, until=self._count)
