"""Which hosts the key `allow:` of an agent task means."""

from __future__ import annotations

import pytest

from gibil_bot.config import MIRRORS
from gibil_bot.errors import UsageError
from gibil_bot.providers.local.egress_policy import parse_rules
from gibil_bot.registries import REGISTRIES, hosts, problem_with


def test_a_registry_means_the_hosts_of_its_client_at_the_ports_of_the_web() -> None:
    assert hosts(["pypi"]) == ("pypi.org:443", "pypi.org:80", "files.pythonhosted.org:443", "files.pythonhosted.org:80")


def test_a_mirror_replaces_the_hosts_of_a_registry() -> None:
    mirrors = {
        "pypi": "https://mirror.example/simple",
        "npm": "http://10.0.0.1:4873",
        "crates": "sparse+https://m.example:8443/index",
        "go": "https://[fd00::1]/go",
    }
    assert hosts(["pypi", "npm", "crates", "go"], mirrors=mirrors) == (
        "mirror.example:443",
        "10.0.0.1:4873",
        "m.example:8443",
        "[fd00::1]:443",
    )


def test_hosts_keep_the_port_that_is_written() -> None:
    assert hosts([" Docs.Python.org. ", "*.example.com", "x.example:8443"]) == (
        "docs.python.org:443",
        "docs.python.org:80",
        "*.example.com:443",
        "*.example.com:80",
        "x.example:8443",
    )


def test_the_operators_list_is_part_of_every_allow_list_as_it_is() -> None:
    assert hosts([], operator=["10.0.0.0/8", "git.example.com"]) == ("10.0.0.0/8", "git.example.com")


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("rubygem", "did you mean 'rubygems'"),
        ("localhost", "neither a host nor a registry"),
        ("https://pypi.org", "without a scheme"),
        ("10.0.0.0/8", "without a scheme, path or network"),
        ("10.0.0.1", "is an address"),
        ("[::1]:80", "isn't a host"),
        ("*", "isn't a host"),
        ("*.com", "isn't a host"),
        ("a.*.com", "isn't a host"),
        ("a.example:0", "port"),
        ("a.example:65536", "port"),
        ("a..example", "isn't a host"),
        ("a.example\n", ""),
        ("bücher.example", "isn't a host"),
        ("a." * 130 + "example", "isn't a host"),
        ("", "isn't a host"),
    ],
)
def test_an_entry_that_is_no_host_is_rejected_with_the_reason(entry: str, part: str) -> None:
    problem = problem_with(entry)
    assert part in problem
    assert bool(problem) is bool(part)


def test_all_invalid_entries_are_reported_at_once() -> None:
    with pytest.raises(UsageError, match=r"'pipy' is neither.*'10\.0\.0\.1' is an address"):
        hosts(["pipy", "npm", "10.0.0.1"])
    with pytest.raises(UsageError, match="at most 64"):
        hosts(["npm"] * 65)


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_registry_is_a_valid_allow_list(name: str) -> None:
    registry = REGISTRIES[name]
    assert registry.source
    assert all(problem_with(host) == "" for host in registry.hosts)
    assert len(parse_rules(hosts([name]))) == 2 * len(registry.hosts)
    assert set(registry.mirrors) <= set(MIRRORS)
