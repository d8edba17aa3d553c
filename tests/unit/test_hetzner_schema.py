"""The Hetzner double's strict request check finds planted faults, and accepts the provider's requests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.doubles.hetzner_schema import USER_DATA_BYTES, findings

SERVER = {
    "name": "ada",
    "server_type": "cx23",
    "location": "nbg1",
    "image": "ubuntu-24.04",
    "labels": {"created-by": "gibil-bot", "example.com/run": "", "gibil-more.00.repo": "vada_2fenginev"},
    "user_data": "#cloud-config\n",
    "firewalls": [{"firewall": 1}],
    "ssh_keys": [2, "name"],
    "public_net": {"enable_ipv4": True, "enable_ipv6": False},
    "start_after_create": True,
}
RULE = {"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["0.0.0.0/0", "::/0"], "description": "SSH"}


def fields(method: str, path: str, body: Any = None, *query: tuple[str, str]) -> set[str]:
    raw = b"" if body is None else json.dumps(body).encode()
    return {finding.field for finding in findings(method, path, query, raw)}


def test_documented_requests_pass() -> None:
    assert fields("POST", "/servers", SERVER) == set()
    assert fields("POST", "/firewalls", {"name": "f", "rules": [RULE]}) == set()
    assert fields("PUT", "/servers/1", {"name": "a.example-1", "labels": {}}) == set()
    assert fields("GET", "/servers", None, ("page", "2"), ("per_page", "50"), ("label_selector", "a=b")) == set()
    assert fields("POST", "/servers/1/actions/poweroff") == set()


@pytest.mark.parametrize(
    "wrong",
    [
        {"datacenter": "nbg1-dc3"},
        {"name": "under_score"},
        {"name": "-a"},
        {"name": f"a.{'x' * 64}"},
        {"server_type": None},
        {"labels": {"a": 1}},
        {"labels": {"a": "x" * 64}},
        {"labels": {"hetzner.cloud/a": "b"}},
        {"labels": {"Example.com/a": "b"}},
        {"labels": {"a/b/c": "d"}},
        {"labels": {"a": "ends-"}},
        {"labels": ["a"]},
        {"user_data": "x" * (USER_DATA_BYTES + 1)},
        {"user_data": "é" * (USER_DATA_BYTES // 2 + 1)},
        {"firewalls": [1]},
        {"firewalls": [{"firewall": "1"}]},
        {"firewalls": [{"firewall": 1, "more": 2}]},
        {"ssh_keys": [None]},
        {"public_net": {"enable_ipv4": "yes"}},
        {"public_net": {"enable_ipv5": True}},
        {"start_after_create": 1},
    ],
    ids=lambda wrong: str(wrong)[:40],
)
def test_an_invalid_server_is_rejected_and_the_field_named(wrong: dict[str, Any]) -> None:
    assert fields("POST", "/servers", {**SERVER, **wrong}) == set(wrong)


@pytest.mark.parametrize("key", ["name", "server_type", "image"])
def test_a_missing_required_field_is_rejected(key: str) -> None:
    assert fields("POST", "/servers", {each: value for each, value in SERVER.items() if each != key}) == {key}


@pytest.mark.parametrize(
    ("method", "path", "body", "query"),
    [
        ("GET", "/servers", None, [("per_page", "51")]),
        ("GET", "/servers", None, [("page", "0")]),
        ("GET", "/servers", None, [("pages", "1")]),
        ("GET", "/servers/1", None, [("page", "1")]),
        ("GET", "/pricing", None, [("page", "1")]),
        ("POST", "/servers/1/actions/poweroff", {}, []),
        ("POST", "/servers/1/actions/poweron", {"a": 1}, []),
        ("DELETE", "/servers/1", {}, []),
        ("PUT", "/servers/1", {"status": "off"}, []),
        ("PUT", "/primary_ips/1", {"auto_delete": "true"}, []),
        ("POST", "/servers/1/actions/rebuild", {"user_data": ""}, []),
        ("POST", "/ssh_keys", {"name": "a"}, []),
        ("POST", "/firewalls", {"name": "", "rules": []}, []),
        ("POST", "/firewalls/1/actions/set_rules", {"rules": [{**RULE, "port": 22}]}, []),
        ("POST", "/firewalls/1/actions/set_rules", {"rules": [{**RULE, "source_ips": ["anywhere"]}]}, []),
        ("POST", "/firewalls/1/actions/set_rules", {"rules": [RULE] * 51}, []),
        ("POST", "/servers", [], []),
    ],
)
def test_invalid_requests_of_other_operations_are_found(
    method: str, path: str, body: Any, query: list[tuple[str, str]]
) -> None:
    assert fields(method, path, body, *query)


def test_bytes_that_are_not_json_are_rejected() -> None:
    assert findings("POST", "/servers", [], b"{")
    assert findings("POST", "/servers", [], b"")
