"""The user-data of a cloud machine: equal to the golden file, and with the promised properties."""

from __future__ import annotations

import base64
import gzip
import re
import shutil
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from gibil_bot.errors import UsageError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.cloudinit import EXPIRES_AT, LIMIT_BYTES, move_expiry_script, user_data
from gibil_bot.providers.hetzner.project import new_pair
from gibil_bot.ssh.host_keys import MARK
from tests.doubles.patience import patient
from tests.doubles.programs import add_programs, write_program

GOLDEN = Path(__file__).parent / "golden" / "user-data.yml"
AT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
CLIENT, HOST, FIRST = new_pair(), new_pair(), new_pair()


def spec(**more: Any) -> MachineSpec:
    words: dict[str, Any] = {"name": "ada", "owner": "tests", "ttl_s": 600, "authorized_key": CLIENT[1]}
    return MachineSpec(**{**words, "host_key": HOST[0], "first_host_key": FIRST[0], **more})


def files() -> dict[str, dict[str, str]]:
    found = {each["path"]: each for each in yaml.safe_load(user_data(spec(), AT))["write_files"]}
    for each in found.values():
        if each.get("encoding") == "gz+b64":
            each["content"] = gzip.decompress(base64.b64decode(each["content"])).decode()
    return found


def test_the_user_data_equals_the_golden_file() -> None:
    text = user_data(spec(), AT).replace(FIRST[1], "<FIRST HOST PUBLIC>").replace(CLIENT[1], "<CLIENT PUBLIC>")
    for line in FIRST[0].strip().splitlines()[1:-1]:
        text = text.replace(f"    {line}\n", "")
    text = re.sub(r"(encoding: gz\+b64\n    content: )\S+", r"\1<COMPRESSED>", text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize("replaced", [True, False])
def test_the_user_data_has_the_first_host_key_and_no_other_secret(replaced: bool) -> None:
    shown = FIRST if replaced else HOST
    text = user_data(spec(first_host_key=FIRST[0] if replaced else ""), AT)
    config = yaml.safe_load(text)
    assert config["ssh_keys"] == {"ed25519_private": shown[0], "ed25519_public": shown[1]}
    assert config["ssh_deletekeys"] is True
    assert text.count("PRIVATE KEY") == 2  # its first and its last line
    assert CLIENT[0].splitlines()[2] not in text
    # If the key isn't replaced, the first command is already the user's, and has to wait for the base packages.
    assert (MARK in {each["path"] for each in config["write_files"]}) is not replaced


def test_sshd_reads_only_gibils_authorized_keys() -> None:
    assert files()["/etc/gibil/authorized_keys"]["content"] == f"{CLIENT[1]}\n"
    config = files()["/etc/ssh/sshd_config.d/00-gibil.conf"]["content"].splitlines()
    assert "AuthorizedKeysFile /etc/gibil/authorized_keys" in config
    assert {"PasswordAuthentication no", "PermitRootLogin prohibit-password", "UsePAM yes"} <= set(config)


def test_debians_cloud_init_accepts_the_user_data(tmp_path: Path) -> None:
    program = shutil.which("cloud-init")
    if program is None:
        pytest.skip("cloud-init is not installed here: apt-get install cloud-init")
    path = tmp_path / "user-data"
    path.write_text(user_data(spec(), AT))
    done = subprocess.run([program, "schema", "--config-file", str(path)], capture_output=True, text=True, timeout=patient(60))
    if "Permission denied" in done.stderr:
        pytest.skip(f"cloud-init does not run for this user: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout


@pytest.mark.parametrize(
    "path", ["/usr/local/sbin/gibil-guard", "/usr/local/sbin/gibil-base", "/usr/local/bin/gibil-runtime", "/etc/ssh/sshrc"]
)
def test_its_scripts_are_posix_sh(path: str) -> None:
    content = files()[path]["content"]
    done = subprocess.run(["sh", "-n"], input=content, capture_output=True, text=True, timeout=patient(20))
    assert done.returncode == 0, done.stderr
    assert content.startswith("#!/bin/sh\n")


@pytest.mark.parametrize(
    "wrong",
    [
        {"authorized_key": "nonsense"},
        {"authorized_key": f"{CLIENT[1]}\nroot: yes"},
        {"authorized_key": 'command="id" ' + CLIENT[1]},
        {"host_key": "nonsense"},
        {"host_key": HOST[1]},
        {"first_host_key": "nonsense"},
        {"authorized_key": "ssh-rsa " + "A" * LIMIT_BYTES},
    ],
)
def test_invalid_and_oversized_keys_are_rejected(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="key"):
        user_data(spec(**wrong), AT)


def test_a_missing_base_package_does_not_block_the_others(tmp_path: Path) -> None:
    for place in ("cloud", "ssh", "bin", "run"):
        (tmp_path / place).mkdir()
    (tmp_path / "ssh" / "sshrc").touch()
    script = files()["/usr/local/sbin/gibil-base"]["content"].replace("/var/lib/cloud", str(tmp_path / "cloud"))
    script = script.replace("/etc/ssh/", f"{tmp_path}/ssh/").replace("/run/", f"{tmp_path}/run/")
    script = script.replace("/etc/ssl/certs/ca-certificates.crt", "/dev/null")
    add_programs(tmp_path / "bin", "rm", "sh")
    write_program(tmp_path / "bin" / "apt-get", f'echo "$*" >>{tmp_path}/asked\ncase "$*" in *tmux*) exit 100 ;; esac')
    subprocess.run(
        [shutil.which("sh") or "sh", "-c", script], env={"PATH": str(tmp_path / "bin")}, timeout=patient(20), check=False
    )
    asked = [line.rpartition("install ")[2] for line in (tmp_path / "asked").read_text().splitlines()[1:]]
    assert asked == ["git curl jq tmux ca-certificates", "git", "curl", "jq", "tmux", "ca-certificates"]
    assert (tmp_path / "run" / "gibil-base").exists(), "the first command may continue"
    assert not (tmp_path / "ssh" / "sshrc").exists()


class Guard:
    """The real script, with a `systemctl`, an `ip` and a `sleep` that only record their arguments."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expiry = folder / "expires-at"
        self.log = folder / "log"
        self.log.touch()
        stop = 'kill "$PPID"'
        for name, then in (("systemctl", stop), ("ip", ":"), ("sleep", stop)):
            program = folder / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >>{self.log}\n{then}\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        self.script = folder / "guard"
        self.script.write_text(files()["/usr/local/sbin/gibil-guard"]["content"].replace(EXPIRES_AT, str(self.expiry)))

    def run(self) -> list[str]:
        """Run one round; return the recorded calls."""
        path = f"{self.folder}:/usr/sbin:/usr/bin:/bin"
        subprocess.run(["sh", str(self.script)], env={"PATH": path}, capture_output=True, timeout=patient(20))
        return self.log.read_text().splitlines()


@pytest.mark.parametrize(("after", "then"), [(-1, "systemctl poweroff"), (3600, "sleep 2")])
def test_the_machine_powers_off_at_its_expiry(tmp_path: Path, after: int, then: str) -> None:
    guard = Guard(tmp_path)
    guard.expiry.write_text(f"{int(datetime.now(UTC).timestamp()) + after}\n")
    assert guard.run() == ["ip route replace blackhole 169.254.169.254/32", then]


@pytest.mark.parametrize("damaged", ["", "soon\n", "-5\n", None])
def test_an_unreadable_expiry_counts_as_expired(tmp_path: Path, damaged: str | None) -> None:
    guard = Guard(tmp_path)
    if damaged is not None:
        guard.expiry.write_text(damaged)
    assert guard.run()[-1] == "systemctl poweroff"


def test_the_expiry_is_replaced_atomically(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    guard.expiry.write_text("1\n")
    later = datetime.now(UTC) + timedelta(hours=2)
    script = move_expiry_script(later).replace(EXPIRES_AT, str(guard.expiry))
    assert subprocess.run(["sh", "-c", script], capture_output=True, timeout=patient(20)).returncode == 0
    assert 0 <= int(guard.expiry.read_text()) - later.timestamp() < 1
    assert guard.run()[-1] == "sleep 2"


def test_an_expiry_that_cannot_be_moved_is_reported(tmp_path: Path) -> None:
    script = move_expiry_script(AT).replace(EXPIRES_AT, str(tmp_path / "missing" / "expires-at"))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=patient(20))
    assert done.returncode == 1
    assert "gibil: cannot change the expiry of this machine" in done.stderr


def test_the_operators_certificates_and_mirrors_are_on_the_machine() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
    config = yaml.safe_load(
        user_data(spec(ca_bundle=pem, mirrors={"debian": "http://m.example/d", "npm": "http://m.example/n"}), AT)
    )
    assert config["ca_certs"] == {"trusted": [pem]}
    assert config["apt"] == {"primary": [{"arches": ["default"], "uri": "http://m.example/d"}]}
    written = {each["path"]: each["content"] for each in config["write_files"]}
    assert written["/root/.npmrc"] == "registry=http://m.example/n\n"
    assert "SetEnv LANG=C.UTF-8 NODE_EXTRA_CA_CERTS=/etc/gibil/ca.pem\n" in written["/etc/ssh/sshd_config.d/00-gibil.conf"]
