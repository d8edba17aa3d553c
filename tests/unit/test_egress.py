"""Which addresses are public, and which others the operator's list allows."""

from __future__ import annotations

import asyncio
import os
import urllib.request
from ipaddress import ip_address

import pytest

from gibil_bot.errors import ConfigurationError
from gibil_bot.providers.local.egress_policy import AllowList, is_public, loopback_ports, parse_address, parse_rules
from gibil_bot.providers.local.init import ENVIRONMENT
from gibil_bot.providers.local.proxy_request import BadRequest, close_after, parse_direct_request, parse_request
from gibil_bot.providers.local.relay import BLOCK, Replayed


@pytest.mark.parametrize(
    "text", ["1.1.1.1", "140.82.121.4", "2606:4700:4700::1111", "2a01:4f8::1", "64:ff9b::101:101", "2002:101:101::1"]
)
def test_internet_addresses_are_public(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.8.9.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.80",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::10.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "2001::1",
        "2001:db8::1",
        "2002:a00:1::1",
        "2002:7f00:1::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "100::1",
    ],
)
def test_all_other_addresses_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


def matches(entry: str, name: str, address: str, port: int) -> bool:
    (rule,) = parse_rules((entry,))
    return rule.matches(name, parse_address(address), port)


@pytest.mark.parametrize(
    ("entry", "name", "address", "port", "expected"),
    [
        ("git.corp", "git.corp", "10.0.0.1", 22, True),
        ("GIT.corp.", "git.corp", "10.0.0.1", 22, True),
        ("git.corp:443", "git.corp", "10.0.0.1", 443, True),
        ("git.corp:443", "git.corp", "10.0.0.1", 80, False),
        ("git.corp", "evil-git.corp", "10.0.0.1", 443, False),
        ("git.corp", "x.git.corp", "10.0.0.1", 443, False),
        ("*.corp", "git.corp", "10.0.0.1", 443, True),
        ("*.corp", "a.b.corp", "10.0.0.1", 443, True),
        ("*.corp", "corp", "10.0.0.1", 443, False),
        ("*.corp", "evilcorp", "10.0.0.1", 443, False),
        ("*.corp", ".corp", "10.0.0.1", 443, False),
        ("10.0.0.0/8", "any.name", "10.9.8.7", 443, True),
        ("10.0.0.0/8", "any.name", "11.0.0.1", 443, False),
        ("10.0.0.0/8", "any.name", "::ffff:10.9.8.7", 443, True),
        ("::ffff:10.0.0.0/104", "any.name", "10.9.8.7", 443, True),
        ("10.0.0.0/8:80", "x", "10.0.0.1", 80, True),
        ("10.0.0.0/8:80", "x", "10.0.0.1", 81, False),
        ("[::1]:80", "::1", "::1", 80, True),
        ("[::1]:80", "::1", "::1", 81, False),
        ("fd00::/8", "x", "fd12::1%eth0", 81, True),
        ("127.0.0.1", "localhost", "127.0.0.1", 1, True),
    ],
)
def test_an_entry_of_the_list_matches(entry: str, name: str, address: str, port: int, expected: bool) -> None:
    assert matches(entry, name, address, port) is expected


def test_every_invalid_entry_is_reported() -> None:
    wrong = (
        "http://x",
        "a b",
        "x:0",
        "x:99999",
        "x:http",
        "10.0.0",
        "1.2.3.4.5",
        "10.0.0.0/40",
        "[::1",
        "*",
        "*.*",
        "a..b",
        "-",
        "",
    )
    with pytest.raises(ConfigurationError) as caught:
        parse_rules(("fine.example", *wrong))
    assert len(caught.value.problems) == len(wrong)


def test_loopback_ports_are_those_of_single_ipv4_loopback_addresses() -> None:
    allow = (
        "127.0.0.1:9000",
        "localhost:8080",
        "127.0.0.7:1",
        "127.0.0.1",
        "10.0.0.1:80",
        "[::1]:80",
        "127.0.0.0/8:3",
        "localhost:8080",
    )
    assert loopback_ports(allow) == (("127.0.0.1", 9000), ("127.0.0.1", 8080), ("127.0.0.7", 1))


