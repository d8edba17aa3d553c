"""Every shell and Python example in the README runs unchanged."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

from gibil_bot.operator_secrets import parse_secrets
from gibil_bot.planning.plan import check_files
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.githttp import GitServer
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("readme")]

ROOT = Path(__file__).parent.parent.parent
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
PICTURES = {"mermaid"}

Run = Callable[["World", str], None]


class World:
    """A checkout in a separate folder, its installed programs in PATH, and a GitHub with `owner/project`."""

    def __init__(self, line: CommandLine, github: GitServer, checkout: Path) -> None:
        self.line, self.checkout, self.venv = line, checkout, checkout / ".venv"
        self.environment = line.environment(
            PATH=f"{self.venv}/bin:{os.environ['PATH']}",
            # The dependencies are those of the tests' environment, so that no network is needed.
            PIP_NO_BUILD_ISOLATION="0",  # pip inverts the value of this variable
            PIP_NO_DEPS="1",
            PIP_IGNORE_INSTALLED="1",
            GIBIL_GITHUB_URL=f"{github.url}/api/v3",
            # Only one file of the tests, because this tests the command and not the whole suite.
            PYTEST_ADDOPTS="-n 0 tests/unit/test_commands.py",
        )

    def install(self) -> None:
        """Install as the README says, for examples that use the installation."""
        if not (self.venv / "bin" / "gibil").exists():
            self.run("sh", ".ci/install", at=self.checkout)

    def run(self, *command: str, at: Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=at,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(300),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done


def install_and_demo(world: World, block: str) -> None:
    """Run in a checkout whose environment already has the dependencies; `.ci/fresh` runs the example on a fresh Debian."""
    done = world.run("bash", "-euc", block, at=world.checkout)
    assert "check run" in done.stdout
    assert "success" in done.stdout


def install_and_test(world: World, block: str) -> None:
    assert re.search(r"\d+ passed", world.run("bash", "-euc", block, at=world.checkout).stdout)


def create_run_destroy(world: World, block: str) -> None:
    """Run on local machines, with a git server in place of GitHub's."""
    world.install()
    done = world.run("bash", "-euc", block, at=world.line.here)
    assert "all is well" in done.stdout
    assert world.line.json("list") == []


def program(world: World, block: str) -> None:
    """Run the same as a program outside of the repository."""
    world.install()
    (world.line.here / "program.py").write_text(block)
    done = world.run(f"{world.venv}/bin/python", "program.py", at=world.line.here)
    assert done.stdout.startswith("0 ")
    assert "all is well" in done.stdout
    assert world.line.json("list") == []


def repository_file(_world: World, block: str) -> None:
    """Only check the file; its meaning is tested with the language."""
    assert check_files({".gibil.yml": block.encode()}) == ()


def workflow_file(_world: World, block: str) -> None:
    """Only check the file."""
    assert check_files({".gibil/workflows/upgrade.yml": block.encode()}) == ()


def secrets_file(_world: World, block: str) -> None:
    """Only read the file; the meaning of scopes is tested with the settings."""
    secrets, problems, is_flat = parse_secrets(yaml.safe_load(block))
    assert (problems, is_flat) == ([], False)
    assert sorted(secrets.of_repository("acme/api")) == ["DEPLOY_KEY", "NPM_TOKEN", "PYPI_MIRROR_TOKEN"]


def nginx(world: World, block: str) -> None:
    """Run the real nginx in front of a server that answers everything."""
    folder = world.line.folder / "nginx"
    folder.mkdir()
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    with answering() as upstream:
        port = free_port()
        (folder / "nginx.conf").write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error;\nevents {{}}\nhttp {{\naccess_log off;\n{temporary}"
            f"server {{\nlisten 127.0.0.1:{port};\n{block.replace('127.0.0.1:8080', upstream)}}}\n}}\n"
        )
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.skip("nginx is missing here: apt-get install nginx-light")
        passes_only_what_is_public([program, "-e", f"{folder}/error", "-c", f"{folder}/nginx.conf"], port, folder)


def caddy(world: World, block: str) -> None:
    """Run the real Caddy, without its certificates."""
    folder = world.line.folder / "caddy"
    folder.mkdir()
    if shutil.which("caddy") is None:
        pytest.skip("caddy is missing here: apt-get install caddy")
    with answering() as upstream:
        port = free_port()
        ours = block.replace("bot.example.com", f"http://127.0.0.1:{port}").replace("127.0.0.1:8080", upstream)
        (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tauto_https off\n}}\n{ours}")
        passes_only_what_is_public(["caddy", "run", "--config", f"{folder}/Caddyfile"], port, folder)


