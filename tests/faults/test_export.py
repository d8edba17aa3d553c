"""`gibil db export`: a bot moves from SQLite to PostgreSQL with all that it knows, or stays where it is, whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from gibil_bot.agent_task import Account, ModelCall, Usage
from gibil_bot.cli.db import db as command
from gibil_bot.cli.doctor import _database
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import StoreError
from gibil_bot.model import Approval, BranchPush, CancelRequest, Conclusion, HeadSeen, Host, Person, TaskResult, TaskStatus
from gibil_bot.ports import DeliveryOutcome
from gibil_bot.providers.keyring import Keyring
from gibil_bot.runs.host import this_host
from gibil_bot.runs.maintenance.checks import check
from gibil_bot.runs.maintenance.database import TABLES
from gibil_bot.runs.maintenance.export import Exported, export
from gibil_bot.runs.postgres.export import CopyTransaction, open_target
from gibil_bot.runs.sqlite.export import open_source
from gibil_bot.wiring import export_database, open_maintained, undo_export
from tests.contracts.store_nouns import RECEIVED_AT, comment, delivery, handle, new_run, queue, unread
from tests.doubles.cable import relay
from tests.doubles.databases import open_store
from tests.doubles.json_output import check_output
from tests.doubles.patience import patient
from tests.doubles.postgres import USER, Cluster
from tests.doubles.prefork import Forked

SAMPLE = Path(__file__).parents[1] / "contracts" / "samples" / "version_3.sql"
HERE = Host(id="00000000000000aa", name="here")


def file_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'gibil.db'}"


async def fill(folder: Path) -> None:
    """Write rows to every table, as bots do: two runs of which one is running, and one that is finished."""
    (folder / "host.id").write_text(f"{HERE.id}\n")
    store = await open_store(file_url(folder), exclusive=True)
    await store.inbox.accept(unread("unreadable"), handled=False)
    seen = HeadSeen(
        repository_id=1, number=7, sha="a" * 40, action="opened", at=RECEIVED_AT, before=None, pusher=Person(login="ada"),
        head_repository_id=2, head_owner="grace",
    )  # fmt: skip
    push = BranchPush(repository_id=1, sha="b" * 40, branch="main", at=RECEIVED_AT, pusher=Person(login="ada"))
    await store.inbox.accept(delivery("waiting"), observed=[seen, push])
    await queue(store, new_run("finished"), new_run("running"), new_run("queued"))
    for run_id in ("finished", "running"):
        claim = await store.runs.claim("old process", lease_s=3600, max_machines=9)
        assert claim is not None
        assert claim.run.id == run_id
        assert await store.runs.bind_secrets(claim, "f" * 64)
        await store.runs.save_machine(claim, f"gibil-{run_id}-1", 1)
        await store.runs.save_task(claim, TaskResult(index=0, machine_attempt=1, name="t", status=TaskStatus.SUCCESS))
        await store.runs.save_note(claim, "a note \0 with a NUL")
        if run_id == "finished":
            await store.runs.finish(claim, Conclusion.SUCCESS, [comment()])
    approval = Approval(repository_id=1, number=7, sha="a" * 40, by="ada", at=RECEIVED_AT)
    cancelled = CancelRequest(repository_id=1, number=99, workflow=None, reason="cancelled by ada")
    await handle(store, DeliveryOutcome(observed=[approval], cancel_earlier=[cancelled]), "last")
    await store.inbox.spend("ada", cost=1, capacity=10, per_s=0.001)
    account = Account(run_id="running", task=0, person="ada", repository_id=1, repository="ada/engine")
    call = ModelCall(
        run_id="running", task=0, started_at=RECEIVED_AT, protocol="chat", model="m", status=200,
        usage=Usage(input=10, output=5), usd=Decimal("0.5"),
    )  # fmt: skip
    await store.ledger.book("call", account, call)
    await store.ledger.reserve("cut off", account, [], usd=Decimal(2), input_tokens=7, output_tokens=9)
    await store.hosts.start(HERE, "old process")

    async def agree(db: Any, _: set[str]) -> None:
        await db.run("insert into agreements (name, value) values ('keyring', 'k')")

    await store.database.write(agree)
    await store.close()


def rows_of_file(folder: Path) -> dict[str, list[dict[str, Any]]]:
    with contextlib.closing(sqlite3.connect(folder / "gibil.db")) as db:
        db.row_factory = sqlite3.Row
        return {table: sorted(map(dict, db.execute(f"select * from {table}")), key=repr) for table in TABLES}


async def rows_of_server(url: str) -> dict[str, list[dict[str, Any]]]:
    connection = await asyncpg.connect(url)
    try:
        return {table: sorted(map(dict, await connection.fetch(f"select * from {table}")), key=repr) for table in TABLES}
    finally:
        await connection.close()


@pytest.fixture
async def target(postgres: Cluster) -> AsyncIterator[str]:
    async with postgres.lend_database() as name:
        yield postgres.url(name)


def settings(folder: Path, provider: str = "local") -> Settings:
    return Settings(data_dir=folder, database_url=file_url(folder), provider=provider)


async def exported(folder: Path, url: str, provider: str = "local") -> Exported:
    return await export_database(settings(folder, provider), url, lambda *_: None)


async def test_every_row_is_copied_as_it_is(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    result = await exported(tmp_path, target)
    before, after = rows_of_file(tmp_path), await rows_of_server(target)
    assert all(result.rows.values()), "the sample has no rows of a table"
    assert before["agreements"][0]["name"] == "exported_to"
    assert [row["name"] for row in after["agreements"]] == ["exported_from", "keyring"]
    here = this_host(tmp_path, "")
    assert [(row["id"], row["name"]) for row in after["hosts"]] == [(HERE.id, here.name)]
    runs = {row["id"]: row for row in before["runs"]}
    for run_id in ("running", "finished"):
        runs[run_id] |= {"hosts": HERE.id, "note": "a note \ufffd with a NUL"}
    runs["running"] |= {"machine_host": HERE.id}
    for table in TABLES:
        if table not in ("agreements", "hosts"):
            assert after[table] == before[table], table
    assert runs["running"]["lease_until"] == 0
    assert {row["state"] for row in after["model_calls"]} == {"booked", "estimated"}


async def test_machines_of_a_cloud_are_reached_by_every_host(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    await exported(tmp_path, target, "hetzner")
    runs = {row["id"]: row for row in (await rows_of_server(target))["runs"]}
    assert (runs["running"]["machine_host"], runs["running"]["hosts"]) == (None, this_host(tmp_path, "").id)


async def test_the_provider_is_that_of_the_bot(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    store = await open_store(file_url(tmp_path))
    await store.agree("provider", "hetzner 0123")
    await store.close()
    await exported(tmp_path, target, "local")
    runs = {row["id"]: row for row in (await rows_of_server(target))["runs"]}
    assert runs["running"]["machine_host"] is None


async def test_the_file_of_another_data_directory_is_not_exported(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    (tmp_path / "host.id").write_text("00000000000000cc\n")
    with pytest.raises(StoreError, match=r"another data directory, with the host.id 00000000000000aa \(here\): export it with"):
        await exported(tmp_path, target)
    await (await open_store(file_url(tmp_path))).close()


async def test_the_bot_continues_on_the_copy(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    await exported(tmp_path, target)
    maintained = open_maintained(Settings(data_dir=tmp_path, database_url=target))
    no_bot = {"host_away", "waiting_delivery", "waiting_run", "waiting_notification"}
    assert {each.kind for each in await check(maintained)} <= no_bot
    await maintained.close()
    store = await open_store(target)
    other = await store.runs.claim("elsewhere:1", lease_s=60, max_machines=9, host="00000000000000cc", away_s=600)
    assert other is not None
    assert other.run.id == "queued", "its machine is on the host of the file, which was seen just now"
    claim = await store.runs.claim("here:1", lease_s=60, max_machines=9, host=this_host(tmp_path, "").id, away_s=600)
    assert claim is not None
    assert (claim.run.id, claim.run.machine, claim.fence) == ("running", "gibil-running-1", 2)
    assert await store.runs.bind_secrets(claim, "f" * 64)
    claimed = await store.inbox.claim("here:1", limit=9, lease_s=60)
    assert [one.guid for one in claimed] == ["unreadable", "waiting"]
    for one in claimed:
        await store.inbox.complete("here:1", one.guid, DeliveryOutcome())
    assert not await store.inbox.accept(delivery("last"))
    assert await store.inbox.accept(delivery("new"))
    await queue(store, new_run("newer"))
    newer = await store.runs.get("newer")
    assert newer is not None
    assert newer.seq == 4
    await store.close()


async def test_a_file_of_an_earlier_version_is_migrated_first(tmp_path: Path, target: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "gibil.db")) as db:
        db.executescript(SAMPLE.read_text())
    result = await exported(tmp_path, target)
    assert result.rows["deliveries"] == result.rows["payloads"] > 0
    after = await rows_of_server(target)
    assert [run["machine_host"] for run in after["runs"] if run["state"] == "running"] == [this_host(tmp_path, "").id]


async def test_the_key_of_a_file_of_an_earlier_version_remains(tmp_path: Path, target: str) -> None:
    """That file doesn't know the key, and the first bot on the new database may be another host's."""
    with contextlib.closing(sqlite3.connect(tmp_path / "gibil.db")) as db:
        db.executescript(SAMPLE.read_text())
    check_value = Keyring(tmp_path).check_value()
    await exported(tmp_path, target)
    store = await open_store(target)
    stored = await store.agree("keyring", "another key")
    await store.close()
    assert stored == check_value


async def test_a_target_of_an_earlier_version_is_not_migrated(tmp_path: Path, postgres: Cluster) -> None:
    """Bots of that version may be using it."""
    await fill(tmp_path)
    name = await postgres.create_database()
    await (await open_store(postgres.url(name))).close()
    await postgres.execute("delete from schema_version where number = 7", database=name)
    with pytest.raises(StoreError, match="has version 6, and this gibil needs 7: stop the bots, and run gibil db migrate"):
        await exported(tmp_path, postgres.url(name))
    await (await open_store(file_url(tmp_path))).close()
    await postgres.drop_database(name)


async def test_no_store_opens_on_an_exported_file_until_it_is_undone(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    await exported(tmp_path, target)
    shown = target.partition("@")[2]
    for exclusive in (True, False):
        with pytest.raises(StoreError, match=rf"was exported to postgresql://gibil@{shown} at .*--undo"):
            await open_store(file_url(tmp_path), exclusive=exclusive)
    assert (await exported(tmp_path, target)).was_copied_before
    with pytest.raises(StoreError, match="was exported to"):
        await exported(tmp_path, target.replace("/test_", "/other_"))
    mark = await undo_export(settings(tmp_path))
    assert mark is not None
    await (await open_store(file_url(tmp_path))).close()
    with pytest.raises(StoreError, match="isn't empty"):
        await exported(tmp_path, target)
    assert await undo_export(settings(tmp_path)) is None


async def test_a_target_with_rows_is_left_alone(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    store = await open_store(target)
    await store.inbox.accept(delivery("theirs"))
    await store.close()
    with pytest.raises(StoreError, match=r"isn't empty: it has rows \(1 in deliveries\); export to another one"):
        await exported(tmp_path, target)
    assert [row["guid"] for row in (await rows_of_server(target))["deliveries"]] == ["theirs"]
    await (await open_store(file_url(tmp_path))).close()


async def test_a_running_bot_keeps_its_file(tmp_path: Path, target: str) -> None:
    bot = await open_store(file_url(tmp_path), exclusive=True)
    with pytest.raises(StoreError, match="stop it first"):
        await exported(tmp_path, target)
    await bot.close()
    await exported(tmp_path, target)


async def test_without_a_file_or_a_server_nothing_is_created(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to export"):
        await exported(tmp_path, "postgresql://ada:the-password@127.0.0.1:1/gibil")
    await fill(tmp_path)
    with pytest.raises(StoreError, match="check that PostgreSQL runs") as caught:
        await exported(tmp_path, "postgresql://ada:the-password@127.0.0.1:1/gibil")
    assert "the-password" not in str(caught.value)
    await (await open_store(file_url(tmp_path))).close()


class Crash(BaseException):
    """Ends the export as SIGKILL would: nothing is cleaned up."""


@dataclass
class Crashing:
    """The file and the target of an export that crashes at a call, before it or after it."""

    at: str
    after: bool = False
    crashed: bool = False

    def wrap(self, it: Any) -> Any:
        outer = self

        class Wrapped:
            name = it.name if hasattr(it, "name") else ""

            def __getattr__(self, name: str) -> Any:
                if outer.crashed:
                    raise Crash
                found = getattr(it, name)
                if name != outer.at:
                    return found
                return outer.crash(found)

            @contextlib.asynccontextmanager
            async def copying(self) -> AsyncIterator[Any]:
                async with it.copying() as copy:
                    yield outer.wrap(copy)

        return Wrapped()

    def crash(self, call: Callable[..., Any]) -> Callable[..., Any]:
        async def crashing(*values: Any) -> Any:
            if self.after:
                await call(*values)
            self.crashed = True
            raise Crash

        return crashing


@pytest.mark.parametrize(
    ("at", "after"),
    [
        ("set_mark", False),
        ("set_mark", True),
        ("copy", True),
        ("know", False),
        ("finish", True),
        ("commit", False),
        ("commit", True),
    ],
)  # fmt: skip
async def test_an_export_that_crashed_is_repeated(tmp_path: Path, target: str, at: str, after: bool) -> None:
    await fill(tmp_path)
    crashing = Crashing(at, after)
    with pytest.raises(Crash):
        async with open_source(file_url(tmp_path)) as source, open_target(target) as opened:
            await export(crashing.wrap(source), crashing.wrap(opened), HERE, lambda *_: None, provider="local", keyring=None)
    found = await rows_of_server(target)
    is_copied = (at, after) == ("commit", True)
    assert any(found.values()) == is_copied
    if at != "set_mark" or after:
        with pytest.raises(StoreError, match=r"didn't finish: run the same gibil db export again; .*--undo"):
            await open_store(file_url(tmp_path))
    result = await exported(tmp_path, target)
    assert result.was_copied_before == is_copied
    assert len((await rows_of_server(target))["runs"]) == 3
    with pytest.raises(StoreError, match="was exported to"):
        await open_store(file_url(tmp_path))


async def test_an_error_of_the_server_leaves_the_file_usable(tmp_path: Path, target: str) -> None:
    await fill(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "gibil.db")) as db:
        db.execute("update runs set sha = cast(x'ff' as text) where id = 'queued'")  # damaged text
        db.commit()
    with pytest.raises(StoreError, match="Could not decode to UTF-8"):
        await exported(tmp_path, target)
    assert not any((await rows_of_server(target)).values())
    await (await open_store(file_url(tmp_path))).close()


SLEEPY = """
create function wait() returns trigger language plpgsql as 'begin perform pg_sleep(600); return new; end';
create trigger wait before insert on notifications for each row execute function wait();
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda how: how.name)
async def test_an_export_that_is_ended_while_it_copies_is_repeated(
    tmp_path: Path, postgres: Cluster, how: signal.Signals
) -> None:
    await fill(tmp_path)
    name = await postgres.create_database()
    url = postgres.url(name)
    await (await open_store(url)).close()
    await postgres.execute(SLEEPY, database=name)
    with (tmp_path / "log").open("wb") as log:
        process = Forked(("db", "export", url), env={"GIBIL_DATA_DIR": str(tmp_path)}, stdout=log, stderr=log)
    connection = await postgres.connect(name)
    copying = "select pid from pg_stat_activity where query like 'COPY%notifications%' and wait_event = 'PgSleep'"
    async with asyncio.timeout(patient(30)):
        while (pid := await connection.fetchval(copying)) is None:
            await asyncio.sleep(0.02)  # another process's state
    process.send_signal(how)
    async with asyncio.timeout(patient(20)):
        status = await process.ended()
    if how == signal.SIGKILL:
        with pytest.raises(StoreError, match="didn't finish"):
            await open_store(file_url(tmp_path))
        await connection.fetchval("select pg_terminate_backend($1, 10000)", pid)  # it notices a lost client when it answers
    else:
        assert (status, (tmp_path / "log").read_text().strip()) == (130, "gibil: interrupted")
        await (await open_store(file_url(tmp_path))).close()
    await connection.execute("drop trigger wait on notifications")
    await connection.close()
    assert not (await exported(tmp_path, url)).was_copied_before
    assert len((await rows_of_server(url))["runs"]) == 3
    await postgres.drop_database(name)


