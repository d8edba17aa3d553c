"""Recovery from killed creations: destroy incomplete machines, report those that can be used."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.errors import GibilError
from gibil_bot.machines.creation_journal import AbandonedCreation, abandoned
from gibil_bot.providers.lifecycle import CREATION, MachineFactory

log = logging.getLogger("gibil.machines")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """A machine that was never reported to the user. Unless it is `destroyed`, it exists and can be used."""

    name: str
    made_by: str
    destroyed: bool


async def recover(factory: MachineFactory, data_dir: Path) -> list[RecoveryReport]:
    """Report each abandoned machine of the provider once. Machines that can't be queried now are left to a later command."""
    found = await asyncio.to_thread(abandoned, data_dir, factory.provider.name)
    reports = await asyncio.gather(*(_recover_one(factory, record) for record in found))
    return [report for report in reports if report is not None]


async def _recover_one(factory: MachineFactory, record: AbandonedCreation) -> RecoveryReport | None:
    try:
        machine = await factory.get(record.name)
        existed = machine is not None and machine.labels.get(CREATION) == record.creation
        if existed and not record.is_ready:
            existed = await factory.destroy(record.name)
    except GibilError as error:
        log.info("machine %s of a killed creation can't be recovered now: %s", record.name, error)
        await asyncio.to_thread(record.release)
        return None
    except BaseException:
        record.release()
        raise
    if machine is None and record.may_still_appear:
        await asyncio.to_thread(record.release)
        return None
    await asyncio.to_thread(record.remove)
    return RecoveryReport(name=record.name, made_by=record.made_by, destroyed=not record.is_ready) if existed else None
