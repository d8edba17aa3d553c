"""Rows of the table `runs` as model.Run."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from gibil_bot.model import Conclusion, Plan, Run, RunState, Source

COLUMNS = (
    "id, seq, delivery_guid, source, plan, state, queued_at, started_at, finished_at, conclusion, cancel_reason, "
    "machine, machine_attempt, note"
)
decode_source = msgspec.json.Decoder(Source).decode
decode_plan = msgspec.json.Decoder(Plan).decode


def to_run(row: tuple[Any, ...]) -> Run:
    """A row of the columns COLUMNS."""
    (
        run_id, seq, guid, source, plan, state, queued_at, started_at, finished_at, conclusion, cancel_reason,
        machine, machine_attempt, note,
    ) = row  # fmt: skip
    return Run(
        id=run_id,
        seq=seq,
        delivery_guid=guid,
        source=decode_source(source),
        plan=decode_plan(plan),
        state=RunState(state),
        queued_at=datetime.fromtimestamp(queued_at, UTC),
        started_at=_time(started_at),
        finished_at=_time(finished_at),
        conclusion=None if conclusion is None else Conclusion(conclusion),
        cancel_reason=cancel_reason,
        machine=machine,
        machine_attempt=machine_attempt,
        note=note,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
