"""The PostgreSQL server of the tests: it is private, survives crashes, and ends with the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest

from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster, Template

ROOT = Path(__file__).parents[2]


async def test_the_role_of_a_url_owns_its_database_and_nothing_else(postgres: Cluster) -> None:
    name = await postgres.create_database()
    connection = await asyncpg.connect(postgres.url(name))
    await connection.execute("create table words (word text)")
    await connection.executemany("insert into words values ($1)", [("a",), ("B",), ("b",)])
    assert [row["word"] for row in await connection.fetch("select word from words order by word")] == ["a", "b", "B"]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute("create database another")
    await postgres.drop_database(name)  # although there is a client
    await connection.close()
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(postgres.url(name))


async def test_other_users_of_the_computer_cannot_connect(postgres: Cluster) -> None:
    url = postgres.url("postgres")
    password = url.split(":")[2].split("@")[0]
    for wrong in (url.replace(password, "wrong"), url.replace("gibil", "postgres")):
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
            await asyncpg.connect(wrong)
    assert postgres.folder.stat().st_mode & 0o777 == 0o700
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert password.encode() not in cmdline.read_bytes()
        except OSError:  # the process has ended
            continue


async def test_a_lent_database_has_no_rows_of_an_earlier_borrower(postgres: Cluster) -> None:
    async with postgres.lend_database() as first:
        connection = await asyncpg.connect(postgres.url(first))
        await connection.execute(
            "create table one (id bigint generated always as identity primary key);"
            "create table another (id bigint references one);"
            "insert into one default values; insert into another values (1)"
        )
    assert await _is_lost(connection)
    async with postgres.lend_database() as second:
        assert second == first
        connection = await asyncpg.connect(postgres.url(first))
        assert await connection.fetchval("select count(*) from another") == 0
        assert await connection.fetchval("insert into one default values returning id") == 1
        await connection.execute("drop table one cascade; drop table another")
        await connection.close()


async def test_committed_rows_survive_a_kill_and_a_restart(own_postgres: Cluster) -> None:
    url = own_postgres.url(await own_postgres.create_database())
    connection = await asyncpg.connect(url)
    await connection.execute("create table numbers (number int)")
    await connection.execute("insert into numbers values (1)")
    own_postgres.kill()
    assert await _is_lost(connection)
    with pytest.raises(OSError, match=str(own_postgres.port)):
        await asyncpg.connect(url)
    own_postgres.start()
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select sum(number) from numbers") == 1
    own_postgres.restart()
    assert await _is_lost(connection)
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("select sum(number) from numbers") == 1
    await connection.close()
    assert own_postgres.log().count("automatic recovery") == 1


def test_it_ends_and_its_folder_is_deleted_when_the_tests_are_killed(postgres_template: Template) -> None:
    script = (
        "import sys; from pathlib import PosixPath\n"
        "from tests.doubles.postgres import Cluster, Template\n"
        f"cluster = Cluster({postgres_template!r})\n"
        "cluster.start()\n"
        "print(cluster.folder, flush=True)\n"
        "sys.stdin.read()\n"
    )
    tests = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert tests.stdout is not None
    folder = Path(tests.stdout.readline().strip())
    server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    tests.kill()
    tests.communicate(timeout=patient(30))  # until the server's parent has ended, too
    assert not folder.exists()
    assert not Path(f"/proc/{server}").exists()


async def _is_lost(connection: asyncpg.Connection) -> bool:
    """Return whether the server has closed the connection."""
    try:
        await connection.fetchval("select 1")
    except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, OSError):
        return True
    return False
