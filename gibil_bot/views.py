"""JSON views of machines and runs, for the command line, MCP and `GET /runs/{id}`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum

from gibil_bot.agent_task import AgentResult
from gibil_bot.model import (
    CacheEntry,
    DetectedProject,
    Machine,
    Plan,
    PreparedMachine,
    Refusal,
    Refusals,
    Run,
    TaskResult,
    TaskStatus,
    Template,
)
from gibil_bot.registries import WEB_PORTS

_NOT_FOUND = 127
"""The exit status of a shell for a program that doesn't exist, and of a detected task of which no command can run."""
_MOST_BLOCKED, _MOST_PORTS, _MOST_CHARACTERS = 10, 3, 800
"""Maximum number of endpoints, and of endpoints per host, in one sentence: a machine chooses their number and length."""


def timestamp(moment: datetime | None) -> str | None:
    """Return RFC 3339 in UTC with whole seconds, like GitHub."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def blocked_view(refusals: Refusals) -> list[str]:
    """Return blocked connections as sentences: at most one for each reason."""
    lines = []
    for reason in _Blocked:
        hosts: dict[str, dict[str, None]] = {}
        for refusal in refusals.refused:
            if _reason(refusal) is reason:
                hosts.setdefault(refusal.host, {})[_shown(refusal)] = None
        wanted = [endpoint for endpoints in hosts.values() for endpoint in list(endpoints)[:_MOST_PORTS]]
        named: list[str] = []
        for endpoint in wanted[:_MOST_BLOCKED]:
            if sum(map(len, named)) < _MOST_CHARACTERS:
                named.append(endpoint)
        if not named:
            continue
        more = " and others" if len(named) < sum(map(len, hosts.values())) or refusals.more else ""
        lines.append(reason.value.format(endpoints=f"{', '.join(named)}{more}", entries=",".join(named)))
    return lines


_METADATA = ("169.254.", "100.100.100.200", "fd00:ec2::254", "fe80:", "192.0.0.192", "metadata.google.internal")
"""Addresses at which clouds answer with the credentials of a server, or their beginnings."""


class _Blocked(Enum):
    UNLISTED = (
        "blocked because the agent task's allow-list doesn't have them: {endpoints}; add them to `allow:` of the task, or let "
        "the operator add them to GIBIL_EGRESS_ALLOW"
    )
    PRIVATE = "blocked because they are not public: {endpoints}; the operator can allow them with GIBIL_EGRESS_ALLOW={entries}"
    ITSELF = (
        "requested from the proxy, but it is the machine itself: {endpoints}; connect without the proxy, as localhost or with "
        "that host in NO_PROXY"
    )
    METADATA = "blocked because clouds answer there with the credentials of a server: {endpoints}"


def _reason(refusal: Refusal) -> _Blocked:
    if refusal.host.startswith(_METADATA):
        return _Blocked.METADATA  # without a remedy, because they should stay blocked
    if refusal.unlisted:
        return _Blocked.UNLISTED
    return _Blocked.ITSELF if refusal.itself else _Blocked.PRIVATE


def _shown(refusal: Refusal) -> str:
    """Return the endpoint; of one that isn't in an allow-list, the entry that would add it."""
    return refusal.host if refusal.unlisted and refusal.port in (0, *WEB_PORTS) else _endpoint(refusal)


def _endpoint(refusal: Refusal) -> str:
    return f"[{refusal.host}]:{refusal.port}" if ":" in refusal.host else f"{refusal.host}:{refusal.port}"


def failed_preparation(plan: Plan, results: Iterable[TaskResult]) -> TaskResult | None:
    """Return the result of the first task that failed, if it was to prepare the others, or had no complete checkout."""
    for result in sorted(results, key=lambda result: result.index):
        task = plan.tasks[result.index]
        if result.status.has_failed and not task.continue_on_error:
            return result if task.kind == "prepare" or missing_in(plan) else None
    return None


def missing_in(plan: Plan) -> str:
    """Return what the checkout of a detected project lacks; empty if nothing is known."""
    return plan.detected.missing if plan.detected is not None else ""


def preparation_name(plan: Plan, failed: TaskResult) -> str:
    """Return what could not be prepared, for people."""
    task = plan.tasks[failed.index]
    return task.name if task.kind == "prepare" else missing_in(plan)


def none_could_run(plan: Plan, results: Iterable[TaskResult]) -> bool:
    """Return whether tests or linters failed because a program doesn't exist: no command could run, or one calls it."""
    return any(result.exit_status == _NOT_FOUND and plan.tasks[result.index].kind == "run" for result in results)


def not_run(plan: Plan, results: Iterable[TaskResult]) -> str:
    """Return what didn't run because the preparation failed, for people; empty if some of it did."""
    if any(plan.tasks[result.index].kind != "prepare" and result.status is not TaskStatus.SKIPPED for result in results):
        return ""
    return {"test": "the tests", "lint": "the linters", "format": "the formatters"}.get(
        plan.detected.purpose if plan.detected else "", "the other tasks"
    )


def quotes_view(detected: DetectedProject) -> list[tuple[str, str]]:
    """Return the commands of the project's own CI, each with its position."""
    return [(quote.command, f"{quote.path}:{quote.line}" if quote.line else quote.path) for quote in detected.quotes]


def detected_view(detected: DetectedProject) -> dict[str, object]:
    """Return what was detected as JSON. It contains parts of the project's files."""
    return {
        "purpose": detected.purpose,
        "problem": detected.problem,
        "evidence": list(detected.evidence),
        "ci": [{"command": quote.command, "path": quote.path, "line": quote.line} for quote in detected.quotes],
        "suggestion": detected.suggestion or None,
    }


