"""The model proxy: what it adds to the first byte of an answer, and its memory while it passes 20 streams.

Three processes: a double of the models' vendor, the proxy with its ledger in a database, and this one, which sends the 40 KB
that an agent's program begins with. The peer is the same request without the proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.processes import client_cpus, cpu_s, resident_mb, server_cpus, started, wait_until, wait_until_quiet

ROUNDS, WARM_UPS = 200, 20
STREAMS = 20
REQUEST_BYTES = 40_000
READY_WITHIN_S = 30.0
ROOT = Path(__file__).parents[2]


def proxy(context: Context) -> list[Comparison]:
    """The first byte of a streamed answer, and resident memory."""
    body = json.dumps(
        {
            "model": "claude-sonnet-4-5",
            "max_tokens": 32_000,
            "stream": True,
            "messages": [{"role": "user", "content": "x" * REQUEST_BYTES}],
        }
    ).encode()
    through: list[float] = []
    direct: list[float] = []
    before_s = 0.0
    with _double(context, "double") as vendor, _proxy(context, "proxy", vendor) as ours:
        for number in range(ROUNDS + WARM_UPS):
            if number == WARM_UPS:
                wait_until_quiet(ours["pid"])
                before_s = cpu_s(ours["pid"])
            for server, series in ((ours, through), (vendor, direct)):
                spent_ms = _first_byte_ms(server, body)
                if number >= WARM_UPS:
                    series.append(spent_ms)
        wait_until_quiet(ours["pid"])
        cpu_ms = (cpu_s(ours["pid"]) - before_s) / ROUNDS * 1000
    with _double(context, "silent", "--silent") as vendor, _proxy(context, "held", vendor) as ours:
        # The first calls load modules and open connections.
        with contextlib.ExitStack() as stack:
            for _ in range(2):
                stack.enter_context(_stream(ours, body, 0))
        before = resident_mb(ours["pid"])
        with contextlib.ExitStack() as stack:
            for number in range(STREAMS):
                stack.enter_context(_stream(ours, body, number // 4))
            during = resident_mb(ours["pid"])
    added = sorted(with_it - without for with_it, without in zip(through, direct, strict=True))[ROUNDS // 2]
    return [
        Comparison(
            what="the first byte of a model's answer, through the proxy",
            peer="the same without it",
            unit="ms",
            ours=through,
            peers=direct,
            aim=at_most(4),
            facts={"added_ms": added, "cpu_ms_of_a_call": cpu_ms, "request_bytes": len(body)},
        ),
        Comparison(
            what=f"resident memory of the proxy's process with {STREAMS} streams",
            peer="without streams",
            unit="MB",
            ours=[during],
            peers=[before],
            aim=at_most(1.15),
        ),
    ]


@contextlib.contextmanager
def _double(context: Context, name: str, *arguments: str) -> Iterator[dict[str, Any]]:
    with _process(context, name, ["gibil_bot.demo.model_double", *arguments], client_cpus()) as found:
        yield found | {"tokens": [found["key"]]}


@contextlib.contextmanager
def _proxy(context: Context, name: str, vendor: dict[str, Any]) -> Iterator[dict[str, Any]]:
    arguments = ["tests.benchmarks.proxy_process", str(vendor["url"]), str(STREAMS // 4)]
    environment = {"VENDOR_KEY": str(vendor["key"])}
    with _process(context, name, arguments, server_cpus(), environment) as found:
        yield found


@contextlib.contextmanager
def _process(
    context: Context, name: str, arguments: list[str], cpus: set[int], environment: dict[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Start a module that prints one line of JSON when it listens."""
    folder = context.folder(name)
    log = folder / "log"
    known = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT), **(environment or {})}
    with started([sys.executable, "-m", *arguments], known, folder, log, cpus) as process:
        wait_until(f"{name} listens", lambda: b"\n" in log.read_bytes(), within_s=READY_WITHIN_S)
        yield {**json.loads(log.read_bytes().splitlines()[0]), "pid": process.pid}


@contextlib.contextmanager
def _stream(server: dict[str, Any], body: bytes, task: int) -> Iterator[None]:
    """An answer whose first byte has arrived."""
    url = urlsplit(str(server["url"]))
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
    headers = {"content-type": "application/json", "x-api-key": server["tokens"][task], "anthropic-version": "2023-06-01"}
    try:
        connection.request("POST", "/v1/messages", body, headers)
        answer = connection.getresponse()
        if answer.status != 200 or not answer.read(1):
            raise RuntimeError(f"{url.netloc} answered {answer.status}")
        yield
    finally:
        connection.close()


def _first_byte_ms(server: dict[str, Any], body: bytes) -> float:
    begun = time.perf_counter()
    with _stream(server, body, 0):
        return (time.perf_counter() - begun) * 1000
