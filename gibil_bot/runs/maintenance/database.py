"""What maintenance needs from a database. `sqlite/maintenance` and `postgres/maintenance` implement it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, Protocol, TypeVar

import msgspec
from msgspec import Struct

from gibil_bot.errors import StoreError
from gibil_bot.runs.sql.connection import Connection, Query

T = TypeVar("T")

EXPORTED_TO, EXPORTED_FROM = "exported_to", "exported_from"
"""Names in the table `agreements`: of a SQLite file that was exported, and of the database that has its rows."""


TABLES = (
    "deliveries",
    "payloads",
    "runs",
    "turns",
    "task_results",
    "run_secrets",
    "notifications",
    "heads",
    "branch_pushes",
    "approvals",
    "cancellations",
    "budgets",
    "model_calls",
    "model_sums",
    "hosts",
    "agreements",
)
"""The tables that are copied, in an order in which every reference exists. `processes` isn't: none of them runs."""
NUMBERED = ("deliveries", "runs", "notifications", "heads", "branch_pushes", "approvals", "cancellations", "model_calls")
"""The tables whose column `seq` the database counts."""


class Problem(Struct, frozen=True, kw_only=True):
    """One finding of `gibil db check`."""

    kind: str
    """Stable, for programs."""
    subject: str
    """What it is about, such as `run 0123456789abcdef`."""
    problem: str
    remedy: str


class Export(Struct, frozen=True, kw_only=True):
    """The mark of a SQLite file that was exported. Stored as JSON under EXPORTED_TO."""

    id: str
    """Random. The database that has the rows has it under EXPORTED_FROM."""
    url: str
    """Of that database, without a password."""
    at: datetime
    finished: bool
    """False: that database may have the rows or not. The same export, repeated, finds out."""


class Maintained(Protocol):
    """A database that isn't opened as a store: nothing is migrated, and bots may run."""

    @property
    def kind(self) -> Literal["sqlite", "postgresql"]: ...

    @property
    def name(self) -> str:
        """The file's path, or the URL without a password."""

    @property
    def newest_version(self) -> int:
        """The version of the schema that this gibil uses."""

    def now(self) -> float:
        """Return the time in seconds since the epoch, by the database's clock."""

    async def version(self) -> int:
        """Return the version of the schema; 0: there is none yet. Raises StoreError."""

    async def size_bytes(self) -> int: ...

    async def read(self, query: Query[T]) -> T:
        """As sql.connection.Database.read."""

    async def integrity(self) -> list[Problem]:
        """Check the database itself, without knowing the meaning of its rows."""

    async def migrate(self, *, force: bool = False) -> tuple[int, int]:
        """Migrate the schema to this version; return the versions before and after. Raises StoreError if a bot is running.

        `force`: also then, if the database is PostgreSQL.
        """

    async def free_bytes(self) -> int | None:
        """Return how much of a SQLite file new rows will use before it grows; None if the database isn't one."""

    async def close(self) -> None: ...


async def read_mark(db: Connection) -> Export | None:
    """Return the mark of an exported SQLite file. The schema has version 7 or newer."""
    row = await db.row("select value from agreements where name = ?", (EXPORTED_TO,))
    return None if row is None else msgspec.json.decode(row[0], type=Export)


def exported_error(name: str, mark: Export) -> StoreError:
    """Return why no bot may use the file, and what to do."""
    when = f"{mark.at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    undo = "`gibil db export --undo` makes the file usable again, without what was stored there since"
    if mark.finished:
        return StoreError(
            f"the database {name} was exported to {mark.url} at {when}: set GIBIL_DATABASE_URL to that address; {undo}"
        )
    return StoreError(
        f"an export of the database {name} to {mark.url} began at {when} and didn't finish: "
        f"run the same gibil db export again; {undo}"
    )
