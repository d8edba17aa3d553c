"""How many machines may exist at one time: GIBIL_MAX_MACHINES. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from gibil_bot.errors import UsageError


def check_room(existing: Collection[str], new: Sequence[str], most: int) -> None:
    """Raises UsageError (MACHINE_LIMIT) when the existing and the `new` machines together are more than `most`.

    A name in both is one machine: creating it fails for that reason, and says so.
    """
    total = len({*existing, *new})
    if total <= most:
        return
    there = "no machines exist" if not existing else f"{len(existing)} machine{'s exist' if len(existing) > 1 else ' exists'}"
    wanted = "one more" if len(new) == 1 else f"{len(new)} more"
    remedies = "destroy some first (`gibil list` shows them), or set GIBIL_MAX_MACHINES higher"
    if len(new) > most:
        remedies = f"ask for at most {most}, or set GIBIL_MAX_MACHINES higher"
    raise UsageError(f"{there}, and {wanted} would be above GIBIL_MAX_MACHINES={most}: {remedies}", code="MACHINE_LIMIT")
