"""Attempts to reach, through the egress proxy, hosts on the host's own links: such neighbours can have global addresses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Do = Callable[..., Any]


@pytest.fixture
def host() -> Iterator[Do]:
    """A host at 9.9.9.1/24 and 2a02:8109:1:1::1/64, with a neighbour at .2 and ::2 that serves on all its addresses."""
    if not all(shutil.which(tool) for tool in ("ip", "unshare", "nsenter")):
        pytest.skip("needs the programs ip, unshare and nsenter (apt-get install iproute2 util-linux)")
    words = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--user", "--map-root-user"]
    if subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("network namespaces can't be created on this host")
    process = subprocess.Popen(
        [*words, sys.executable, "-m", "tests.doubles.neighbourhood"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def do(*what: str) -> Any:
        requests.write(json.dumps(what) + "\n")
        requests.flush()
        return json.loads(answers.readline())

    with process:
        yield do
        process.stdin.close()


def blocked(answer: Any, why: str) -> None:
    status, reason, reached = answer
    assert (status, reached) == (403, False), answer
    assert why in reason
    assert "GIBIL_EGRESS_ALLOW=" in reason


def test_neighbours_with_global_addresses_are_blocked(host: Do) -> None:
    for address in ("9.9.9.2", "[2a02:8109:1:1::2]", "[::ffff:9.9.9.2]", "[64:ff9b::909:902]", "[2002:909:902::1]"):
        blocked(host("ask", address), "is in a network that the host is directly connected to")


def test_the_operator_can_allow_a_neighbour(host: Do) -> None:
    assert host("ask", "9.9.9.2", "9.9.9.2:8080") == [200, "Connection established", True]
    assert host("ask", "[2a02:8109:1:1::2]", "2a02:8109:1:1::/64") == [200, "Connection established", True]


def test_all_addresses_of_the_host_are_blocked_also_later_ones(host: Do) -> None:
    for address in ("9.9.9.1", "[2a02:8109:1:1::1]"):
        blocked(host("ask", address), "is an address of the host itself")
    host("ip", "address add 8.8.8.8/32 dev lo")
    host("ip", "address add 2a02:ffff::8/128 dev lo")
    for address in ("8.8.8.8", "[2a02:ffff::8]"):
        blocked(host("ask", address), "is an address of the host itself")


def test_the_internet_behind_a_router_is_reachable_and_the_router_is_not(host: Do) -> None:
    """Also if the router is in none of the host's networks, as in many data centres."""
    for address in ("8.8.4.4/32", "1.0.0.1/32", "1.0.0.2/32"):
        host("neighbour", f"address add {address} dev lan")
    host("neighbour", "address add 2a02:aaaa::1/128 dev lo")
    host("ip", "route add default via 8.8.4.4 dev lan onlink")
    host("ip", "route add default via 2a02:8109:1:1::2")
    for address in ("1.0.0.1", "[2a02:aaaa::1]"):
        assert host("ask", address) == [200, "Connection established", True]
    blocked(host("ask", "8.8.4.4"), "is a router of the host")
    blocked(host("ask", "[2a02:8109:1:1::2]"), "is a router of the host")
    # A network that the host joins later, while the proxy is running.
    host("ip", "route add 1.0.0.0/24 dev lan")
    blocked(host("ask", "1.0.0.1"), "is in a network that the host is directly connected to")
    host("ip", "route del 1.0.0.0/24 dev lan")
    assert host("ask", "1.0.0.2") == [200, "Connection established", True]


def test_the_networks_of_every_routing_table_are_blocked(host: Do) -> None:
    host("neighbour", "address add 5.5.5.5/32 dev lan")
    host("ip", "route add 5.5.5.0/24 dev lan table 100")
    host("ip", "rule add to 5.5.5.0/24 lookup 100")
    blocked(host("ask", "5.5.5.5"), "is in a network that the host is directly connected to")


def test_a_route_to_the_internet_without_a_gateway_is_not_a_local_network(host: Do) -> None:
    """Like that of a modem or a tunnel, with the whole internet at its other end."""
    host("neighbour", "address add 1.0.0.1/32 dev lan")
    host("neighbour", "address add 2a02:aaaa::1/128 dev lo")
    host("ip", "route add default dev lan")
    host("ip", "route add 2000::/3 via 2a02:8109:1:1::2")
    for address in ("1.0.0.1", "[2a02:aaaa::1]"):
        assert host("ask", address) == [200, "Connection established", True]
    blocked(host("ask", "9.9.9.2"), "is in a network that the host is directly connected to")


def test_routes_with_several_next_hops_are_read(host: Do) -> None:
    host("neighbour", "address add 1.0.0.1/32 dev lan")
    host("neighbour", "address add 9.9.9.3/24 dev lan")
    host("ip", "route add 1.0.0.0/8 nexthop via 9.9.9.2 nexthop via 9.9.9.3")
    assert host("ask", "1.0.0.1") == [200, "Connection established", True]
    blocked(host("ask", "9.9.9.3"), "is a router of the host")


def test_an_ipv4_route_through_an_ipv6_router_is_read(host: Do) -> None:
    host("neighbour", "address add 4.4.4.4/32 dev lan")
    host("ip", "route add 4.4.4.0/24 via inet6 2a02:8109:1:1::2 dev lan")
    assert host("ask", "4.4.4.4") == [200, "Connection established", True]
    blocked(host("ask", "[2a02:8109:1:1::2]"), "is a router of the host")
