"""Pointers of Git LFS, and the address of the server for a git remote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.lfs.pointers import Pointer, parse_pointer, server_of

OID = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393"
GOOD = f"version https://git-lfs.github.com/spec/v1\noid sha256:{OID}\nsize 12345\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD.replace("git-lfs.github.com", "hawser.github.com"),
        GOOD.replace("oid", "name größer\noid", 1),
        GOOD + "x-later 1\n",
    ],
    ids=["specification", "its first name", "an earlier key", "a later key"],
)
def test_a_pointer_names_its_object(text: str) -> None:
    assert parse_pointer(text.encode()) == Pointer(OID, 12345)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        GOOD.encode()[:-1],
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("spec/v1", "spec/v2").encode(),
        GOOD.replace("github.com", "example.com").encode(),
        GOOD.replace(OID, OID[:-1]).encode(),
        GOOD.replace(OID, OID.upper()).encode(),
        GOOD.replace("sha256", "sha1").encode(),
        GOOD.replace("12345", "-1").encode(),
        GOOD.replace("12345", "012").encode(),
        GOOD.replace("12345", "1e9").encode(),
        GOOD.replace("12345", "9" * 19).encode(),
        GOOD.replace("12345", "١٢").encode(),
        f"version https://git-lfs.github.com/spec/v1\nsize 1\noid sha256:{OID}\n".encode(),
        GOOD.replace("size", f"oid sha256:{'0' * 64}\nsize").encode(),
        f"oid sha256:{OID}\nversion https://git-lfs.github.com/spec/v1\nsize 1\n".encode(),
        GOOD.encode() + b"\n",
        GOOD.encode() + b"y-key \xff\n",
        GOOD.encode() + b"z " + b"x" * 1024 + b"\n",
        GOOD.encode() + b"z\0 1\n",
    ],
)
def test_other_files_are_no_pointers(content: bytes) -> None:
    assert parse_pointer(content) is None


def test_a_pointer_with_an_extension_is_rejected() -> None:
    with pytest.raises(ValueError, match="extension of Git LFS"):
        parse_pointer(GOOD.replace("oid", f"ext-0-program sha256:{OID}\noid", 1).encode())


@given(st.binary(max_size=200) | st.text(max_size=60).map(lambda text: GOOD.replace("12345", text).encode()))
def test_no_content_breaks_the_parser(content: bytes) -> None:
    found = parse_pointer(content)
    assert found is None or found.oid == OID


@pytest.mark.parametrize(
    ("remote", "configured", "server"),
    [
        ("https://host/a/b.git", "", "https://host/a/b.git/info/lfs"),
        ("https://host/a/b/", "", "https://host/a/b.git/info/lfs"),
        ("http://host:8080/a/b", "", "http://host:8080/a/b.git/info/lfs"),
        ("git@host:a/b.git", "", "https://host/a/b.git/info/lfs"),
        ("git@host:/a/b.git", "", "https://host/a/b.git/info/lfs"),
        ("ssh://git@host:2222/a/b.git", "", "https://host/a/b.git/info/lfs"),
        ("git://host/a/b.git", "", "https://host/a/b.git/info/lfs"),
        ("https://host/a/b.git", "https://host/other/lfs/", "https://host/other/lfs"),
    ],
)
def test_the_server_of_a_remote(remote: str, configured: str, server: str) -> None:
    assert server_of(remote, configured) == server


@pytest.mark.parametrize(
    "remote",
    [
        "",
        "/srv/repository",
        "file:///srv/repository",
        "ext::sh -c id",
        "https://user:password@host/a",
        "https://user@host/a",
        "https:///a/b",
        "https://host:0/a",
        "https://host:99999/a",
        "https://[::1/a",
        "https://host/a?b=c",
        "https://host/a#b",
        "https://host/a b",
        "https://host/a\nHost: other",
        "https://hóst/a",
        "-oProxyCommand=id:a",
        "ssh:///a/b",
    ],
)
def test_a_remote_without_a_server_is_named(remote: str) -> None:
    with pytest.raises(ValueError, match="has no LFS server"):
        server_of(remote)


@pytest.mark.parametrize(
    "configured",
    [
        "https://evil.example/lfs",
        "http://host/lfs",
        "https://host:8443/lfs",
        "https://host@evil.example/lfs",
        "https://host.evil.example/lfs",
        "https://host\\@evil.example/lfs",
        "//evil.example/lfs",
        "ssh://host/lfs",
        "file:///etc/passwd",
        "/info/lfs",
        "https://host/lfs\r\nAuthorization: x",
    ],
)
def test_the_repositorys_lfsconfig_names_no_other_server(configured: str) -> None:
    with pytest.raises(ValueError, match=r"which isn't asked|has no LFS server"):
        server_of("https://host/a/b.git", configured)