def head(*lines: str) -> bytes:
    return "\r\n".join((*lines, "", "")).encode("latin-1")


def test_a_request_is_forwarded_in_origin_form_with_the_hosts_name() -> None:
    request = parse_request(
        head(
            "POST http://Example.COM:8080/a/b?c=d HTTP/1.1",
            "Host: other.example",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Proxy-Authorization: Basic secret",
            "Proxy-Connection: keep-alive",
            "TE: trailers",
            "Content-Length: 5",
            "Accept: */*",
        )
    )
    assert (request.host, request.port, request.tunnel, request.length) == ("example.com", 8080, False, 5)
    assert request.head == head(
        "POST /a/b?c=d HTTP/1.1", "Host: Example.COM:8080", "Content-Length: 5", "Accept: */*", "Connection: close"
    )


@pytest.mark.parametrize(
    ("target", "host", "port", "origin"),
    [
        ("http://h", "h", 80, "/"),
        ("http://h?q", "h", 80, "/?q"),
        ("http://h/p#fragment", "h", 80, "/p"),
        ("http://[2001:db8::1]:81/", "2001:db8::1", 81, "/"),
        ("HTTP://h/", "h", 80, "/"),
        ("http://h./", "h", 80, "/"),
    ],
)
def test_addresses_are_parsed(target: str, host: str, port: int, origin: str) -> None:
    request = parse_request(head(f"GET {target} HTTP/1.1"))
    assert (request.host, request.port) == (host, port)
    assert request.head.startswith(f"GET {origin} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize(
    "lines",
    [
        ("GET / HTTP/1.1", "Host: x"),
        ("GET https://x/ HTTP/1.1",),
        ("GET ftp://x/ HTTP/1.1",),
        ("GET http://x/ HTTP/2",),
        ("GET  http://x/ HTTP/1.1",),
        ("GET http://x/ a HTTP/1.1",),
        ("G(T http://x/ HTTP/1.1",),
        ("GET http:///p HTTP/1.1",),
        ("GET http://u:p@x/ HTTP/1.1",),
        ("GET http://x:0/ HTTP/1.1",),
        ("GET http://x:99999/ HTTP/1.1",),
        ("GET http://x:8 0/ HTTP/1.1",),
        ("GET http://[::1/ HTTP/1.1",),
        ("GET http://x\\@y/ HTTP/1.1",),
        ("GET http://bücher.example/ HTTP/1.1",),
        ("CONNECT x HTTP/1.1",),
        ("CONNECT x:y HTTP/1.1",),
        ("CONNECT u@x:443 HTTP/1.1",),
        ("CONNECT http://x:443 HTTP/1.1",),
        ("GET http://x/ HTTP/1.1", "Content-Length: 1", "Content-Length: 2"),
        ("GET http://x/ HTTP/1.1", "Content-Length: 1", "Transfer-Encoding: chunked"),
        ("GET http://x/ HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
        ("GET http://x/ HTTP/1.1", "Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
        ("GET http://x/ HTTP/1.1", "Transfer-Encoding: xchunked"),
        ("GET http://x/ HTTP/1.1", "Content-Length: +5"),
        ("GET http://x/ HTTP/1.1", "Content-Length: 5, 5"),
        ("GET http://x/ HTTP/1.1", "Content-Length : 5"),
        ("GET http://x/ HTTP/1.1", "A: b", " folded"),
        ("GET http://x/ HTTP/1.1", "no colon"),
        ("GET http://x/ HTTP/1.1", "A: b\nC: d"),
        ("GET http://x/ HTTP/1.1", "A: b\rC: d"),
        ("GET http://x/ HTTP/1.1", "A: b\0"),
    ],
)
def test_ambiguous_requests_are_rejected(lines: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest):
        parse_request(head(*lines))


def test_the_connection_header_cannot_remove_the_body_length() -> None:
    request = parse_request(head("POST http://x/ HTTP/1.1", "Connection: content-length", "Content-Length: 3"))
    assert b"Content-Length: 3" in request.head


def test_a_request_to_the_server_itself_is_forwarded_with_its_own_host() -> None:
    request = parse_direct_request(head("POST /a?b HTTP/1.1", "host: A.example:8080", "Upgrade: x", "Content-Length: 3"))
    assert (request.host, request.length, request.tunnel) == ("a.example", 3, False)
    assert request.head == head("POST /a?b HTTP/1.1", "Host: A.example:8080", "Content-Length: 3", "Connection: close")


@pytest.mark.parametrize(
    "lines",
    [
        ("GET http://a.example/ HTTP/1.1", "Host: a.example"),
        ("CONNECT a.example:443 HTTP/1.1", "Host: a.example"),
        ("GET / HTTP/1.1",),
        ("GET / HTTP/1.1", "Host:"),
        ("GET / HTTP/1.1", "Host: a.example", "Host: b.example"),
        ("GET / HTTP/1.1", "Host: a.example", "Host : b.example"),
        ("GET / HTTP/1.1", "Host: a.example", " b.example"),
        ("GET / HTTP/1.1", "Host: a.example@b.example"),
        ("GET / HTTP/1.1", "Host: a.example/b"),
        ("GET / HTTP/1.1", "Host: a.example b"),
        ("GET /", "Host: a.example"),
        ("PRI * HTTP/2.0", "Host: a.example"),
    ],
)
def test_requests_to_a_server_that_could_mean_two_hosts_are_rejected(lines: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest):
        parse_direct_request(head(*lines))


@pytest.mark.parametrize(
    ("entry", "name", "port", "listed"),
    [
        ("a.example:443", "a.example", 443, True),
        ("a.example:443", "a.example", 80, False),
        ("a.example:443", "x.a.example", 443, False),
        ("a.example:443", "a.example.evil", 443, False),
        ("a.example:443", "xa.example", 443, False),
        ("*.a.example:443", "x.y.a.example", 443, True),
        ("*.a.example:443", "a.example", 443, False),
        ("*.a.example:443", ".a.example", 443, False),
        ("*.a.example:443", "xa.example", 443, False),
        ("a.example", "a.example", 22, True),
        ("10.0.0.0/8", "a.example", 443, False),
    ],
)
def test_an_allow_list_has_names_exactly_or_below_a_domain(entry: str, name: str, port: int, listed: bool) -> None:
    assert AllowList(parse_rules((entry,))).has_endpoint(name, port) is listed


def test_an_allow_list_has_addresses_only_of_networks() -> None:
    only = AllowList(parse_rules(("10.0.0.0/8", "[fd00::1]:80", "127.0.0.1.example")))
    assert only.has_address(ip_address("10.1.2.3"), 22)
    assert only.has_address(ip_address("fd00::1"), 80)
    assert not only.has_address(ip_address("fd00::1"), 443)
    assert not only.has_address(ip_address("127.0.0.1"), 80)
    assert only.has_name("127.0.0.1.example")
    assert not only.has_name("10.1.2.3")


async def test_bytes_that_were_read_are_read_again_before_the_others() -> None:
    source = asyncio.StreamReader()
    source.feed_data(b"d\r\n\r\nefghij")
    source.feed_eof()
    reader = Replayed(b"abc", source)
    assert await reader.readuntil(b"\r\n\r\n") == b"abcd\r\n\r\n"
    assert (await reader.readexactly(2), await reader.read(3), await reader.read(9)) == (b"ef", b"ghi", b"j")
    with pytest.raises(asyncio.IncompleteReadError):
        await Replayed(b"a", source).readuntil(b"\n")
    with pytest.raises(asyncio.LimitOverrunError):
        await Replayed(b"a" * (BLOCK + 1), source).readuntil(b"\n")


def test_a_response_gets_connection_close() -> None:
    status, changed = close_after(head("HTTP/1.1 200 OK", "Connection: keep-alive", "Keep-Alive: timeout=5", "A: b"))
    assert (status, changed) == (200, head("HTTP/1.1 200 OK", "A: b", "Connection: close"))
    assert close_after(head("HTTP/1.1 100 Continue")) == (100, head("HTTP/1.1 100 Continue"))
    for wrong in ("SSH-2.0-x", "HTTP/2 200", "HTTP/1.1 99", ""):
        with pytest.raises(BadRequest):
            close_after(head(wrong))


def test_programs_on_a_machine_find_no_proxy_in_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert urllib.request.getproxies() == {}
