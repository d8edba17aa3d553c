"""The two servers that are compared: `gibil serve`, and Probot's with an empty handler."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.benchmarks.peers import Peers
from tests.benchmarks.processes import client_cpus, server_cpus, started, wait_until

ROOT = Path(__file__).parents[2]
SECRET = "a secret of this benchmark"
READY_WITHIN_S = 30.0
LOAD_WITHIN_S = 120.0

PROBOT_APP = """
import { run } from "probot";
run((app) => { app.on("issue_comment", async () => {}); });
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that responds."""

    name: str
    pid: int
    port: int
    webhook: str
    ready_s: float
    """Seconds from the start of its process until the response to the first health request."""


def private_key() -> str:
    """Return an App's key, as GitHub generates them."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get_status(port: int, path: str) -> int:
    """Return the status, or 0 if there is no response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()


def health(port: int) -> dict[str, int]:
    """Return the counts of `/healthz`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/healthz")
        found: dict[str, int] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


def bare_environment(home: Path) -> dict[str, str]:
    """Return a service's environment, without settings of the user who runs the benchmark."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}


@contextlib.contextmanager
def gibil_server(folder: Path, key: str, github_url: str | None = None, **more: str) -> Iterator[Server]:
    """Run `gibil serve` with a data directory in `folder`. Without `github_url`, GitHub is a closed port."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = bare_environment(folder) | {
        "GIBIL_DATA_DIR": str(folder / "data"),
        "GIBIL_GITHUB_URL": github_url or f"http://127.0.0.1:{free_port()}",
        "GIBIL_GITHUB_APP_ID": "1",
        "GIBIL_GITHUB_PRIVATE_KEY": key,
        "GIBIL_GITHUB_WEBHOOK_SECRET": SECRET,
        "GIBIL_PORT": str(port),
        **more,
    }
    # -P: nothing is imported from the folder in which the benchmark is started; the package is the installed one.
    command = [sys.executable, "-P", "-m", "gibil_bot", "serve"]
    with _server("gibil", command, environment, folder, port, "/healthz", "/webhook") as server:
        yield server


@contextlib.contextmanager
def probot_server(folder: Path, key: str, peers: Peers, log_level: str = "info") -> Iterator[Server]:
    """Run Probot's `run()` in production mode; its default log level is `info`."""
    home = peers.probot()
    (home / "app.mjs").write_text(PROBOT_APP)
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    environment = bare_environment(folder) | {
        "NODE_ENV": "production",
        "LOG_LEVEL": log_level,
        "APP_ID": "1",
        "PRIVATE_KEY": key,
        "WEBHOOK_SECRET": SECRET,
        "HOST": "127.0.0.1",
        "PORT": str(port),
    }
    with _server("probot", ["node", "app.mjs"], environment, home, port, "/ping", "/api/github/webhooks") as server:
        yield server


@contextlib.contextmanager
def _server(
    name: str, command: list[str], environment: dict[str, str], folder: Path, port: int, health: str, webhook: str
) -> Iterator[Server]:
    log = Path(environment["HOME"]) / f"{name}.log"
    begun = time.perf_counter()
    with started(command, environment, folder, log, server_cpus()) as process:

        def ready() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}: {log.read_text()[-2000:]}")
            return get_status(port, health) == 200

        wait_until(f"{name} answering", ready, within_s=READY_WITHIN_S)
        yield Server(name=name, pid=process.pid, port=port, webhook=webhook, ready_s=time.perf_counter() - begun)


def post_load(server: Server, clients: int, deliveries: int) -> dict[str, float]:
    """Run the load generator against the server. Raises RuntimeError unless every delivery was acknowledged."""
    command = [
        sys.executable, "-m", "tests.benchmarks.load", "--port", str(server.port), "--path", server.webhook,
        "--secret-env", "LOAD_SECRET", "--clients", str(clients), "--deliveries", str(deliveries),
    ]  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "LOAD_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    load = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    os.sched_setaffinity(load.pid, client_cpus())
    try:
        output, _ = load.communicate(timeout=LOAD_WITHIN_S)
    finally:
        load.kill()
        load.wait()
    if load.returncode != 0:
        raise RuntimeError(f"the load on {server.name} failed with {load.returncode}")
    answer: dict[str, float] = json.loads(output)
    statuses = json.loads(output)["statuses"]
    if sum(count for status, count in statuses.items() if status in ("200", "202")) != deliveries:
        raise RuntimeError(f"{server.name} answered {statuses} to {deliveries} deliveries")
    return answer


def stored_deliveries(data_dir: Path) -> int:
    """Return the number of deliveries in the bot's database."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir / 'gibil.db'}?mode=ro", uri=True)) as db:
        return int(db.execute("select count(*) from deliveries").fetchone()[0])
