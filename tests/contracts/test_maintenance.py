"""`gibil db status` and `check` read the same from a SQLite file and from PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import asyncpg
import pytest
from msgspec import structs

from gibil_bot.agent_task import Account, ModelCall, Usage
from gibil_bot.config import Settings
from gibil_bot.errors import StoreError
from gibil_bot.model import Conclusion, Host, TaskResult, TaskStatus
from gibil_bot.runs.maintenance.checks import MOST_OF_A_KIND, check
from gibil_bot.runs.maintenance.database import NUMBERED, TABLES, Maintained, Problem
from gibil_bot.runs.maintenance.status import status
from gibil_bot.runs.postgres import server
from gibil_bot.runs.sql import inbox
from gibil_bot.runs.sql.connection import Connection
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.wiring import open_maintained
from gibil_bot.wiring import open_store as open_configured
from tests.contracts.store_nouns import Clock, comment, delivery, new_run, queue
from tests.doubles.databases import DATABASES, empty_database, open_store
from tests.doubles.postgres import Cluster

HERE = Host(id="00000000000000aa", name="here")
THERE = Host(id="00000000000000bb", name="there", url="http://there:8080")


@dataclass(frozen=True)
class Both:
    """One database, as a bot and as `gibil db` open it."""

    store: SqlStore
    maintained: Maintained
    clock: Clock

    async def change(self, *statements: str) -> None:
        async def run(db: Connection, _: set[str]) -> None:
            for statement in statements:
                await db.run(statement)

        await self.store.database.write(run)

    async def found(self) -> dict[str, Problem]:
        return {problem.kind: problem for problem in await check(self.maintained)}


@pytest.fixture(params=DATABASES)
async def both(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> AsyncIterator[Both]:
    async with empty_database(request.param, request) as url:
        store = await open_store(url, clock=clock)
        maintained = open_maintained(Settings(data_dir=tmp_path, database_url=url))
        setattr(maintained, "now", clock)  # noqa: B010
        yield Both(store, maintained, clock)
        await maintained.close()
        await store.close()


async def busy(both: Both) -> None:
    """Two runs, of which one is running on a machine of this host, a delivery and a notification that wait."""
    store = both.store
    await queue(store, new_run("run-1"), new_run("run-2"))
    claim = await store.runs.claim("here:1", lease_s=60, max_machines=1, host=HERE.id)
    assert claim is not None
    await store.hosts.start(HERE, "here:1")
    await store.runs.save_machine(claim, "m", 1, HERE.id)
    await store.runs.save_task(claim, TaskResult(index=0, machine_attempt=1, name="t", status=TaskStatus.SUCCESS))
    await store.runs.record(claim, [comment()])
    await store.inbox.accept(structs.replace(delivery("waiting"), received_at=both.clock.moment))
    account = Account(run_id="run-1", task=0, person="Ada", repository_id=1, repository="ada/engine")
    call = ModelCall(
        run_id="run-1", task=0, started_at=both.clock.moment, protocol="chat", model="m", status=200,
        usage=Usage(input=10, cache_read=3, output=5), usd=Decimal("0.5"),
    )  # fmt: skip
    await store.ledger.book("call-1", account, call)
    await store.ledger.refused(account, call)
    await store.ledger.add_time(account, 5)
    await store.ledger.reserve("call-2", account, [], usd=Decimal(2), input_tokens=7, output_tokens=9)


async def test_the_state_of_an_empty_database(both: Both) -> None:
    found = await status(both.maintained)
    assert (found.version, found.newest_version, set(found.counts.values())) == (7, 7, {0})
    assert found.size_bytes > 10_000
    assert (found.oldest_delivery, found.oldest_notification, found.hosts, found.leases) == (None, None, [], [])
    assert await check(both.maintained) == []


async def test_the_state_names_what_waits_and_who_works(both: Both) -> None:
    await busy(both)
    both.clock.advance(5)
    await both.store.hosts.start(THERE, "there:1")
    both.clock.advance(15)
    await both.store.inbox.accept(delivery("later"))
    assert len(await both.store.outbox.claim("here:1", limit=1, lease_s=30)) == 1
    both.clock.advance(10)
    found = await status(both.maintained)
    assert found.counts["runs_running"] == found.counts["runs_queued"] == 1
    assert found.oldest_delivery is not None
    assert found.oldest_delivery.id == "waiting"
    assert found.oldest_notification is not None
    assert (found.oldest_notification.id, (found.now - found.oldest_notification.since).total_seconds()) == (comment().key, 30)
    assert [(seen.host, seen.is_away, seen.machines) for seen in found.hosts] == [(HERE, True, 1), (THERE, False, 0)]
    assert [(each.owner, each.runs, each.notifications) for each in found.leases] == [("here:1", 1, 1)]
    assert (found.leases[0].until - found.now).total_seconds() == 30
    assert found.export is None


async def test_a_busy_database_has_no_problems(both: Both) -> None:
    await busy(both)
    assert await check(both.maintained) == []


@pytest.mark.parametrize(
    ("statement", "kind", "subject", "in_problem"),
    [
        ("update deliveries set content = 'x' where guid = 'waiting'", "undecodable_event", "delivery waiting", "malformed"),
        ("update runs set plan = '{}' where id = 'run-2'", "undecodable_plan", "run run-2", "missing required field"),
        ("update runs set source = '[]' where id = 'run-2'", "undecodable_source", "run run-2", "no run can be claimed"),
        ("update runs set commit_progress = '1' where seq = 1", "undecodable_commit_progress", "run run-1", "`object`"),
        ("update runs set state = 'odd' where id = 'run-2'", "undecodable_state", "run run-2", "'odd'"),
        ("update task_results set result = '{}'", "undecodable_result", "task 0 of run run-1", "missing required field"),
        ("update notifications set body = '{}'", "undecodable_notification", f"notification {comment().key}", "missing"),
        ("update notifications set kind = 'letter'", "undecodable_notification", f"notification {comment().key}", "'letter'"),
        (
            "update notifications set rejected_revision = 1, error = '422: too long'",
            "rejected_notification", f"notification {comment().key}", "422: too long",
        ),
        (
            "update notifications set failures = 4, error = '502'",
            "failing_notification", f"notification {comment().key}", "failed 4 times in a row: 502",
        ),
        ("update model_calls set call = '{}' where id = 'call-1'", "undecodable_call", "call call-1 of run run-1", "missing"),
        ("update runs set lease_until = 1 where id = 'run-1'", "no_lease", "run run-1", "no bot works on it"),
        ("update runs set machine_host = 'who' where id = 'run-1'", "unknown_host", "run run-1", "the host who"),
        ("update runs set started_at = 1 where id = 'run-1'", "overtime", "run run-1", "longer than its machine may exist"),
        ("update model_calls set at = 1 where id = 'call-2'", "old_reservation", "call call-2 of run run-1", "1970-01-01"),
        ("update model_sums set usd = 7 where scope = 'run'", "wrong_sum", "run run-1", "usd is 7 instead of 500000000"),
        ("update model_sums set reserved_tokens = 0 where scope = 'task'", "wrong_sum", "task run-1/0", "instead of 16"),
        ("delete from model_calls where id = 'call-1'", "wrong_sum", "repository 1 on 2027-01-15", "calls is 1 instead of 0"),
    ],
)  # fmt: skip
async def test_each_problem_is_found(both: Both, statement: str, kind: str, subject: str, in_problem: str) -> None:
    await busy(both)
    await both.change(statement)
    found = await both.found()
    assert set(found) == {kind}
    assert (found[kind].subject, in_problem in found[kind].problem) == (subject, True), found[kind]
    assert found[kind].remedy


async def test_what_waits_while_no_bot_runs_is_found_with_its_age(both: Both) -> None:
    await busy(both)
    for number in range(6):
        await both.store.inbox.accept(structs.replace(delivery(f"later-{number}"), received_at=both.clock.moment))
    both.clock.advance(7500)
    found = await both.found()
    assert "where no bot runs" in found.pop("host_away").problem
    assert {kind: (each.subject, each.problem, each.remedy) for kind, each in found.items() if kind.startswith("waiting")} == {
        "waiting_delivery": (
            "7 deliveries",
            "no bot runs, and they wait: waiting, later-0, later-1, later-2, later-3 and 2 more; the oldest arrived "
            "2 h 5 min ago",
            "start gibil serve",
        ),
        "waiting_run": ("1 run", "no bot runs, and it waits: run-2; the oldest was queued 2 h 5 min ago", "start gibil serve"),
        "waiting_notification": (
            "1 notification",
            f"no bot runs, and it waits: {comment().key}; the oldest was due 2 h 5 min ago",
            "start gibil serve",
        ),
    }


async def test_a_delivery_that_waits_long_although_a_bot_runs_is_found(both: Both) -> None:
    await busy(both)
    await both.store.inbox.accept(structs.replace(delivery("stuck"), received_at=both.clock.moment))
    await both.change("delete from deliveries where guid = 'waiting'")
    both.clock.advance(800)
    await both.store.hosts.present(HERE, "here:1")
    assert "waiting_delivery" not in await both.found()
    both.clock.advance(200)
    await both.store.hosts.present(HERE, "here:1")
    await both.change("update deliveries set error = 'GitHub answered 500' where guid = 'stuck'")
    problem = (await both.found())["waiting_delivery"]
    assert problem.problem == "a bot runs, and it waits: stuck; the oldest arrived 16 min 40 s ago: GitHub answered 500"
    assert problem.remedy == "see its log for stuck"


async def test_the_statement_that_corrects_a_sum_does(both: Both) -> None:
    await busy(both)
    await both.change("update model_sums set usd = 7, calls = 0 where scope = 'person'")
    problem = (await both.found())["wrong_sum"]
    await both.change(problem.remedy.partition("correct it: ")[2])
    assert await check(both.maintained) == []


async def test_values_in_proposed_statements_are_quoted(both: Both) -> None:
    await both.store.outbox.record([comment("it's")])
    await both.change("update notifications set body = '{}'")
    problem = (await both.found())["undecodable_notification"]
    await both.change(problem.remedy.partition("delete it: ")[2])
    assert await check(both.maintained) == []


async def test_sums_whose_calls_were_deleted_with_time_are_right(both: Both) -> None:
    await busy(both)
    both.clock.advance(91 * 86400)
    await both.store.ledger.reserve(
        "late", Account(run_id="r", task=0, person="ada", repository_id=1, repository="a/b"), [],
        usd=Decimal(1), input_tokens=1, output_tokens=1,
    )  # fmt: skip
    await both.store.ledger.book_estimates("r")
    assert (await both.store.prune())["model_calls"] > 0
    assert "wrong_sum" not in await both.found()


async def test_a_kind_that_cannot_be_pruned_does_not_keep_the_others(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(db: Connection, _: set[str], **limits: float) -> int:
        return await db.run("delete from missing")

    monkeypatch.setattr(inbox, "prune", fail)
    await both.store.inbox.spend("ada", cost=1, capacity=10, per_s=1.0)
    both.clock.advance(91 * 86400)
    with pytest.raises(StoreError, match=r"old deliveries can't be deleted: .*missing"):
        await both.store.prune()
    assert await both.maintained.read(budgets) == 0


async def budgets(db: Connection) -> int:
    row = await db.row("select count(*) from budgets")
    assert row is not None
    return int(row[0])


async def test_a_limit_of_the_command_is_also_the_server_s(postgres: Cluster, tmp_path: Path) -> None:
    """A step of pruning may take longer than a bot may wait."""

    async with postgres.lend_database() as name:
        settings = Settings(data_dir=tmp_path, database_url=postgres.url(name))
        for limit_s, expected in ((None, "5s"), (60.0, "61s")):
            opened = await open_configured(settings, exclusive=False, limit_s=limit_s)
            assert isinstance(opened, SqlStore)
            row = await opened.database.read(lambda db: db.row("show statement_timeout"))
            await opened.close()
            assert row == (expected,)


async def test_many_problems_of_a_kind_are_counted(both: Both) -> None:
    for number in range(MOST_OF_A_KIND + 5):
        await both.store.inbox.accept(delivery(f"guid-{number}"), handled=True)
    await both.change("update deliveries set content = 'x'")
    problems = await check(both.maintained)
    assert len(problems) == MOST_OF_A_KIND + 1
    assert problems[-1].subject == "5 more"


async def test_a_finished_run_is_not_missed(both: Both) -> None:
    await busy(both)
    claim = await both.store.runs.claim("here:1", lease_s=60, max_machines=2)
    assert claim is not None
    await both.store.runs.finish(claim, Conclusion.SUCCESS, [])
    both.clock.advance(10 * 86400)
    assert not any(claim.run.id in each.subject for each in await check(both.maintained))


async def test_maintenance_knows_all_tables(both: Both) -> None:
    """A new table is exported, too."""
    if both.maintained.kind == "sqlite":
        query = (
            "select m.name, exists (select 1 from pragma_table_info(m.name) c where c.name = 'seq') "
            "from sqlite_master m where type = 'table'"
        )
    else:
        query = (
            "select relname, exists (select 1 from pg_attribute where attrelid = c.oid and attname = 'seq') from pg_class c "
            "where relkind = 'r' and relnamespace = 'public'::regnamespace and relname <> 'schema_version'"
        )

    async def tables(db: Connection) -> list[tuple[str, bool]]:
        return [(name, bool(is_numbered)) for name, is_numbered in await db.rows(query)]

    found = dict(await both.maintained.read(tables))
    assert set(found) == {*TABLES, "processes"}
    assert {name for name, is_numbered in found.items() if is_numbered} == {*NUMBERED, "payloads"}


async def test_a_database_without_a_schema(tmp_path: Path) -> None:
    maintained = open_maintained(Settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path / 'new.db'}"))
    found = await status(maintained)
    assert (found.version, found.size_bytes, found.counts) == (0, 0, {})
    with pytest.raises(StoreError, match="is empty: stop the bots, and run gibil db migrate"):
        await check(maintained)
    assert list(tmp_path.iterdir()) == []
    await maintained.close()


async def test_a_postgresql_of_the_previous_version_is_migrated(postgres: Cluster, tmp_path: Path) -> None:
    name = await postgres.create_database()
    maintained = open_maintained(Settings(data_dir=tmp_path, database_url=postgres.url(name)))
    assert (await status(maintained)).version == 0
    (_, initial), *_ = server.migrations()
    connection = await asyncpg.connect(postgres.url(name))
    await connection.execute(initial)
    await connection.execute("create table schema_version (number bigint primary key, applied_at timestamptz default now())")
    await connection.execute("insert into schema_version (number) values (6)")
    await connection.execute(
        "insert into notifications (key, kind, installation_id, repository, body, due_at) "
        "values ('k', 'comment', 1, 'a/b', '', 1)"
    )
    await connection.close()
    assert ((await status(maintained)).version, (await status(maintained)).counts) == (6, {})
    assert await maintained.migrate() == (6, 7)
    assert (await status(maintained)).counts["tellings_due"] == 1
    await maintained.close()
    await postgres.drop_database(name)


async def test_a_migration_is_rejected_while_bots_use_the_server(postgres: Cluster, tmp_path: Path) -> None:
    name = await postgres.create_database()
    store = await open_store(postgres.url(name))
    await store.hosts.start(THERE, "there:1")
    maintained = open_maintained(Settings(data_dir=tmp_path, database_url=postgres.url(name)))
    assert await maintained.migrate() == (7, 7), "there is nothing to do"
    await postgres.execute("delete from schema_version where number = 7", database=name)
    with pytest.raises(StoreError, match=r"version 6, .* needs 7, .* on there, or did 30 s ago, .*: stop them .*--force"):
        await maintained.migrate()
    settings = Settings(data_dir=tmp_path, database_url=postgres.url(name))
    with pytest.raises(StoreError, match="on there"):
        await open_configured(settings, host_id=HERE.id)
    assert (await status(maintained)).version == 6, "nothing was changed"
    with pytest.raises(StoreError, match="already exists"):
        await open_configured(settings, host_id=THERE.id)  # a bot that starts again after a crash
    with pytest.raises(StoreError, match="already exists"):
        await maintained.migrate(force=True)
    await store.hosts.leave("there:1")
    with pytest.raises(StoreError, match="already exists"):
        await maintained.migrate()
    await maintained.close()
    await store.close()
    await postgres.drop_database(name)


async def test_a_sequence_that_is_behind_its_table_is_found(postgres: Cluster, tmp_path: Path) -> None:
    async with postgres.lend_database() as name:
        store = await open_store(postgres.url(name))
        for number in range(3):
            await store.inbox.accept(delivery(f"guid-{number}"), handled=True)
        await postgres.execute("select setval('deliveries_seq_seq', 1)", database=name)
        maintained = open_maintained(Settings(data_dir=tmp_path, database_url=postgres.url(name)))
        (problem,) = await check(maintained)
        assert (problem.kind, problem.subject) == ("sequence_behind", "table deliveries")
        await postgres.execute(problem.remedy, database=name)
        assert await check(maintained) == []
        assert await store.inbox.accept(delivery("new"))
        await maintained.close()
        await store.close()
