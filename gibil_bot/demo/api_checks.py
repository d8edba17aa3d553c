"""Endpoints of checks, with GitHub's limits: https://docs.github.com/en/rest/checks/runs"""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import actions, payloads, payloads_checks, rest
from gibil_bot.demo.access import Refusal
from gibil_bot.demo.records import CheckRun, Repository

# https://docs.github.com/en/rest/checks/runs#create-a-check-run: the statuses waiting, requested and pending are only for
# Actions, and the conclusion `stale` only for GitHub itself.
STATUSES = ("queued", "in_progress", "completed")
CONCLUSIONS = ("action_required", "cancelled", "failure", "neutral", "success", "skipped", "timed_out")
LONGEST_OUTPUT = 65_535
MOST_ANNOTATIONS = 50
MOST_ACTIONS = 3
ACTION_LIMITS = {"label": 20, "description": 40, "identifier": 20}


async def create_check_run(request: Request) -> Response:
    """https://docs.github.com/en/rest/checks/runs#create-a-check-run: only for Apps."""
    repository = rest.repository(request, ("checks", "write"))
    hub = rest.hub(request)
    wanted = await rest.body(request)
    name = rest.text(wanted, "name", "CheckRun", required=True)
    sha = rest.text(wanted, "head_sha", "CheckRun", required=True)
    if not name or not sha:
        raise rest.invalid("CheckRun", "name", "missing_field", "name and head_sha may not be empty.")
    if len(sha) != 40 or await hub.git.resolve(repository.full_name, sha) != sha:
        raise Refusal(422, f"No commit found for SHA: {sha}")
    suite, _ = actions.suite_of(hub, repository, sha)
    now = hub.state.now()
    run = CheckRun(hub.state.new_id(), suite.id, name, sha, "queued", started_at=now, created_at=now, changed_at=now)
    _apply(run, wanted, now)
    repository.check_runs[run.id] = run
    actions.send_check_run(hub, repository, run, "created", hub.state.bot)
    return rest.answer(payloads_checks.check_run(hub.state, repository, run), 201)


async def update_check_run(request: Request) -> Response:
    """https://docs.github.com/en/rest/checks/runs#update-a-check-run"""
    repository = rest.repository(request, ("checks", "write"))
    hub = rest.hub(request)
    run = _check_run(request, repository)
    was_completed = run.status == "completed"
    _apply(run, await rest.body(request), hub.state.now())
    run.updates += 1
    run.changed_at = hub.state.now()
    repository.check_suites[run.suite_id].updated_at = hub.state.now()
    if run.status == "completed" and not was_completed:
        actions.send_check_run(hub, repository, run, "completed", hub.state.bot)
    hub.state.touch()
    return rest.answer(payloads_checks.check_run(hub.state, repository, run))


def _check_run(request: Request, repository: Repository) -> CheckRun:
    run = repository.check_runs.get(request.path_params["check_run"])
    if run is None:
        raise Refusal(404, "Not Found")
    return run


def _apply(run: CheckRun, wanted: payloads.Json, now: datetime) -> None:
    """Validate every field first, then write, so that a rejected request changes nothing."""
    name = rest.text(wanted, "name", "CheckRun")
    external_id = rest.text(wanted, "external_id", "CheckRun")
    details_url = rest.text(wanted, "details_url", "CheckRun")
    if details_url and not details_url.startswith(("http://", "https://")):
        raise rest.invalid("CheckRun", "details_url", "invalid", "details_url must use http or https scheme")
    started_at, completed_at = _time(wanted, "started_at"), _time(wanted, "completed_at")
    status, conclusion = _status(wanted, completed_at)
    output = _output(wanted)
    actions = _actions(wanted)

    run.name = name or run.name
    run.external_id = external_id if external_id is not None else run.external_id
    run.details_url = details_url if details_url is not None else run.details_url
    run.started_at = started_at or run.started_at
    run.actions = actions if actions is not None else run.actions
    if status is not None:
        run.status, run.conclusion = status, conclusion
        run.completed_at = (completed_at or now) if status == "completed" else None
    if output is not None:
        run.title, run.summary = str(output["title"]), str(output["summary"])
        run.text = rest.text(output, "text", "CheckRun")
        annotations = output.get("annotations") or []
        assert isinstance(annotations, list)
        run.annotations += annotations


def _time(wanted: payloads.Json, name: str) -> datetime | None:
    value = rest.text(wanted, name, "CheckRun")
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        raise rest.invalid("CheckRun", name, "invalid", f"For '{name}', {value!r} is not a valid date-time.") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _status(wanted: payloads.Json, completed_at: datetime | None) -> tuple[str | None, str | None]:
    """Apply GitHub's rule: a conclusion completes the run, and completing needs a conclusion."""
    status = rest.text(wanted, "status", "CheckRun")
    conclusion = rest.text(wanted, "conclusion", "CheckRun")
    if status is not None and status not in STATUSES:
        raise rest.invalid("CheckRun", "status", "invalid", f"status {status!r} is not one of {', '.join(STATUSES)}")
    if conclusion is not None:
        if conclusion not in CONCLUSIONS:
            message = f"conclusion {conclusion!r} is not one of {', '.join(CONCLUSIONS)}"
            raise rest.invalid("CheckRun", "conclusion", "invalid", message)
        return "completed", conclusion
    if status == "completed" or completed_at is not None:
        raise rest.invalid("CheckRun", "conclusion", "missing_field", "A completed check run needs a conclusion.")
    return status, None


