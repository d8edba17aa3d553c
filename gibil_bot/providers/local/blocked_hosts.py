"""What a machine was kept from reaching, for the reader of its output: a program often shows nothing of a proxy's answer."""

from __future__ import annotations

import time
from collections import OrderedDict

from gibil_bot.model import Refusal, Refusals

MOST = 50
"""Endpoints that are remembered of one machine; the oldest are forgotten first."""


class RefusalLog:
    """The endpoints that one machine's egress proxy refused, each once, the newest last."""

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, int], tuple[float, Refusal]] = OrderedDict()
        self._forgotten_until = float("-inf")

    def add(self, refusal: Refusal) -> None:
        endpoint = refusal.host, refusal.port
        self._seen[endpoint] = time.monotonic(), refusal
        self._seen.move_to_end(endpoint)
        if len(self._seen) > MOST:
            _endpoint, (self._forgotten_until, _refusal) = self._seen.popitem(last=False)

    def since(self, moment: float) -> Refusals:
        """What was refused since that moment of time.monotonic(), which all processes of a host share."""
        found = tuple(refusal for at, refusal in self._seen.values() if at >= moment)
        return Refusals(refused=found, more=self._forgotten_until >= moment)
