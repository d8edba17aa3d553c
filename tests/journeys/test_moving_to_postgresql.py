"""A bot with a run in progress moves from SQLite to PostgreSQL, and the run continues on its machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from pathlib import Path

import asyncpg
import pytest

from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster
from tests.doubles.prefork import Forked

pytestmark = pytest.mark.usefixtures("local_machines")

WORKFLOW = """\
name: Count
on: {command: count}
tasks:
  - name: first
    run: |
      echo once >> /root/first
      test "$(wc -l < /root/first)" = 1
      for i in $(seq 1 30); do echo "line $i"; sleep 0.1; done
  - name: second
    run: test "$(wc -l < /root/first)" = 1
"""


async def gibil(world: Journey, *words: str, **settings: str) -> tuple[int, str, str]:
    """Run a command with the bot's settings; return its exit status and its output."""
    process = Forked(words, env={**world.bot.environment, **settings})
    out, err = await asyncio.to_thread(process.communicate, patient(60))
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_run_in_progress_continues_after_the_export(tmp_path: Path, postgres: Cluster) -> None:
    async with postgres.lend_database() as name, journey(tmp_path, workflows={"count.yml": WORKFLOW}) as world:
        url = postgres.url(name)
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil count")
        await world.seen(lambda: any(run.status == "in_progress" for run in world.github.check_runs(REPOSITORY)))
        status, _, err = await gibil(world, "db", "export", url)
        assert (status, "stop it first" in err) == (6, True), err
        assert await world.bot.stop() == 0

        status, out, err = await gibil(world, "db", "export", url, "--json")
        assert (status, json.loads(out)["rows"]["runs"]) == (0, 1), err
        status, _, err = await gibil(world, "serve", "--port", "0")
        assert (status, "was exported to postgresql://gibil@127.0.0.1" in err) == (6, True), err

        world.bot.environment["GIBIL_DATABASE_URL"] = url
        await world.bot.start()
        check = await world.closed_check(number)
        assert check.conclusion == "success", check.text
        await world.all_published()
        status, out, err = await gibil(world, "db", "status", "--json")
        assert (status, json.loads(out)["counts"]["runs_finished"]) == (0, 1), err
        connection = await asyncpg.connect(url)
        attempts = await connection.fetch("select machine_attempt, fence from runs")
        await connection.close()
        assert [tuple(row) for row in attempts] == [(1, 2)], "it has the same machine, under a second claim"
        assert len([comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]) == 1
        await world.assert_nothing_left()
        with contextlib.closing(sqlite3.connect(world.bot.data_dir / "gibil.db")) as db:
            assert db.execute("select state from runs").fetchall() == [("running",)], "the file is as it was at the export"
        assert await world.bot.stop() == 0
