"""Every machine's keys are derived from one secret, are the same in every process, and are readable by their user only."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gibil_bot.errors import ConfigurationError
from gibil_bot.providers.keyring import Keyring, ProjectKeyring
from tests.doubles.patience import patient


def test_keys_are_pairs_and_differ_by_purpose_and_machine(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    public = set()
    for name in ("a", "b"):
        client = asyncssh.import_private_key(keyring.client_key(name)).export_public_key().decode().strip()
        assert keyring.client_public(name) == client
        assert client.startswith("ssh-ed25519 ")
        public.add(client)
        for private in (keyring.host_key(name), keyring.first_host_key(name)):
            public.add(asyncssh.import_private_key(private).export_public_key().decode().strip())
    assert len(public) == 6
    assert len(keyring.derive("owner", "x")) == 32
    assert keyring.derive("owner", "x") != keyring.derive("owner", "y")


def test_the_derivation_is_hkdf(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path)
    derived = keyring.derive("purpose", "name")
    master = (tmp_path / "keyring.key").read_bytes()
    reference = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"gibil-bot 1\0purpose\0name").derive(master)
    assert derived == reference


def test_a_projects_keys_depend_only_on_its_token(tmp_path: Path) -> None:
    def keys(folder: str, token: str) -> list[str]:
        keyring = ProjectKeyring(tmp_path / folder, token)
        return [keyring.client_key("m"), keyring.host_key("m"), keyring.first_host_key("m")]

    assert keys("here", "token") == keys("there", "token")
    assert len({*keys("here", "token"), *keys("here", "another")}) == 6


def test_another_keyring_of_the_same_folder_has_the_same_keys(tmp_path: Path) -> None:
    assert Keyring(tmp_path).client_public("m") == Keyring(tmp_path).client_public("m")
    assert Keyring(tmp_path).client_public("m") != Keyring(tmp_path / "other").client_public("m")


def test_the_secret_file_is_private_and_the_secret_is_in_no_repr(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "data")
    assert not (tmp_path / "data").exists()  # the secret is generated at its first use
    keyring.client_key("m")
    path = tmp_path / "data" / "keyring.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["keyring.key"]
    assert path.read_bytes().hex() not in repr(keyring)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_secret_readable_by_others_is_rejected(tmp_path: Path, mode: int) -> None:
    Keyring(tmp_path).client_key("m")
    (tmp_path / "keyring.key").chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Keyring(tmp_path).client_key("m")


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33])
def test_a_corrupt_secret_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keyring.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="corrupt"):
        Keyring(tmp_path).client_key("m")


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"Not a directory|File exists"):
        Keyring(tmp_path / "file").client_key("m")


def test_the_key_may_be_in_another_file_which_is_created(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "shared.key"
    here, there = Keyring(tmp_path / "a", path), ProjectKeyring(tmp_path / "b", "token", path)
    assert here.derive("a", "b") == there.derive("a", "b")
    assert here.check_value() == there.check_value()
    assert (stat.S_IMODE(path.stat().st_mode), (tmp_path / "a").exists()) == (0o600, False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="GIBIL_KEYRING"):
        Keyring(tmp_path, tmp_path / "file" / "key").check_value()


def test_the_check_value_is_of_the_key_and_reveals_nothing_else_that_is_derived(tmp_path: Path) -> None:
    first, second = Keyring(tmp_path / "first"), Keyring(tmp_path / "second")
    assert re.fullmatch("[0-9a-f]{32}", first.check_value())
    assert first.check_value() != second.check_value()
    assert first.check_value() not in (first.machine_owner(), (tmp_path / "first" / "keyring.key").read_bytes().hex()[:32])


def test_processes_that_create_the_secret_at_the_same_time_agree(tmp_path: Path) -> None:
    data = tmp_path / "data"
    script = (
        "import sys; from pathlib import Path; from gibil_bot.providers.keyring import Keyring; "
        "print('ready', flush=True); sys.stdin.read(); print(Keyring(Path(sys.argv[1])).derive('a', 'b').hex())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
    answers = set()
    for process in processes:
        assert process.stdout is not None
        with process.stdout:
            answers.add(process.stdout.read())
        assert process.wait(patient(20)) == 0
    assert len(answers) == 1
    assert [file.name for file in data.iterdir()] == ["keyring.key"]
