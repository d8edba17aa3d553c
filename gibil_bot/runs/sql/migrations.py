"""What the numbered migrations of both databases have in common."""

from __future__ import annotations

from importlib import resources

from gibil_bot.errors import StoreError


def migrations_of(package: str) -> list[tuple[int, str]]:
    """Return the number and the SQL of each migration in the package, in order."""
    files = sorted(
        (file for file in resources.files(package).iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
    )
    return [(int(file.name.partition("_")[0]), file.read_text(encoding="utf-8")) for file in files]


def require_not_newer(name: str, current: int, newest: int) -> None:
    """Raise StoreError if the schema is newer than this gibil's. `name`: of the database, without a password."""
    if current > newest:
        raise StoreError(
            f"the database {name} was written by a newer gibil (version {current}, this one supports {newest}): "
            "upgrade gibil, or use another database"
        )
