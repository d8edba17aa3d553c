"""Host keys: the public half of a private key, and the first contact that replaces the key a machine booted with.

A cloud stores a machine's user-data as long as the machine exists, and the machine's metadata address serves it until that is
blocked. So the user-data has a host key for one connection only. Over that connection, before anything else happens on the
machine, gibil sends the lasting key. The provider's labels have the public half of the lasting key, and only a creation
accepts the first one.

An attacker who reads the user-data *and* controls the network path at the first contact can still impersonate the machine;
later no attacker can. A creation that was killed is resumed from any step: until sshd has the lasting key, it shows the first
one and is sent the lasting one again. If no creation resumes, there is no login, and the machine is destroyed when it expires.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from gibil_bot.errors import AnotherHost, SSHError, UsageError
from gibil_bot.model import Endpoint
from gibil_bot.ports import Shell
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import last_line

_MAGIC = b"openssh-key-v1\0"
_TYPE = b"ssh-ed25519"
_RAW_SIZE = 32
_BLOB_START = len(_TYPE).to_bytes(4, "big") + _TYPE + _RAW_SIZE.to_bytes(4, "big")


def public_line(private_key: str) -> str:
    """Return the public line, `ssh-ed25519 AAAA…`, of an unencrypted private key in OpenSSH's PEM format. Raises UsageError."""
    lines = private_key.strip().splitlines()
    try:
        data = base64.b64decode("".join(lines[1:-1]), validate=True)
    except binascii.Error:
        data = b""
    if not data.startswith(_MAGIC):
        raise UsageError("the host key of a machine has to be an ed25519 private key in OpenSSH's PEM format")
    rest = data[len(_MAGIC) :]
    for _name in ("cipher", "key derivation", "its options"):
        _field, rest = _string(rest)
    blob, _private = _string(rest[4:])  # after the number of keys
    if not blob.startswith(_BLOB_START) or len(blob) != len(_BLOB_START) + _RAW_SIZE:
        raise UsageError("the host key of a machine has to be an ed25519 key")
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def to_label(line: str) -> str:
    """Encode a public key as a valid label value of 45 characters: letters, digits, `-`, `_`, a letter at both ends."""
    raw = base64.b64decode(line.split()[1])[-_RAW_SIZE:]
    return f"k{base64.urlsafe_b64encode(raw).decode().rstrip('=')}k"


def from_label(value: str) -> str | None:
    """Decode a label value to the public line. Return None for a value that `to_label` didn't generate."""
    try:
        raw = base64.b64decode(value[1:-1] + "=", altchars=b"-_", validate=True)
    except binascii.Error:
        return None
    if len(raw) != _RAW_SIZE or value[:1] != "k" or value[-1:] != "k":
        return None
    return f"ssh-ed25519 {base64.b64encode(_BLOB_START + raw).decode()}"


def _string(data: bytes) -> tuple[bytes, bytes]:
    """Split a length-prefixed string from the data after it (RFC 4251 section 5)."""
    size = int.from_bytes(data[:4], "big")
    return data[4 : 4 + size], data[4 + size :]


HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
MARK = "/etc/gibil/host-key-lasts"
"""Until this file exists, gibil sends only the command that creates it, without waiting for the boot (cloudinit.py, sshrc)."""

_SEND_S = 30.0
_RELOAD_S = 10.0
"""How long sshd may take from the signal until it presents the new key."""
_POLL_EVERY_S = 0.05


async def enter(endpoint: Endpoint, host_key: str, connect: Callable[[Endpoint], Awaitable[Shell]]) -> Shell:
    """Log in to a machine that was just created, replace its first host key, and return a connection under the lasting key.

    `host_key` is the private half of `endpoint.host_key` (OpenSSH PEM). Raises what `connect` raises, and SSHError when the
    machine doesn't install the key. The returned connection is a second one: checking that sshd presents the new key needs a
    new connection anyway, and nothing on it is ever protected by only the key that others can read.
    """
    lasting = replace(endpoint, first_host_key=None)
    if endpoint.first_host_key is None:
        return await connect(lasting)
    try:
        shell = await connect(replace(lasting, host_key=endpoint.first_host_key))
    except AnotherHost:
        return await connect(lasting)  # an earlier attempt of this creation has replaced it
    try:
        await _send(shell, host_key)
        deadline = time.monotonic() + _RELOAD_S
        while True:
            try:
                return await connect(lasting)
            except AnotherHost:  # sshd hasn't loaded the new key yet
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL_EVERY_S)
    finally:
        await shell.close()


def replace_script(host_key: str) -> str:
    """Return POSIX sh that installs the host key from its stdin. The script has only the public half, to check for."""
    mark_folder = MARK.rpartition("/")[0]
    return script("host_key_replace", HOST_KEY=HOST_KEY, MARK=MARK, MARK_FOLDER=mark_folder, PUBLIC=public_line(host_key))


async def _send(shell: Shell, host_key: str) -> None:
    try:
        done = await shell.run(replace_script(host_key), stdin=f"{host_key.strip()}\n".encode(), timeout_s=_SEND_S)
    except TimeoutError:
        raise SSHError(f"the new machine didn't install its host key within {_SEND_S:.0f} s") from None
    if done.exit_status != 0:
        reason = last_line(done.stderr, f"exit status {done.exit_status}")
        raise SSHError(f"the new machine can't install its host key: {reason}")
