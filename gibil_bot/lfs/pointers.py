"""Git LFS pointers, and the address of a repository's LFS server. Pure.

https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
https://github.com/git-lfs/git-lfs/blob/main/docs/api/server-discovery.md
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

POINTER_BYTES = 1024
"""A pointer is smaller than that."""
_VERSIONS = (b"https://git-lfs.github.com/spec/v1", b"https://hawser.github.com/spec/v1")
_LINE = re.compile(rb"([a-z0-9.-]+) ([^\r\n]+)\n")
_OID = re.compile(rb"sha256:([0-9a-f]{64})")
_SIZE = re.compile(rb"0|[1-9][0-9]{0,17}")
_SCP_LIKE = re.compile(r"(?:[A-Za-z0-9._-]+@)?([A-Za-z0-9][A-Za-z0-9.-]*):(?!//)/?([^\s]+)")


@dataclass(frozen=True, slots=True, order=True)
class Pointer:
    """The object that replaces a pointer: its SHA-256 in hexadecimal digits, and its size in bytes."""

    oid: str
    size: int


def parse_pointer(content: bytes) -> Pointer | None:
    """Return the pointer that a file's content is; None if it isn't one.

    Raises ValueError for a pointer with extensions: programs of its author's computer transformed the file.
    """
    if len(content) >= POINTER_BYTES or not content.endswith(b"\n"):
        return None
    found = [_LINE.fullmatch(line) for line in content.splitlines(keepends=True)]
    pairs = [(match[1], match[2]) for match in found if match is not None]
    keys = [key for key, _ in pairs]
    if len(pairs) != len(found) or not pairs or pairs[0][0] != b"version" or pairs[0][1] not in _VERSIONS:
        return None
    if keys[1:] != sorted(set(keys[1:])) or not _is_utf8(content):
        return None
    values = dict(pairs)
    oid, size = _OID.fullmatch(values.get(b"oid", b"")), _SIZE.fullmatch(values.get(b"size", b""))
    if oid is None or size is None:
        return None
    if any(key.startswith(b"ext-") for key in keys):
        raise ValueError("it needs an extension of Git LFS (ext-…), which isn't supported")
    return Pointer(oid[1].decode(), int(size[0]))


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def server_of(remote: str, configured: str = "") -> str:
    """Return the URL of the LFS server for the URL of a git remote. Raises ValueError if there is none that may be used.

    `configured`: `lfs.url` of the repository's .lfsconfig. Anyone may have written that file, so it may only name a server on
    the remote's own host.
    """
    scp = _SCP_LIKE.fullmatch(remote)
    web = f"https://{scp[1]}/{scp[2]}" if scp is not None else remote
    if web.startswith(("ssh://", "git://")):
        there = urlsplit(web)
        web = f"https://{there.hostname or ''}{there.path}"
    guessed = _checked(web.rstrip("/"))
    if not configured:
        return guessed.removesuffix(".git") + ".git/info/lfs"
    here, there = urlsplit(guessed), urlsplit(_checked(configured.rstrip("/")))
    if (here.scheme, here.netloc) != (there.scheme, there.netloc):
        raise ValueError(f".lfsconfig names a server on another host, '{there.netloc[:200]}', which isn't asked")
    return there.geturl()


def basic_authorization(user: str, password: str) -> str:
    """https://github.com/git-lfs/git-lfs/blob/main/docs/api/authentication.md"""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        valid = valid and parts.username is None and parts.password is None and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("its remote has no LFS server: the address must be http(s)://host/path without credentials")
    return url