def _output(wanted: payloads.Json) -> payloads.Json | None:
    output = wanted.get("output")
    if output is None:
        return None
    if not isinstance(output, dict):
        raise rest.invalid("CheckRun", "output", "invalid", "output is not an object.")
    for part in ("title", "summary"):
        rest.text(output, part, "CheckRun", required=True)
    for part in ("summary", "text"):
        length = len(rest.text(output, part, "CheckRun") or "")
        if length > LONGEST_OUTPUT:
            message = f"Only {LONGEST_OUTPUT} characters are allowed; {length} were supplied."
            raise rest.invalid("CheckRun", part, "invalid", message)
    annotations = output.get("annotations") or []
    if not isinstance(annotations, list) or len(annotations) > MOST_ANNOTATIONS:
        raise rest.invalid("CheckRun", "annotations", "invalid", f"No more than {MOST_ANNOTATIONS} annotations a request.")
    return output


def _actions(wanted: payloads.Json) -> list[payloads.Json] | None:
    actions = wanted.get("actions")
    if actions is None:
        return None
    if not isinstance(actions, list) or len(actions) > MOST_ACTIONS:
        raise rest.invalid("CheckRun", "actions", "invalid", f"No more than {MOST_ACTIONS} actions.")
    for action in actions:
        for part, longest in ACTION_LIMITS.items():
            value = action.get(part) if isinstance(action, dict) else None
            if not isinstance(value, str) or not value or len(value) > longest:
                raise rest.invalid("CheckRun", "actions", "invalid", f"{part}: a text of 1 to {longest} characters.")
    return actions


async def get_check_run(request: Request) -> Response:
    """https://docs.github.com/en/rest/checks/runs#get-a-check-run"""
    repository = rest.repository(request, ("checks", "read"))
    return rest.answer(payloads_checks.check_run(rest.hub(request).state, repository, _check_run(request, repository)))


async def list_check_runs(request: Request) -> Response:
    """https://docs.github.com/en/rest/checks/runs#list-check-runs-for-a-git-reference

    `filter` is `latest` (the newest of each name) by default, or `all`.
    """
    repository = rest.repository(request, ("checks", "read"))
    hub, query = rest.hub(request), request.query_params
    sha = await hub.git.resolve(repository.full_name, request.path_params["ref"])
    if sha is None:
        raise Refusal(422, f"No commit found for SHA: {request.path_params['ref']}")
    found = [run for run in repository.check_runs.values() if run.head_sha == sha]
    if query.get("check_name") is not None:
        found = [run for run in found if run.name == query["check_name"]]
    if query.get("app_id") is not None and query["app_id"] != str(hub.state.app_id):
        found = []  # only one App exists
    if query.get("status") is not None:
        found = [run for run in found if run.status == query["status"]]
    if query.get("filter", "latest") != "all":
        found = list({run.name: run for run in found}.values())
    found.sort(key=lambda run: run.id, reverse=True)
    shown, headers = rest.page(request, found)
    runs = [payloads_checks.check_run(hub.state, repository, run) for run in shown]
    return rest.answer({"total_count": len(found), "check_runs": runs}, headers=headers)


async def list_check_suites(request: Request) -> Response:
    """https://docs.github.com/en/rest/checks/suites#list-check-suites-for-a-git-reference"""
    repository = rest.repository(request, ("checks", "read"))
    hub = rest.hub(request)
    sha = await hub.git.resolve(repository.full_name, request.path_params["ref"])
    found = [suite for suite in repository.check_suites.values() if suite.head_sha == sha]
    shown, headers = rest.page(request, found)
    suites = [payloads_checks.check_suite(hub.state, repository, suite) for suite in shown]
    return rest.answer({"total_count": len(found), "check_suites": suites}, headers=headers)


async def rerequest(request: Request) -> Response:
    """https://docs.github.com/en/rest/checks/runs#rerequest-a-check-run"""
    repository = rest.repository(request, ("checks", "write"))
    hub = rest.hub(request)
    actions.rerequest_check_run(hub, repository, _check_run(request, repository), hub.state.bot)
    return rest.answer({}, 201)


_REPOSITORY = "/repos/{owner}/{name}"
ROUTES = [
    Route(f"{_REPOSITORY}/check-runs", create_check_run, methods=["POST"]),
    Route(f"{_REPOSITORY}/check-runs/{{check_run:int}}", get_check_run),
    Route(f"{_REPOSITORY}/check-runs/{{check_run:int}}", update_check_run, methods=["PATCH"]),
    Route(f"{_REPOSITORY}/check-runs/{{check_run:int}}/rerequest", rerequest, methods=["POST"]),
    Route(f"{_REPOSITORY}/commits/{{ref}}/check-runs", list_check_runs),
    Route(f"{_REPOSITORY}/commits/{{ref}}/check-suites", list_check_suites),
]
