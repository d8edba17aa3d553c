"""The web server against Probot's: acknowledged deliveries, latency of the slowest, CPU cost, and start-up time.

gibil stores each delivery durably before it responds, and handles it afterwards; Probot stores nothing, with an empty handler.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from tests.benchmarks.comparison import Aim, Comparison, at_least, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.processes import cpu_s, resident_mb, wait_until_quiet
from tests.benchmarks.servers import Server, gibil_server, post_load, private_key, probot_server, stored_deliveries

CLIENTS = 50
WARM_UP = 1500
DELIVERIES = 5000
ROUNDS = 5
STARTS = 7

RATE, SLOWEST, COST, MEMORY = at_least(1.4), at_most(0.9), at_most(0.75), at_most(0.7)


class Samples:
    """The measurements of one server, one sample per round."""

    def __init__(self) -> None:
        self.per_s: list[float] = []
        self.p99_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.client_busy: list[float] = []

    def measure(self, server: Server, *, quiet: bool = True) -> None:
        before = cpu_s(server.pid)
        answer = post_load(server, CLIENTS, DELIVERIES)
        if quiet:
            # Handling after the response is part of the cost, and must not disturb the other side's turn.
            wait_until_quiet(server.pid)
        self.cpu_ms.append((cpu_s(server.pid) - before) / DELIVERIES * 1000)
        self.per_s.append(answer["per_s"])
        self.p99_ms.append(answer["p99_ms"])
        self.client_busy.append(round(answer["client_busy"], 2))


def webhook(context: Context) -> list[Comparison]:
    """50 clients, each of which waits for its response before it posts again."""
    key = private_key()
    ours, theirs = Samples(), Samples()
    with contextlib.ExitStack() as stack:
        probot = stack.enter_context(probot_server(context.folder("probot"), key, context.peers))
        gibil_folder = context.folder("gibil")
        gibil = stack.enter_context(gibil_server(gibil_folder, key))
        for server in (gibil, probot):
            post_load(server, CLIENTS, WARM_UP)
            wait_until_quiet(server.pid)
        for _ in range(ROUNDS):
            ours.measure(gibil)
            theirs.measure(probot)
        kept = stored_deliveries(gibil_folder / "data")
        resident = [resident_mb(gibil.pid)], [resident_mb(probot.pid)]
    if kept != WARM_UP + ROUNDS * DELIVERIES:
        raise RuntimeError(f"{kept} deliveries are in the database, {WARM_UP + ROUNDS * DELIVERIES} were acknowledged")
    rows = compare(context, "", ours, theirs, RATE, SLOWEST, COST)
    peer = context.peers.probot_version()
    what = "resident memory after all of these"
    return [*rows, Comparison(what=what, peer=peer, unit="MB", ours=resident[0], peers=resident[1], aim=MEMORY)]


def compare(
    context: Context, when: str, ours: Samples, theirs: Samples, rate: Aim, slowest: Aim, cost: Aim | None
) -> list[Comparison]:
    peer = context.peers.probot_version()
    facts: dict[str, object] = {
        "clients": CLIENTS,
        "deliveries_a_round": DELIVERIES,
        "share_of_a_cpu_that_the_client_used": {"gibil": ours.client_busy, "probot": theirs.client_busy},
    }
    rows = [
        Comparison(
            what=f"deliveries acknowledged{when}",
            peer=peer,
            unit="/s",
            ours=ours.per_s,
            peers=theirs.per_s,
            aim=rate,
            facts=facts,
        ),
        Comparison(
            what=f"the slowest hundredth{when}", peer=peer, unit="ms", ours=ours.p99_ms, peers=theirs.p99_ms, aim=slowest
        ),
    ]
    if cost is not None:
        rows.append(
            Comparison(
                what=f"CPU for each delivery, its handling too{when}",
                peer=peer,
                unit="ms",
                ours=ours.cpu_ms,
                peers=theirs.cpu_ms,
                aim=cost,
            )
        )
    return rows


def start(context: Context) -> list[Comparison]:
    """From the start of the process until the health address responds, and the resident memory then."""
    key = private_key()
    ready: dict[str, list[float]] = {"gibil": [], "probot": []}
    resident: dict[str, list[float]] = {"gibil": [], "probot": []}

    def sample(server: Server) -> None:
        ready[server.name].append(server.ready_s)
        resident[server.name].append(resident_mb(server.pid))

    def once(folder: Path) -> None:
        with gibil_server(folder / "gibil", key) as server:
            sample(server)
        with probot_server(folder / "probot", key, context.peers) as server:
            sample(server)

    for number in range(STARTS + 1):
        once(context.folder(f"start-{number}"))
    for samples in (*ready.values(), *resident.values()):
        del samples[0]  # the first start reads the disk
    peer = context.peers.probot_version()
    return [
        Comparison(what="the server is ready", peer=peer, unit="s", ours=ready["gibil"], peers=ready["probot"], aim=at_most(1)),
        Comparison(
            what="its resident memory then", peer=peer, unit="MB", ours=resident["gibil"], peers=resident["probot"], aim=MEMORY
        ),
    ]