def prepared_view(entry: PreparedMachine) -> dict[str, object]:
    """Return a prepared machine as JSON."""
    return {
        "id": entry.layer,
        "kind": "prepared",
        "provider": entry.provider,
        "repository": entry.repository_name,
        "workflow": entry.workflow,
        "scope": entry.scope,
        "size_mb": entry.size_mb,
        "depth": entry.depth,
        "saves_s": entry.prepared_in_s,
        "created_at": timestamp(entry.created_at),
    }


def cache_view(entry: CacheEntry) -> dict[str, object]:
    """Return a cache as JSON."""
    return {
        "id": entry.id,
        "kind": entry.kind,
        "repository": entry.repository_name,
        "workflow": entry.workflow,
        "scope": entry.scope,
        "key": entry.key,
        "paths": list(entry.paths),
        "size_mb": round(entry.size_bytes / 1024**2, 3),
        "created_at": timestamp(entry.created_at),
    }


def template_view(template: Template) -> dict[str, object]:
    """Return a template as JSON. The price is for a month, net, for its size, as text."""
    return {
        "name": template.name,
        "provider": template.provider,
        "id": template.id,
        "size_mb": template.size_mb,
        "created_at": timestamp(template.created_at),
        "repo": template.labels.get("repo"),
        "commit": template.labels.get("commit"),
        "branch": template.labels.get("branch"),
        "price_monthly": None if template.price_monthly is None else f"{template.price_monthly:f}",
        "currency": template.currency,
    }


def run_view(run: Run, results: Sequence[TaskResult]) -> dict[str, object]:
    """Return a run as JSON, without its output, which only readers of the check run may see."""
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
        "preparation_failed": failed_preparation(run.plan, results) is not None,
        "tasks": [
            {
                "name": result.name,
                "kind": run.plan.tasks[result.index].kind,
                "status": result.status.value,
                "exit_status": result.exit_status,
                "duration_s": result.duration_s,
                "agent": agent_view(result.agent) if result.agent is not None else None,
            }
            for result in results
        ],
    }


def agent_view(agent: AgentResult) -> dict[str, object]:
    """Return how an agent task ended and what it used, as JSON, without what the agent said."""
    spent = agent.spent
    return {
        "engine": agent.engine,
        "model": agent.model or None,
        "ended": agent.ended,
        "rounds": agent.rounds,
        "attempts": max(1, len(agent.attempts)),
        "calls": spent.calls,
        "rejected_calls": spent.refused,
        "tokens": spent.usage.tokens,
        "usd": f"{spent.usd:f}",
        "estimated": spent.usage.is_estimated,
        "machine_time_s": spent.seconds,
        "budget": agent.budget or None,
        "exceeded": agent.limit or None,
    }


def machine_created(machine: Machine) -> dict[str, object]:
    """Return the result of `create`, once SSH answers.

    `ssh_key_id` is null, because no provider stores the machine's key: it is derived here and passed in the user-data. A cloud
    project's shared key isn't named: it doesn't open the machine, and a user who deletes "the machine's key" at the end would
    delete it for all machines.
    """
    ttl = _ttl_minutes(machine)
    return {
        "name": machine.name,
        "provider": machine.provider,
        "ip": machine.endpoint.host,
        "port": machine.endpoint.port if machine.endpoint.host is not None else None,
        "server_id": _server_id(machine),
        "ssh_key_id": None,
        "status": "ready",
        "ttl": ttl,
        "ttl_minutes": ttl,
        "created_at": timestamp(machine.created_at),
        "expires_at": timestamp(machine.expires_at),
        "ssh_command": f"gibil ssh {machine.name}",
        "host_key": machine.endpoint.host_key,
    }


def machine_listed(machine: Machine, now: datetime) -> dict[str, object]:
    """Return one machine of `list`. `labels` has its owner and purpose; machines of the bot have `run`."""
    labels = {name: value for name, value in machine.labels.items() if name != "creation"}
    return {
        "name": machine.name,
        "provider": machine.provider,
        "ip": machine.endpoint.host,
        "server_id": _server_id(machine),
        "status": machine.status,
        "ttl": _ttl_minutes(machine),
        "ttl_remaining_minutes": max(0, round((machine.expires_at - now).total_seconds() / 60, 1)),
        "created_at": timestamp(machine.created_at),
        "expires_at": timestamp(machine.expires_at),
        "repo": machine.labels.get("repo"),
        "labels": labels,
    }


def machine_extended(machine: Machine) -> dict[str, object]:
    return {
        "name": machine.name,
        "ttl_minutes": _ttl_minutes(machine),
        "expires_at": timestamp(machine.expires_at),
    }


def machine_destroyed(name: str, *, was_there: bool) -> dict[str, object]:
    """Return the result of `destroy`: an absent machine also counts as destroyed."""
    return {"name": name, "status": "destroyed", "destroyed": True, "was_already_destroyed": not was_there}


def _server_id(machine: Machine) -> int | str:
    """Return the provider's id: a number if it numbers its machines (Hetzner), as in its API and tools."""
    return int(machine.id) if machine.id.isdecimal() and machine.id != machine.name else machine.id


def _ttl_minutes(machine: Machine) -> int | float:
    """Return the minutes from creation to expiry, rounded, since a cloud's clock may differ by a second or two."""
    minutes = round((machine.expires_at - machine.created_at).total_seconds() / 60, 1)
    return int(minutes) if minutes == int(minutes) else minutes
