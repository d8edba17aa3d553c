"""The bot's metrics, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class BotMetrics(Collector):
    """Numbers that the bot counts anyway, as metric families.

    They are read at each request: totals of prometheus_client would be a second copy, with a lock and a timestamp each. The
    registry is separate from the default one, so it lacks the collectors for the process and for Python's garbage collector.
    """

    def __init__(self, webhook_answers: Mapping[int, int], rejected: Mapping[int, int], max_machines: int) -> None:
        self._webhook_answers = webhook_answers
        self._rejected = rejected
        self._max_machines = max_machines
        self._started_s = time.time()
        self._counts: Mapping[str, int] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self, counts: Mapping[str, int]) -> bytes:
        """Render all metrics. `counts`: the store's numbers now, by name."""
        self._counts = counts
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        for name, value in sorted(self._counts.items()):
            yield GaugeMetricFamily(f"gibil_{name}", f"{name.replace('_', ' ').capitalize()}.", value)
        yield _by_status("gibil_webhook_answers", "Answers to requests to /webhook.", self._webhook_answers)
        yield _by_status("gibil_http_rejected", "Requests that the server rejected before any route.", self._rejected)
        yield GaugeMetricFamily("gibil_max_machines", "Machines that may exist at one time.", self._max_machines)
        yield GaugeMetricFamily("gibil_start_time_seconds", "When the bot started, in seconds since 1970.", self._started_s)


def _by_status(name: str, description: str, counts: Mapping[int, int]) -> Metric:
    family = CounterMetricFamily(name, description, labels=["status"])
    for status, count in sorted(counts.items()):
        family.add_metric([str(status)], count)
    return family
