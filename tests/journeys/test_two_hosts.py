"""Two bots with separate data directories on one PostgreSQL: the output of the other one's run, and a bot with another key."""

from __future__ import annotations

import secrets
from pathlib import Path

import httpx2
import pytest
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client

from gibil_bot.access_tokens import AccessTokens
from tests.doubles.agent import opened
from tests.doubles.bot import REPOSITORY
from tests.doubles.bots import several_bots
from tests.doubles.postgres import Cluster

WORKFLOW = "on: {command: test}\ntasks:\n  - {name: only, run: echo printed on the machine}\n"


@pytest.mark.usefixtures("local_machines")
async def test_each_of_two_hosts_shows_the_output_of_a_run_and_a_third_key_is_rejected(
    tmp_path: Path, postgres: Cluster
) -> None:
    database_url = postgres.url(await postgres.create_database())
    async with several_bots(tmp_path, database_url, count=2, workflows={"test.yml": WORKFLOW}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        check = await world.journeys[0].closed_check()
        assert check.conclusion == "success", world.log()
        run_id = check.external_id
        assert sum((bot.data_dir / "logs" / run_id).exists() for bot in world.bots) == 1
        for bot in world.bots:
            token = AccessTokens(bot.data_dir).create("ada", ("runs:read",), 3600)[1]
            headers = {"Authorization": f"Bearer {token}"}
            async with httpx2.AsyncClient(headers=headers, trust_env=False) as http:
                async with streamable_http_client(f"{bot.url}/mcp", http_client=http) as (source, sink):
                    async with ClientSession(source, sink) as session:
                        await session.initialize()
                        log = opened(await session.call_tool("run_logs", {"run_id": run_id, "task": 0, "offset": 0}))[0]
            assert "printed on the machine" in log["text"], world.log()
            assert log["remark"] == ""

        other = world.bots[1]
        await other.stop()
        (other.data_dir / "keyring.key").write_bytes(secrets.token_bytes(32))
        with pytest.raises(
            RuntimeError, match=r"keyring\.key: this database can't be used with it, because the bots on .* have"
        ):
            await other.start()
        assert await other.process.ended() == 6 if other.process is not None else False
        (other.data_dir / "keyring.key").write_bytes((world.bots[0].data_dir / "keyring.key").read_bytes())
        await other.start()
