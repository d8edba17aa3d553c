"""Which host a client names in the first bytes of a connection."""

from __future__ import annotations

import time

import pytest

from gibil_bot.providers.local.first_bytes import MOST_BYTES, FirstBytes, read_first_bytes
from tests.doubles.routed import client_hello, split_records


@pytest.mark.parametrize("size", [100, 500, 20_000])
def test_the_server_name_of_a_real_hello_is_read(size: int) -> None:
    assert read_first_bytes(split_records(client_hello("Git.Example.com"), size)) == FirstBytes("tls", "git.example.com", True)
    assert read_first_bytes(client_hello(None)) == FirstBytes("tls", "", True)


def test_every_prefix_of_a_hello_is_incomplete() -> None:
    hello = client_hello("git.example.com")
    for end in range(1, len(hello)):
        assert read_first_bytes(hello[:end]) == FirstBytes("tls", "", False)


def test_the_host_field_of_http_is_read_without_its_port() -> None:
    head = b"GET / HTTP/1.1\r\nA: b\r\nhOst:  x.example:8080 \r\n\r\n"
    assert read_first_bytes(head) == FirstBytes("http", "x.example", True)
    assert read_first_bytes(b"GET / HTTP/1.1\r\nA: b\r\n") == FirstBytes("http", "", False)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + b"a" * 300 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\nHost: body.example\r\n",
        b"\x16\x03\x01\x00\x05\x02aaaa",
        b"\x16\x02\x00\x00\x00",
        b"\x16\x03\x01\xff\xff" + b"\1" * 100,
        split_records(client_hello("a.example"), 4),
        client_hello("a.example").replace(b"a.example", b"a\0example"),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0" * 100,
    ],
    ids=[
        "two-hosts",
        "space",
        "ip",
        "long",
        "body",
        "no-hello",
        "empty-record",
        "long-record",
        "crumbs",
        "zero",
        "ssh",
        "other",
    ],
)
def test_anything_ambiguous_names_no_host(data: bytes) -> None:
    first = read_first_bytes(data)
    assert (first.host, first.complete) == ("", True)


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x40\x00\x01\x00\x3f\xff", b"GET / HTTP/1.1\r\nHost:" + b" " * MOST_BYTES, b"GET /"],
    ids=["tls", "spaces", "line"],
)
def test_reading_ends_at_a_bound_and_takes_no_time(data: bytes) -> None:
    data += b"a" * MOST_BYTES
    began = time.process_time()
    assert read_first_bytes(data[:MOST_BYTES]).complete
    assert time.process_time() - began < 0.1