def passes_only_what_is_public(command: list[str], port: int, folder: Path) -> None:
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "PATH": os.environ["PATH"]}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=home, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + patient(20)
        while True:
            try:
                found = {path: httpx.get(f"http://127.0.0.1:{port}{path}", timeout=patient(10)).status_code for path in PATHS}
                break
            except httpx.ConnectError:  # another process starts: there is no event to wait for
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.02)
        assert found == PATHS
    finally:
        process.terminate()
        process.wait(timeout=patient(20))


PATHS = {
    "/webhook": 200,
    "/runs/0123456789abcdef": 200,
    "/": 404,
    "/healthz": 404,
    "/metrics": 404,
    "/webhooks": 404,
    "/runs": 404,
}


@contextlib.contextmanager
def answering() -> Iterator[str]:
    """Start a server that answers every GET; yield its address."""

    class Yes(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Yes)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


HOW: dict[str, Run] = {
    "sh .ci/install && .venv/bin/gibil demo": install_and_demo,
    "sh .ci/install test && .venv/bin/pytest": install_and_test,
    "gibil create --name box --repo owner/project": create_run_destroy,
    "with gibil.create(": program,
    "# .gibil.yml": repository_file,
    "# .gibil/workflows/upgrade.yml": workflow_file,
    "global: {": secrets_file,
    "# nginx": nginx,
    "# Caddy": caddy,
}
"""The runner of each block, by a text that only this block contains."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[World]:
    with command_line(tmp_path_factory.mktemp("readme"), shared_folder(tmp_path_factory), own_daemon=True) as line:
        checkout = line.folder / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", "build", "dist")
        shutil.copytree(ROOT, checkout, symlinks=True, ignore=ignored)
        prepare(checkout / ".venv")
        work = line.repository(
            "work", {"Makefile": "test:\n\t@echo all is well\n", ".gibil.yml": "tasks: [{name: set-up, run: make test}]\n"}
        )
        (line.folder / "served" / "owner").mkdir(parents=True)
        line.git(line.folder, "clone", "-q", "--bare", str(work), "served/owner/project.git")
        with GitServer(line.folder / "served") as github:
            yield World(line, github, checkout)


def prepare(venv: Path) -> None:
    """Create a virtual environment that can import this one's packages, and build with them."""
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=patient(120))
    packages = next(venv.glob("lib/python3*/site-packages"))
    for bundled in ("setuptools", "pkg_resources", "_distutils_hack"):  # Python 3.11's own copy, which is too old
        shutil.rmtree(packages / bundled, ignore_errors=True)
    for path in (*packages.glob("setuptools-*"), *packages.glob("distutils-precedence.pth")):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    here = next(path for path in sys.path if path.endswith("site-packages") and Path(path, "setuptools").is_dir())
    (packages / "dependencies.pth").write_text(f"{here}\n")
    pytest_there = venv / "bin" / "pytest"
    pytest_there.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m pytest "$@"\n')
    pytest_there.chmod(0o755)


def test_every_block_has_a_runner() -> None:
    for language, block in BLOCKS:
        keys = [key for key in HOW if key in block]
        assert len(keys) == (0 if language in PICTURES else 1), f"add a runner for this block to HOW:\n{block}"
    for key in HOW:
        assert sum(key in block for _, block in BLOCKS) == 1, f"{key!r} is in no block"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("key", HOW)
def test_an_example_works_unchanged(key: str, world: World) -> None:
    (block,) = [block for _, block in BLOCKS if key in block]
    if "make test" in block and shutil.which("make") is None:  # machines have the programs of their host
        pytest.skip("make is missing here: apt-get install make")
    HOW[key](world, block)


def test_type_checkers_find_the_package_after_an_editable_install(world: World) -> None:
    world.install()
    command = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={world.venv}/bin/python"]
    program = "import gibil_bot, gibil; reveal_type(gibil_bot.__version__); reveal_type(gibil.Result.ok)"
    done = subprocess.run([*command, "-c", program], cwd=world.line.here, capture_output=True, text=True, timeout=patient(300))
    assert re.search(r'Revealed type is "(builtins\.)?str"', done.stdout), done.stdout + done.stderr
    assert "gibil_bot.sdk.results.Result) -> " in done.stdout, done.stdout + done.stderr
    world.run(f"{world.venv}/bin/python", "-c", "import gibil; gibil.create", at=world.line.here)
