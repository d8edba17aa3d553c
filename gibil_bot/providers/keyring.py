"""Every machine's keys, derived from one secret file: no file per machine to lose, leak or clean up.

A crash between "forge" and "remember the key" cannot happen: whoever has the data directory can log in to every machine by
its name alone, also another process and also after a restart. The derivation is HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import hmac
import os
import secrets
from functools import lru_cache
from pathlib import Path

from gibil_bot.errors import ConfigurationError

_SIZE = 32


class Keyring:
    """The keys of the machines of one data directory. `keyring.key` is made on first use.

    Every method raises ConfigurationError when the file cannot be used: read by others, damaged, or not to be made.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "keyring.key"
        self._master = b""

    def __repr__(self) -> str:
        return f"Keyring({str(self._path.parent)!r})"

    def client_key(self, name: str) -> str:
        """The private key that logs in to the machine `name`: ed25519, OpenSSH PEM."""
        return _pair(self._secret(), "client", name)[0]

    def client_public(self, name: str) -> str:
        """Its public half, one line."""
        return _pair(self._secret(), "client", name)[1]

    def host_key(self, name: str) -> str:
        """The private key that the machine `name` shows: ed25519, OpenSSH PEM."""
        return _pair(self._secret(), "host", name)[0]

    def host_public(self, name: str) -> str:
        """Its public half, one line: what is pinned."""
        return _pair(self._secret(), "host", name)[1]

    def first_host_key(self, name: str) -> str:
        """The private key that the machine `name` may show until the first contact (first_contact.py): ed25519, OpenSSH PEM."""
        return _pair(self._secret(), "first host", name)[0]

    def derive(self, purpose: str, name: str) -> bytes:
        """32 secret bytes for another purpose of this data directory (ids that nobody can guess, an owner's label)."""
        return _derive(self._secret(), purpose, name)

    def _secret(self) -> bytes:
        if not self._master:
            try:
                self._master = _read(self._path) or _make(self._path)
            except OSError as error:
                problem = f"{self._path}: {error.strerror}; set GIBIL_DATA_DIR to a folder that can be written"
                raise ConfigurationError((problem,)) from None
        return self._master


class ProjectKeyring(Keyring):
    """The keys of the machines of one cloud project, derived from its token: whoever has the token can log in to them, also
    from another computer. That gives nobody more than they had, as the token alone lets its holder into every server (rescue
    system, console). A new token opens none of the machines that are alive then; they burn at their hour.

    `derive` stays with the data directory: two bots of one project must not take each other's runs for their own.
    """

    def __init__(self, data_dir: Path, token: str) -> None:
        super().__init__(data_dir)
        self._project = hmac.digest(b"gibil-bot: machines of a project", token.encode(), "sha256")

    def client_key(self, name: str) -> str:
        return _pair(self._project, "client", name)[0]

    def client_public(self, name: str) -> str:
        return _pair(self._project, "client", name)[1]

    def host_key(self, name: str) -> str:
        return _pair(self._project, "host", name)[0]

    def host_public(self, name: str) -> str:
        return _pair(self._project, "host", name)[1]

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
        raise ConfigurationError((f"{path}: others can read the key of all machines; run chmod 600 {path}",))
    if len(content) != _SIZE:
        raise ConfigurationError((f"{path}: damaged ({len(content)} bytes, not {_SIZE}); burn all machines and remove it",))
    return content


def _make(path: Path) -> bytes:
    """Whole or not at all, and one winner: `link` fails where the file exists, and then that one counts."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_SIZE))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        else:
            _sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)
    content = _read(path)
    if content is None:
        raise ConfigurationError((f"{path}: vanished as soon as it was made",))
    return content


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