async def test_a_silent_network_ends_the_export_and_leaves_the_file_usable(
    tmp_path: Path, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    monkeypatch.setattr("gibil_bot.runs.postgres.export._ANSWER_S", 0.5)
    monkeypatch.setattr("gibil_bot.runs.postgres.export._ROLLBACK_S", 0.1)
    async with postgres.lend_database() as name, relay(postgres.port) as line:
        url = postgres.url(name, port=line.port)
        await (await open_store(url)).close()
        copy = CopyTransaction.copy

        async def silent(transaction: CopyTransaction, table: str, columns: Any, rows: Any) -> None:
            if table == "runs":
                line.silence()
            await copy(transaction, table, columns, rows)

        with monkeypatch.context() as patched:
            patched.setattr(CopyTransaction, "copy", silent)
            with pytest.raises(StoreError, match=r"didn't answer within 0\.5 s"):
                await exported(tmp_path, url)
        await (await open_store(file_url(tmp_path))).close()
        line.reset()
        line.mend()
        monkeypatch.setattr("gibil_bot.runs.postgres.export._ANSWER_S", 60)
        await exported(tmp_path, url)
        assert len((await rows_of_server(url))["runs"]) == 3


async def test_a_database_that_cannot_store_every_text_is_rejected(tmp_path: Path, postgres: Cluster) -> None:
    await fill(tmp_path)
    await postgres.execute(
        f"create database latin owner {USER} encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0"
    )
    with pytest.raises(StoreError, match="has the encoding LATIN1, which can't store every text: create another one"):
        await exported(tmp_path, postgres.url("latin"))
    await postgres.drop_database("latin")
    await (await open_store(file_url(tmp_path))).close()


async def test_a_connection_that_is_lost_at_the_commit_is_no_problem_of_the_next_export(
    tmp_path: Path, postgres: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(tmp_path)
    async with postgres.lend_database() as name, relay(postgres.port) as line:
        url = postgres.url(name, port=line.port)

        commit = CopyTransaction.commit

        async def losing(copy: CopyTransaction) -> None:
            line.cut()
            await commit(copy)

        with monkeypatch.context() as patched:
            patched.setattr(CopyTransaction, "commit", losing)
            with pytest.raises(StoreError, match="whether the rows were committed is unknown: run the same command again"):
                await exported(tmp_path, url)
        with pytest.raises(StoreError, match="didn't finish"):
            await open_store(file_url(tmp_path))
        line.mend()
        await exported(tmp_path, url)
        assert len((await rows_of_server(url))["runs"]) == 3


def test_the_command_prints_no_password(tmp_path: Path, postgres: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBIL_DATA_DIR", str(tmp_path))
    asyncio.run(fill(tmp_path))
    url = postgres.url(asyncio.run(postgres.create_database()))
    password = url.partition("gibil:")[2].partition("@")[0]
    printed = []

    def run(*words: str) -> Any:
        result = CliRunner().invoke(command, [*words, "--json"])
        printed.append(result.output)
        assert result.exit_code == 0, result.output
        check_output(["db", *words, "--json"], result.stdout)
        return json.loads(result.stdout)

    assert run("export", url)["rows"]["runs"] == 3
    assert run("status")["exported"]["finished"]
    on_file = asyncio.run(_database(load_settings()))
    assert (on_file.ok, "was exported to postgresql://gibil@" in on_file.detail) == (False, True)
    monkeypatch.setenv("GIBIL_DATABASE_URL", url.replace(f":{password}", ""))
    monkeypatch.setenv("PGPASSWORD", password)
    assert run("status")["counts"]["runs_running"] == 1
    assert run("migrate")["from_version"] == 7
    assert run("prune")["free_bytes"] is None
    on_server = asyncio.run(_database(load_settings()))
    assert (on_server.ok, on_server.detail.startswith("postgresql://gibil@127.0.0.1")) == (True, True)
    printed += [on_file.detail, on_server.detail]
    result = CliRunner().invoke(command, ["check"])
    assert "run running: its machine is on the host" in result.output
    assert result.exit_code == 1
    monkeypatch.setenv("PGPASSWORD", f"{password}x")
    monkeypatch.setenv("GIBIL_DATABASE_URL", url.replace(password, f"{password}y"))
    failed = CliRunner().invoke(command, ["status"])
    assert isinstance(failed.exception, StoreError)
    assert "password authentication failed" in failed.exception.message
    assert not any(password in text for text in (*printed, result.output, failed.output, failed.exception.message))
