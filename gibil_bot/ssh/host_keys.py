"""An ed25519 host key in the forms that others want: the public line, and a label's value. Pure, no cryptography needed.

The private form carries its public half in the clear (openssh/PROTOCOL.key), so that reading it out is enough.
"""

from __future__ import annotations

import base64
import binascii

from gibil_bot.errors import UsageError

_MAGIC = b"openssh-key-v1\0"
_TYPE = b"ssh-ed25519"
_RAW_SIZE = 32
_BLOB_START = len(_TYPE).to_bytes(4, "big") + _TYPE + _RAW_SIZE.to_bytes(4, "big")


def public_line(private_key: str) -> str:
    """`ssh-ed25519 AAAA…` of an unencrypted private key in OpenSSH's PEM form. Raises UsageError for any other text."""
    lines = private_key.strip().splitlines()
    try:
        data = base64.b64decode("".join(lines[1:-1]), validate=True)
    except binascii.Error:
        data = b""
    if not data.startswith(_MAGIC):
        raise UsageError("the host key of a machine has to be an ed25519 private key in OpenSSH's PEM form")
    rest = data[len(_MAGIC) :]
    for _name in ("cipher", "key derivation", "its options"):
        _field, rest = _string(rest)
    blob, _private = _string(rest[4:])  # behind the number of keys
    if not blob.startswith(_BLOB_START) or len(blob) != len(_BLOB_START) + _RAW_SIZE:
        raise UsageError("the host key of a machine has to be an ed25519 key")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def to_label(line: str) -> str:
    """The public key as 45 characters that may be a label's value: letters, digits, `-`, `_`, a letter at both ends."""
    raw = base64.b64decode(line.split()[1])[-_RAW_SIZE:]
    return f"k{base64.urlsafe_b64encode(raw).decode().rstrip('=')}k"


def from_label(value: str) -> str | None:
    """The public line again; None for a value that `to_label` did not make."""
    try:
        raw = base64.b64decode(value[1:-1] + "=", altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    if len(raw) != _RAW_SIZE or value[:1] != "k" or value[-1:] != "k":
        return None
    return f"ssh-ed25519 {base64.b64encode(_BLOB_START + raw).decode()}"


def _string(data: bytes) -> tuple[bytes, bytes]:
    """A length-prefixed string, and what follows it (RFC 4251 section 5)."""
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size], data[4 + size :]
