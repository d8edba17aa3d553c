"""Recover from killed creations: destroy machines that were incomplete, report those that can be used."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.errors import GibilError
from gibil_bot.machines.creation_journal import AbandonedCreation, abandoned
from gibil_bot.providers.lifecycle import CREATION, MachineFactory

log = logging.getLogger("gibil.sandbox")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """A machine that nobody was told of. Not burned: it is there, and can be used."""

    name: str
    made_by: str
    burned: bool


async def recover(factory: MachineFactory, data_dir: Path) -> list[RecoveryReport]:
    """Every one of that provider is said once. One that cannot be asked for now is left to the next who comes by."""
    found = await asyncio.to_thread(abandoned, data_dir, factory.provider.name)
    settled = await asyncio.gather(*(_settle(factory, record) for record in found))
    return [each for each in settled if each is not None]


async def _settle(factory: MachineFactory, record: AbandonedCreation) -> RecoveryReport | None:
    try:
        machine = await factory.get(record.name)
        is_it = machine is not None and machine.labels.get(CREATION) == record.creation
        if is_it and not record.made:
            is_it = await factory.destroy(record.name)
    except GibilError as error:
        log.info("machine %s of a creation that was killed: %s", record.name, error)
        await asyncio.to_thread(record.leave)
        return None
    except BaseException:
        record.leave()
        raise
    if machine is None and record.may_still_come:
        await asyncio.to_thread(record.leave)
        return None
    await asyncio.to_thread(record.drop)
    return RecoveryReport(name=record.name, made_by=record.made_by, burned=not record.made) if is_it else None
