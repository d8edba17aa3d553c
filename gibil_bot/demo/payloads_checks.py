"""The JSON of checks in the REST API and in webhooks: https://docs.github.com/en/rest/checks/runs"""

from __future__ import annotations

from gibil_bot.demo.payloads import Json, app, moment, node_id
from gibil_bot.demo.records import CheckRun, CheckSuite, Repository
from gibil_bot.demo.state import State


def _pulls_of(state: State, home: Repository, sha: str) -> list[Json]:
    """Return pull requests from branches of the repository itself; the list is empty for forks.

    https://docs.github.com/en/rest/checks/runs#create-a-check-run
    """
    return [
        {
            "id": each.id,
            "number": each.number,
            "url": f"{state.url}/repos/{home.full_name}/pulls/{each.number}",
            "head": {"ref": each.head_ref, "sha": each.head_sha, "repo": {"id": home.id, "name": home.name}},
            "base": {"ref": each.base_ref, "sha": each.base_sha, "repo": {"id": home.id, "name": home.name}},
        }
        for each in home.pull_requests()
        if each.state == "open" and each.head_sha == sha and each.head_repository is home
    ]


def check_suite(state: State, home: Repository, it: CheckSuite) -> Json:
    runs = [run for run in home.check_runs.values() if run.suite_id == it.id]
    unfinished = [run for run in runs if run.status != "completed"]
    return {
        "id": it.id,
        "node_id": node_id("CheckSuite", it.id),
        "head_branch": it.head_branch,
        "head_sha": it.head_sha,
        "before": None,
        "after": it.head_sha,
        "status": "queued" if not runs else (unfinished[0].status if unfinished else "completed"),
        "conclusion": None if unfinished or not runs else max(runs, key=lambda run: run.id).conclusion,
        "url": f"{state.url}/repos/{home.full_name}/check-suites/{it.id}",
        "pull_requests": _pulls_of(state, home, it.head_sha),
        "app": app(state),
        "latest_check_runs_count": len(runs),
        "created_at": moment(it.created_at),
        "updated_at": moment(it.updated_at),
    }


def check_run(state: State, home: Repository, it: CheckRun) -> Json:
    api = f"{state.url}/repos/{home.full_name}"
    return {
        "id": it.id,
        "node_id": node_id("CheckRun", it.id),
        "name": it.name,
        "head_sha": it.head_sha,
        "external_id": it.external_id,
        "status": it.status,
        "conclusion": it.conclusion,
        "started_at": moment(it.started_at),
        "completed_at": moment(it.completed_at),
        "url": f"{api}/check-runs/{it.id}",
        "html_url": f"{state.url}/{home.full_name}/runs/{it.id}",
        "details_url": it.details_url or state.url,
        "output": {
            "title": it.title,
            "summary": it.summary,
            "text": it.text,
            "annotations_count": len(it.annotations),
            "annotations_url": f"{api}/check-runs/{it.id}/annotations",
        },
        "check_suite": {"id": it.suite_id},
        "app": app(state),
        "pull_requests": _pulls_of(state, home, it.head_sha),
    }
