"""The JSON that others read, made from our nouns: the command line's, `GET /runs/{id}`'s, the metrics'."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from gibil_bot.model import Run, TaskResult


def timestamp(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, whole seconds, as GitHub writes it."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def run_view(run: Run, results: Sequence[TaskResult]) -> dict[str, object]:
    """A run for programs. It holds no output: whoever may see the check run sees it there."""
    return {
        "id": run.id,
        "repository": run.source.repository.full_name,
        "pull_request": run.source.pull_request.number,
        "sha": run.source.sha,
        "workflow": run.plan.workflow,
        "state": run.state.value,
        "conclusion": run.conclusion.value if run.conclusion else None,
        "trust": run.source.trust.value,
        "queued_at": timestamp(run.queued_at),
        "started_at": timestamp(run.started_at),
        "finished_at": timestamp(run.finished_at),
        "machine_attempt": run.machine_attempt,
        "tasks": [
            {
                "name": result.name,
                "status": result.status.value,
                "exit_status": result.exit_status,
                "duration_s": result.duration_s,
            }
            for result in results
        ],
    }
