"""The SQL of what all bots of the database have to agree on."""

from __future__ import annotations

from gibil_bot.runs.sql.connection import Connection


async def agree(db: Connection, topics: set[str], name: str, value: str) -> str:
    """Store the value if there is none of that name, and return the stored one."""
    row = await db.row(
        "insert into agreements (name, value) values (?, ?) "
        "on conflict (name) do update set value = agreements.value returning value",
        (name, value),
    )
    assert row is not None
    return str(row[0])


async def every(db: Connection) -> dict[str, str]:
    return dict(await db.rows("select name, value from agreements"))


async def replace(db: Connection, topics: set[str], name: str, value: str) -> None:
    await db.run("update agreements set value = ? where name = ?", (value, name))
