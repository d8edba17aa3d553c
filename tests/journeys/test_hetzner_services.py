"""Services of `.gibil.yml` on a cloud server are containers: real podman and docker start them, and tasks reach them."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path

import pytest

from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.planning.services import services_script
from tests.doubles.commandline import CommandLine
from tests.doubles.containers import save_images, why_no_containers
from tests.doubles.hetzner import HetznerDouble
from tests.doubles.hetzner_guests import LocalGuests
from tests.journeys.test_hetzner_for_real import double

__all__ = ["double"]

FILE = """
services:
  cache: {image: "redis:7"}
  asked: {image: "ada/asked:1", ports: [7100]}
  board: {image: "ghcr.io/ada/board:1", ports: ["17000:7000"], env: {WORD: "it's"}}
tasks:
  - {name: cache, run: "redis-cli -p 6379 set word spoken && redis-cli -p 6379 get word"}
  - {name: board, run: "redis-cli -p 17000 -a \\"it's\\" ping; redis-cli -p 17000 ping"}
"""
BROKEN = """
services: {broken: {image: "ada/broken:1", ports: [7001]}, never: {image: "redis:7", ports: ["7002:6379"]}}
tasks: [{name: none, run: "true"}]
"""

# It listens after half a second and has no health check, so gibil has to wait for the port.
BOARD = 'sleep 0.5; exec redis-server --port 7000 --protected-mode no --requirepass "$WORD"'
# docker runs health checks on its own, podman only when asked, because no systemd timer runs here.
INTERVAL_NS = 300_000_000
HEALTH = {"Test": ["CMD", "redis-cli", "-p", "7100", "ping"], "Interval": INTERVAL_NS}


@pytest.mark.skipif(why_no_containers() is not None, reason=why_no_containers() or "")
async def test_services_are_containers_that_only_tasks_can_reach(
    double: HetznerDouble, line: CommandLine, tmp_path: Path
) -> None:
    save_images(
        tmp_path / "images.tar",
        {
            "docker.io/library/redis:7": {"Cmd": ["redis-server", "--protected-mode", "no"]},
            "docker.io/ada/asked:1": {"Cmd": ["redis-server", "--port", "7100"], "Healthcheck": HEALTH},
            "ghcr.io/ada/board:1": {"Cmd": ["sh", "-c", BOARD]},
            "docker.io/ada/broken:1": {"Cmd": ["redis-server", "--port", "nowhere"]},
        },
    )
    assert isinstance(double.state.guests, LocalGuests)
    double.state.guests.containers = tmp_path / "images.tar"
    line.repository("project", {".gibil.yml": FILE})

    async def gibil(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(line.gibil, *arguments, HCLOUD_TOKEN=double.token, HCLOUD_ENDPOINT=double.endpoint)

    created = await gibil("create", "--name", "svc", "--repo", str(line.here / "project"), "--wait", "tasks")
    log = (await gibil("logs", "svc")).stdout
    assert created.returncode == 0, created.stderr + log
    assert re.search(r"=== services\n(.*\n)*gibil: cache listens on 127\.0\.0\.1:6379 after \d+ s\n", log)
    assert re.search(r"=== cache\nOK\nspoken\n(.*\n)*=== board\n(.*\n)*PONG\n(.*\n)*NOAUTH ", log), log
    await only_on_loopback(double.state.guests)

    # A service that exits at once: its log is shown, and no later service is started.
    async def run(script: str) -> tuple[int, str, str]:
        ran = json.loads((await gibil("run", "svc", script, "--json")).stdout)
        return ran["exit_code"], ran["stdout"], ran["stderr"]

    async def expect_broken() -> None:
        status, shown, log = await run(script_of(BROKEN))
        assert status == 1
        assert "FATAL CONFIG FILE ERROR" in log
        assert log.endswith("gibil: the service broken did not become healthy; its log is above\n")
        assert "never" not in shown

    await expect_broken()

    # The same with docker, which opens a published port before the service listens: it must be ready when reported.
    await double.state.guests.start_docker("svc")
    status, shown, log = await run(script_of(FILE) + 'redis-cli -p 17000 -a "it\'s" ping\n')
    assert (status, shown.splitlines()[-1]) == (0, "PONG"), log
    assert (await double.state.guests.run("svc", "docker ps -q | wc -l")).stdout == "3\n"
    await only_on_loopback(double.state.guests)
    await expect_broken()
    destroyed = await gibil("destroy", "svc")
    assert (destroyed.returncode, double.state.servers) == (0, {}), destroyed.stderr


def script_of(text: str) -> str:
    script = services_script(parse_repository_file(".gibil.yml", text.encode()).services)
    assert script is not None
    return script


async def only_on_loopback(guests: LocalGuests) -> None:
    listening = (await guests.run("svc", "ss -Hltn")).stdout
    for port in (6379, 7100, 17000):
        assert re.findall(rf"\S+:{port}\b", listening) == [f"127.0.0.1:{port}"]
