"""Services of a `.gibil.yml` on a cloud server are containers: real podman starts them there, and tasks reach them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.planning.services import services_script
from tests.doubles.containers import save_images, why_no_containers
from tests.doubles.hetzner import HetznerDouble
from tests.doubles.hetzner_guests import LocalGuests
from tests.journeys.test_hetzner_for_real import double, gibil

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

# It takes half a second until it listens, and says nothing of its health: it has to be waited for.
BOARD = 'sleep 0.5; exec redis-server --port 7000 --protected-mode no --requirepass "$WORD"'
# Nobody waits half an hour for it: it is asked.
HEALTH = {"Test": ["CMD", "redis-cli", "-p", "7100", "ping"], "Interval": 1800 * 10**9}


@pytest.mark.skipif(why_no_containers() is not None, reason=why_no_containers() or "")
async def test_services_are_containers_that_tasks_reach_and_nobody_else_does(double: HetznerDouble, tmp_path: Path) -> None:
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
    project = tmp_path / "project"
    project.mkdir()
    (project / ".gibil.yml").write_text(FILE)
    git = ["git", "-C", str(project), "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for words in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)

    data = tmp_path / "data"
    status, _out, shown = await gibil(double, data, "create", "--name", "svc", "--repo", str(project), "--wait", "tasks")
    _, log, _ = await gibil(double, data, "logs", "svc")
    assert status == 0, shown + log
    assert re.search(r"=== services\n(.*\n)*gibil: cache is there on 127\.0\.0\.1:6379 after \d+ s\n", log)
    assert re.search(r"=== cache\nOK\nspoken\n(.*\n)*=== board\n(.*\n)*PONG\n(.*\n)*NOAUTH ", log), log
    listening = (await double.state.guests.run("svc", "ss -Hltn")).stdout
    for port in (6379, 7100, 17000):
        assert re.findall(rf"\S+:{port}\b", listening) == [f"127.0.0.1:{port}"]

    # One that ends at once: its log is shown, and nothing behind it is started.
    script = services_script(parse_repository_file(".gibil.yml", BROKEN.encode()).services)
    assert script is not None
    status, out, _ = await gibil(double, data, "run", "svc", script, "--json")
    ran = json.loads(out)
    assert (status, ran["exit_code"]) == (1, 1)
    assert "FATAL CONFIG FILE ERROR" in ran["stderr"]
    assert ran["stderr"].endswith("gibil: the service broken does not get healthy; its log is above\n")
    assert "never" not in ran["stdout"]
    status, _out, shown = await gibil(double, data, "destroy", "svc")
    assert (status, double.state.servers) == (0, {}), shown
