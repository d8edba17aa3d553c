"""User-data of a cloud machine: a `#cloud-config` that cloud-init applies at the first boot. No I/O.

It sets our host key, admits one key as root and nothing else, blocks the metadata address (where every process could read the
user-data), and sets the time at which the machine powers itself off without a provider's token. Its only secret is the host key
of the first boot, which is replaced at the first login (host_keys.py); cloud-init's copies are deleted nevertheless.
Tasks are root and could unblock the metadata address, but what they would find there is of no use.

The base packages are installed last, because they take longest: SSH answers meanwhile, and the first command waits in `sshrc`
(which sshd runs before every command, sshd(8) "SSHRC") until they are installed.

Reference: https://cloudinit.readthedocs.io/en/latest/reference/modules.html
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from textwrap import indent

from gibil_bot.errors import UsageError
from gibil_bot.model import MachineSpec
from gibil_bot.scripts.archive import begin_functions
from gibil_bot.scripts.runtimes import TOOL_PATH, runtime_tool
from gibil_bot.scripts.templates import script, text
from gibil_bot.scripts.tool_settings import CA_FILE, tool_files
from gibil_bot.ssh.host_keys import HOST_KEY, MARK, public_line

LIMIT_BYTES = 32 * 1024
"""Largest user-data at Hetzner."""
EXPIRES_AT = "/etc/gibil/expires-at"
BASE_PACKAGES = ("git", "curl", "jq", "tmux", "ca-certificates")

_AUTHORIZED_KEY = re.compile(r"(ssh-|ecdsa-|sk-)[A-Za-z0-9@.-]+ [A-Za-z0-9+/=]+( [^\n\r]*)?")

# `AuthorizedKeysFile` is outside of /root, so that keys that the provider adds to /root/.ssh aren't used.
# `UsePAM yes`: cloud-init locks root's password, and without PAM, sshd rejects keys of locked accounts, too.
_SSHD_CONFIG = f"""\
AuthorizedKeysFile /etc/gibil/authorized_keys
AllowUsers root
PermitRootLogin prohibit-password
PubkeyAuthentication yes
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
HostKey {HOST_KEY}
MaxSessions 1000
MaxStartups 200:30:1000
ClientAliveInterval 15
ClientAliveCountMax 8
AllowTcpForwarding yes
GatewayPorts no
PrintMotd no
PrintLastLog no
UseDNS no
SetEnv LANG=C.UTF-8@ENVIRONMENT@
"""

_GUARD_UNIT = """\
[Unit]
Description=Power off at the expiry of this machine
After=cloud-init.service cloud-init-network.service

[Service]
ExecStart=/usr/local/sbin/gibil-guard
Restart=always
RestartSec=1

[Install]
WantedBy=multi-user.target
"""


def user_data(spec: MachineSpec, expires_at: datetime) -> str:
    """Return the `#cloud-config` of a machine. `expires_at` is by the machine's clock.

    Raises UsageError for invalid keys, and if it would exceed 32 KiB.
    """
    host_key = spec.first_host_key or spec.host_key
    public_line(spec.host_key)
    if not _AUTHORIZED_KEY.fullmatch(spec.authorized_key.strip()):
        raise UsageError("the authorized key of a machine must be one line in OpenSSH's public key format")
    environment = f" NODE_EXTRA_CA_CERTS={CA_FILE}" if spec.ca_bundle else ""
    programs = " ".join(name for name in BASE_PACKAGES if name != "ca-certificates")
    config = "".join(
        (
            "#cloud-config\n",
            f"# {spec.name}: a disposable machine of gibil-bot\n",
            "users: [{name: root, lock_passwd: true}]\n",
            "disable_root: false\n",
            "ssh_pwauth: false\n",
            "ssh_deletekeys: true\n",
            "ssh_publish_hostkeys: {enabled: false}\n",
            "no_ssh_fingerprints: true\n",
            "ssh: {emit_keys_to_console: false}\n",
            "ssh_keys:\n",
            "  ed25519_private: |\n",
            indent(f"{host_key.strip()}\n", "    "),
            f"  ed25519_public: {public_line(host_key)}\n",
            *_certificates(spec.ca_bundle),
            *_package_sources(spec.mirrors),
            "write_files:\n",
            _file("/etc/gibil/authorized_keys", f"{spec.authorized_key.strip()}\n", "0644"),
            _file(EXPIRES_AT, f"{math.ceil(expires_at.timestamp())}\n", "0644"),
            _file("/etc/ssh/sshd_config.d/00-gibil.conf", _SSHD_CONFIG.replace("@ENVIRONMENT@", environment), "0644"),
            *([] if spec.first_host_key else [_file(MARK, "from the beginning\n", "0644")]),
            _file("/etc/ssh/sshrc", script("machine_sshrc", MARK=MARK), "0644"),
            _file("/usr/local/sbin/gibil-guard", text("machine_guard"), "0755"),
            _file("/usr/local/sbin/gibil-base", script("machine_base", PROGRAMS=programs, BEGIN=begin_functions()), "0755"),
            _file("/etc/systemd/system/gibil-guard.service", _GUARD_UNIT, "0644"),
            *(_file(path, content, "0644") for path, content in tool_files(spec.ca_bundle, spec.mirrors).items()),
            _compressed_file(TOOL_PATH, runtime_tool(), "0755"),
            "runcmd:\n",
            "  - [systemctl, daemon-reload]\n",
            "  - [systemctl, enable, --now, --no-block, gibil-guard.service]\n",
            "  - [/usr/local/sbin/gibil-base]\n",
        )
    )
    if len(config.encode()) > LIMIT_BYTES:
        raise UsageError(f"the user-data of machine {spec.name} is larger than {LIMIT_BYTES} bytes; are its keys ed25519?")
    return config


def move_expiry_script(expires_at: datetime) -> str:
    """Return a POSIX sh script that sets a new expiry on a running machine, by its own clock, atomically."""
    return (
        f"printf '%s\\n' {math.ceil(expires_at.timestamp())} >{EXPIRES_AT}.new && mv -f {EXPIRES_AT}.new {EXPIRES_AT}"
        " || { echo 'gibil: cannot change the expiry of this machine' >&2; exit 1; }"
    )


def _file(path: str, content: str, mode: str) -> str:
    return f"  - path: {path}\n    permissions: '{mode}'\n    content: |\n{indent(content, '      ')}"


def _certificates(pem: str) -> list[str]:
    """Return the section of the module `ca_certs`, which adds them to the system's bundle."""
    return ["ca_certs:\n  trusted:\n    - |\n", indent(pem, "      ")] if pem else []


def _package_sources(mirrors: Mapping[str, str]) -> list[str]:
    url = mirrors.get("debian")
    return [f"apt: {{primary: [{{arches: [default], uri: {json.dumps(url)}}}]}}\n"] if url else []


def _compressed_file(path: str, content: str, mode: str) -> str:
    """As `_file`, for a large file: the user-data is limited, and cloud-init decompresses."""
    packed = base64.b64encode(gzip.compress(content.encode(), mtime=0)).decode()
    return f"  - path: {path}\n    permissions: '{mode}'\n    encoding: gz+b64\n    content: {packed}\n"
