"""`gibil-runtime` on a real machine with test mirrors: the newest matching version, unchanged, or a clear error."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import platform
import tarfile
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh
import pytest

from gibil_bot.model import Machine
from gibil_bot.scripts.runtimes import TOOL_PATH, runtime_tool
from gibil_bot.scripts.task_script import set_up_script
from tests.doubles.machines import Lodging, local_lodging, shared_folder
from tests.doubles.tools import needs

pytestmark = [pytest.mark.usefixtures("local_machines"), needs("curl")]

NODE_ARCH, GO_ARCH = {"x86_64": ("x64", "amd64"), "aarch64": ("arm64", "arm64")}.get(platform.machine(), ("", ""))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def archive(path: Path, programs: dict[str, str]) -> str:
    """Create a tar file as publishers do, with one top folder; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, script in programs.items():
            member = tarfile.TarInfo(f"top/bin/{name}")
            content = f"#!/bin/sh\n{script}\n".encode()
            member.size, member.mode = len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def publish_node(folder: Path, *versions: str) -> None:
    folder.mkdir()
    lines = ["version\tdate\tfiles", *(f"v{version}\t2026-01-01\tlinux-x64" for version in versions)]
    (folder / "index.tab").write_text("\n".join(lines) + "\n")
    for version in versions:
        name = f"node-v{version}-linux-{NODE_ARCH}.tar.gz"
        npm = 'echo "npm $*" >>/root/npm.log; printf "#!/bin/sh\\n" >/usr/local/bin/pnpm; chmod 755 /usr/local/bin/pnpm'
        made = archive(folder / f"v{version}" / name, {"node": f"echo v{version}", "npm": npm})
        (folder / f"v{version}" / "SHASUMS256.txt").write_text(f"{'0' * 64}  other.tar.gz\n{made}  {name}\n")


def publish_go(folder: Path, *versions: str) -> None:
    folder.mkdir()
    listed = []
    for version in versions:
        name = f"go{version}.linux-{GO_ARCH}.tar.gz"
        script = f"echo go version go{version} linux/{GO_ARCH}"
        made = archive(folder / name, {"go": script, "gofmt": ":"})
        other = {"filename": f"go{version}.src.tar.gz", "sha256": "0" * 64}
        mine = {"filename": name, "os": "linux", "arch": GO_ARCH, "version": f"go{version}", "sha256": made}
        listed.append({"version": f"go{version}", "stable": True, "files": [other, mine]})
    (folder / "index.html").write_text(json.dumps(listed, indent=1))


@pytest.fixture
async def machine(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Lodging, Machine, str]]:
    """Create a machine that has the tool, with the environment that points it to the test mirrors."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    publish_node(mirror / "node", "22.9.0", "22.10.1", "2.22.0", "220.0.0")
    publish_go(mirror / "go", "1.23.9", "1.23.10", "1.2.3")
    with serving(mirror) as port:
        async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
            machine = await lodging.provider.create(lodging.spec("m", egress_allow=(f"127.0.0.1:{port}",)))
            done = await lodging.run(machine, f"cat >{TOOL_PATH} && chmod 755 {TOOL_PATH}", input=runtime_tool())
            assert done.exit_status == 0, done.stderr
            base = f"http://127.0.0.1:{port}"
            yield lodging, machine, f"export NODEJS_ORG_MIRROR={base}/node GOLANG_MIRROR={base}/go; "


async def run(machine: tuple[Lodging, Machine, str], script: str) -> asyncssh.SSHCompletedProcess:
    lodging, where, mirrors = machine
    return await lodging.run(where, mirrors + script)


async def test_the_newest_matching_version_is_installed(machine: tuple[Lodging, Machine, str]) -> None:
    done = await run(machine, "gibil-runtime node 22 && node --version && npm --version && cat /root/npm.log")
    assert done.exit_status == 0, done.stderr
    assert str(done.stdout).splitlines()[:2] == ["v22.10.1", "npm --version"]
    done = await run(machine, "gibil-runtime go 1.23 && go version; gibil-runtime go 1.23.9 && go version")
    assert str(done.stdout).splitlines() == [f"go version go1.23.{last} linux/{GO_ARCH}" for last in (10, 9)]


async def test_a_repositorys_set_up_requests_missing_runtimes(machine: tuple[Lodging, Machine, str]) -> None:
    script = set_up_script({"node": "22", "go": "1.23"}, ())
    assert script is not None
    lodging, where, mirrors = machine
    done = await lodging.run(where, "sh -s", input=f"{mirrors}\n{script}")
    assert done.exit_status == 0, done.stderr
    assert "gibil: node 22.10.1 (/usr/local/bin/node)" in str(done.stdout)
    assert "gibil: go 1.23.10 (/usr/local/bin/go)" in str(done.stdout)


async def test_an_unavailable_version_is_reported_and_nothing_is_left(
    machine: tuple[Lodging, Machine, str], tmp_path: Path
) -> None:
    with (tmp_path / "mirror" / "node" / "v22.10.1" / f"node-v22.10.1-linux-{NODE_ARCH}.tar.gz").open("ab") as file:
        await asyncio.to_thread(file.write, b"\0")
    for words, output in (
        ("node 22", "wrong checksum (sha256)"),
        ("node 99", "there is no node 99"),
        ("go 2", "there is no go 2"),
        ("ruby 3", "can't install ruby"),
        ("node '22; id'", "is not a version"),
    ):
        done = await run(machine, f"gibil-runtime {words}")
        assert done.exit_status == 1
        assert str(done.stderr).strip().splitlines()[-1].startswith("gibil: ")
        assert output in str(done.stderr)
    left = await run(machine, "ls /opt/gibil /usr/local/bin/node /usr/local/bin/go; ls /tmp")
    assert "node" not in str(left.stdout)
