"""The keys of all machines, derived from one secret file, so there is no file per machine to lose, leak or clean up.

Any process with the data directory can log in to every machine by its name alone, also after a crash or restart. The derivation
is HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from gibil_bot.durable_files import create_once
from gibil_bot.errors import ConfigurationError

_SIZE = 32


class Keyring:
    """The keys of the machines of one data directory. `path`, by default `keyring.key` in it, is created on first use.

    Bots that share a database have the same key. Every method raises ConfigurationError when the file can't be used: readable
    by others, corrupt, or impossible to create.
    """

    def __init__(self, data_dir: Path, path: Path | None = None) -> None:
        self.path = path or data_dir / "keyring.key"
        self._setting = "GIBIL_DATA_DIR to a writable directory" if path is None else "GIBIL_KEYRING to a file in one"
        self._master = b""

    def __repr__(self) -> str:
        return f"Keyring({str(self.path.parent)!r})"

    def client_key(self, name: str) -> str:
        """Return the private key that logs in to the machine `name`: ed25519, OpenSSH PEM."""
        return _pair(self._secret(), "client", name)[0]

    def client_public(self, name: str) -> str:
        """Return its public half, one line."""
        return _pair(self._secret(), "client", name)[1]

    def host_key(self, name: str) -> str:
        """Return the host key (private) of the machine `name`: ed25519, OpenSSH PEM."""
        return _pair(self._secret(), "host", name)[0]

    def first_host_key(self, name: str) -> str:
        """Return the host key that the machine `name` boots with until it is replaced (host_keys.py)."""
        return _pair(self._secret(), "first host", name)[0]

    def derive(self, purpose: str, name: str) -> bytes:
        """Return 32 secret bytes for another purpose of this data directory."""
        return _derive(self._secret(), purpose, name)

    def machine_owner(self) -> str:
        """Return the owner of this data directory's machines: 16 hex digits, a valid label at every provider."""
        return hashlib.sha256(b"owner of machines" + self.derive("owner", "machines")).hexdigest()[:16]

    def check_value(self) -> str:
        """Return 32 hex digits by which another process recognizes the same key."""
        return self.derive("check value", "keyring").hex()[:32]

    def run_id(self, digest: bytes, distinction: str) -> str:
        """Return the id of a run from the digest of its delivery's body: 16 hex digits that can't be guessed.

        Not from the delivery's GUID or its event. GitHub signs the body alone: a recorded request is accepted under any GUID,
        and must not queue the same runs twice. The event isn't enough either, because two real clicks on Re-run mean equal
        events. The key makes the ids unguessable: they are the only protection of a run's page.
        """
        return hmac.new(self.derive("run ids", ""), digest + b"\0" + distinction.encode(), hashlib.sha256).hexdigest()[:16]

    def _secret(self) -> bytes:
        if not self._master:
            try:
                self._master = _read(self.path) or _make(self.path)
            except OSError as error:
                problem = f"{self.path}: {error.strerror}; set {self._setting}"
                raise ConfigurationError((problem,)) from None
        return self._master


class ProjectKeyring(Keyring):
    """The keys of the machines of one cloud project, derived from its token, so they work from every host with that token.

    This gives no additional access: the token alone lets its holder into every server (rescue system, console). A new token
    can't log in to machines that exist then; they are deleted when they expire.

    `derive` uses the data directory's secret: two bots of one project must not mistake each other's runs for their own.
    """

    def __init__(self, data_dir: Path, token: str, path: Path | None = None) -> None:
        super().__init__(data_dir, path)
        self._project = hmac.digest(b"gibil-bot: machines of a project", token.encode(), "sha256")

    def client_key(self, name: str) -> str:
        return _pair(self._project, "client", name)[0]

    def client_public(self, name: str) -> str:
        return _pair(self._project, "client", name)[1]

    def host_key(self, name: str) -> str:
        return _pair(self._project, "host", name)[0]

    def first_host_key(self, name: str) -> str:
        return _pair(self._project, "first host", name)[0]


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_SIZE + 1)
    except FileNotFoundError:
        return None
    if mode & 0o077:
        raise ConfigurationError((f"{path}: other users can read the key of all machines; run chmod 600 {path}",))
    if len(content) != _SIZE:
        raise ConfigurationError(
            (f"{path}: file is corrupt ({len(content)} bytes, expected {_SIZE}); destroy all machines, then delete it",)
        )
    return content


def _make(path: Path) -> bytes:
    """Create the file and return its content. If it exists meanwhile, that one is used."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_once(path, secrets.token_bytes(_SIZE))
    content = _read(path)
    if content is None:
        raise ConfigurationError((f"{path}: the file was deleted right after its creation; try again",))
    return content


@lru_cache(maxsize=256)
def _pair(master: bytes, purpose: str, name: str) -> tuple[str, str]:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # 30 ms of import
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.from_private_bytes(_derive(master, f"machine {purpose} key", name))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return private, public


def _derive(master: bytes, purpose: str, name: str) -> bytes:
    """HKDF-SHA256 (RFC 5869) with an empty salt and one block of output."""
    extracted = hmac.digest(bytes(32), master, "sha256")
    context = f"gibil-bot 1\0{purpose}\0{name}".encode()
    return hmac.digest(extracted, context + b"\x01", "sha256")
