"""The bot and the command as people run them, with HCLOUD_TOKEN set: a server is made, boots, works, and is burned."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_guests import Image, LocalGuests, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import shared_folder

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}


@pytest.fixture
async def double(
    hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[HetznerDouble]:
    """With SSH on port 22, as the command expects it of Hetzner."""
    guests_at_22 = local_guests(tmp_path / "cloud", shared_folder(tmp_path_factory), hetzner_image, port=22)
    try:
        guests = await guests_at_22.__aenter__()
    except RuntimeError as error:
        pytest.skip(f"{error}: this box's own sshd has it")
    try:
        async with hetzner_double(State(guests=guests)) as double:
            yield double
    finally:
        await guests_at_22.__aexit__(None, None, None)


async def gibil(double: HetznerDouble, folder: Path, *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gibil_bot", *arguments),
        env={
            **ENVIRONMENT,
            "GIBIL_DATA_DIR": str(folder),
            "HCLOUD_TOKEN": double.token,
            "HCLOUD_ENDPOINT": double.endpoint,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_comment_becomes_a_check_run_by_way_of_a_cloud_server(double: HetznerDouble, tmp_path: Path) -> None:
    tasks = "tasks: [{name: where, run: 'grep 2 engine.py && test -e /etc/gibil/expires-at'}]\n"
    settings = {"HCLOUD_TOKEN": double.token, "HCLOUD_ENDPOINT": double.endpoint}
    async with journey(tmp_path, {"engine.py": "POWER = 1\n", ".gibil.yml": tasks}, settings=settings) as world:
        assert isinstance(double.state.guests, LocalGuests)
        double.state.guests.egress = (urlsplit(world.github.url).netloc,)
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        check = await world.closed_check(number)
        await world.told_everything()
        assert check.conclusion == "success", check.text or check.summary
        assert double.called("POST /servers") == 1
        assert double.state.servers == {}
        assert double.state.primary_ips == {}


async def test_the_pattern_forge_use_burn_on_a_cloud_server(double: HetznerDouble, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "word.txt").write_text("sent in a bundle\n")
    git = ["git", "-C", str(project), "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for words in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)

    async def ask(*arguments: str, status: int = 0) -> dict[str, Any]:
        got, out, shown = await gibil(double, tmp_path / "data", *arguments, "--json")
        assert got == status, shown + out
        answer: dict[str, Any] = json.loads(out)
        return answer

    made = await ask("create", "--name", "agent-task", "--ttl", "20", "--repo", str(project), "--wait", "ready")
    (server,) = double.state.servers.values()
    assert (made["provider"], made["server_id"], made["status"]) == ("hetzner", str(server["id"]), "ready")
    assert (made["ip"], made["port"], made["ttl"]) == (server["public_net"]["ipv4"]["ip"], 22, 20)
    assert (await ask("extend", "agent-task", "30m"))["ttl_minutes"] == 50
    ran = await ask("run", "agent-task", "cat /root/project/word.txt; cat /etc/gibil/expires-at >&2; exit 3", status=3)
    assert (ran["stdout"], ran["exit_code"]) == ("sent in a bundle\n", 3)
    assert abs(int(ran["stderr"]) - time.time() - 50 * 60) < 60
    assert (await ask("destroy", "agent-task"))["was_already_destroyed"] is False
    assert double.state.servers == {}
