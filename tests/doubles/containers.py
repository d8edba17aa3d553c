"""Container images made of this host's programs and their libraries, in one shared layer, because no registry can be reached.

The form is that of `docker save` (https://github.com/moby/docker-image-spec), which podman and docker load.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.doubles.hetzner_computer import control_groups

REDIS = "redis-check-rdb"
"""Debian's redis-server is this program under another name; redis-tools contains it."""


def why_no_containers() -> str | None:
    """Return what this host lacks to run images of Redis, in one line."""
    wanted = {
        **{program: program for program in ("podman", "crun", "iptables")},
        **{"dockerd": "docker.io", REDIS: "redis-tools", "redis-cli": "redis-tools"},
    }
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # which an ordinary user's PATH doesn't contain
    missing = {package for program, package in wanted.items() if shutil.which(program, path=path) is None}
    if not any(Path(folder, "podman", "netavark").exists() for folder in ("/usr/lib", "/usr/libexec")):
        missing.add("netavark")
    if missing:
        return f"containers are not run here: apt-get install {' '.join(sorted(missing))}"
    return None if control_groups() is not None else "containers are not run here: this box has no cgroup2 that can be written"


def save_images(path: Path, images: Mapping[str, Mapping[str, Any]]) -> None:
    """`images`: name → its `config` (Cmd, Healthcheck …). All contain `redis-server`, `redis-cli`, `sh` and `sleep`."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w", dereference=True) as tar:
        for folder in ("data", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
        programs = {"redis-server": REDIS, "redis-cli": "redis-cli", "sh": "sh", "sleep": "sleep"}
        found = {name: _program(program) for name, program in programs.items()}
        for name, program in found.items():
            tar.add(program, f"bin/{name}")
        for library in sorted({library for program in found.values() for library in _libraries(program)}):
            tar.add(library, library.lstrip("/"))
    content = layer.getvalue()
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    manifest = []
    with tarfile.open(path, "w") as tar:
        _add(tar, "layer.tar", content)
        for number, (name, config) in enumerate(images.items()):
            described = {
                "architecture": _architecture(),
                "os": "linux",
                "config": {"Env": ["PATH=/bin"], "WorkingDir": "/data", **config},
                "rootfs": {"type": "layers", "diff_ids": [digest]},
                "history": [{"created_by": "tests"}],
            }
            _add(tar, f"{number}.json", json.dumps(described).encode())
            manifest.append({"Config": f"{number}.json", "RepoTags": [name], "Layers": ["layer.tar"]})
        _add(tar, "manifest.json", json.dumps(manifest).encode())


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, name
    return found


def _libraries(program: str) -> list[str]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    return [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
