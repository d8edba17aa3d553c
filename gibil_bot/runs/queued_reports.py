"""Reports of queued runs, which have no runner yet."""

from __future__ import annotations

from gibil_bot.clock import now
from gibil_bot.github.render import RunReport, check_run
from gibil_bot.model import NewRun, Notification, Run, RunState


def queued_check_run(run: Run, position: int, public_url: str) -> Notification:
    """Return the check run of a queued run; `position` counts from 1."""
    return check_run(RunReport(run=run, position=position, phase="waiting for a machine", public_url=public_url, now=now()))


def as_queued(new: NewRun) -> Run:
    """Return the queued run that a new run becomes, for its first report."""
    return Run(
        id=new.id,
        seq=0,
        delivery_guid=new.delivery_guid,
        source=new.source,
        plan=new.plan,
        state=RunState.QUEUED,
        queued_at=now(),
    )
