"""The command line for users and programs: help, one-line errors, one JSON value, documented exit statuses."""

from __future__ import annotations

import hashlib
import hmac
import http.server
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest

from tests.doubles import prefork
from tests.doubles.patience import patient

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}
WORKFLOW = (
    "name: Docs\non: {command: docs, pull_request: [opened]}\ninputs:\n  fast: {type: boolean, default: false}\n"
    "tasks:\n  - {name: a, run: 'true'}\n"
)
SHA = "a" * 40
REPOSITORY = {"id": 1, "full_name": "ada/engine", "clone_url": "https://github.com/ada/engine.git", "default_branch": "main"}


def gibil(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return prefork.run(arguments, env={**ENVIRONMENT, **settings}, cwd=".", timeout=patient(60))


def comment(body: str) -> str:
    return json.dumps(
        {
            "action": "created",
            "installation": {"id": 1},
            "repository": REPOSITORY,
            "issue": {"number": 7, "pull_request": {}},
            "comment": {"id": 1, "body": body, "user": {"login": "ada"}},
            "sender": {"login": "ada"},
        }
    )


def test_help_names_every_command_and_each_has_an_example() -> None:
    shown = gibil("--help").stdout
    for command in ("demo", "try", "serve", "doctor", "check", "plan", "replay"):
        assert f"  {command} " in shown
        own = gibil(command, "--help")
        assert own.returncode == 0
        assert "gibil" in own.stdout


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("check", "absent.yml"), ("serve", "--port", "eighty"), ("plan", "absent.yml")]
)
def test_a_usage_error_is_one_line_with_status_2(arguments: tuple[str, ...]) -> None:
    done = gibil(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    as_json = gibil(*arguments, "--json")
    assert as_json.returncode == 2
    assert json.loads(as_json.stdout)["exit_code"] == 2


def test_serve_reports_all_missing_settings_at_once(tmp_path: Path) -> None:
    done = gibil("serve", GIBIL_DATA_DIR=str(tmp_path))
    assert done.returncode == 6
    assert len(done.stderr.strip().splitlines()) == 3
    for name in ("GIBIL_GITHUB_APP_ID", "GIBIL_GITHUB_PRIVATE_KEY", "GIBIL_GITHUB_WEBHOOK_SECRET"):
        assert name in done.stderr


def test_check_reports_line_column_and_the_correct_word(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yml", tmp_path / "bad.yml"
    good.write_text(WORKFLOW)
    bad.write_text(WORKFLOW.replace("tasks:", "taks:"))
    assert gibil("check", str(good)).returncode == 0
    done = gibil("check", str(good), str(bad), "--json")
    assert done.returncode == 2
    result = json.loads(done.stdout)
    assert result["files"] == 2
    assert [(p["line"], p["column"]) for p in result["problems"]] == [(5, 1)]
    assert "tasks" in result["problems"][0]["message"]


def test_plan_prints_the_run_of_a_comment_and_starts_none(tmp_path: Path) -> None:
    (tmp_path / "docs.yml").write_text(WORKFLOW)
    (tmp_path / "event.json").write_text(comment("/gibil docs fast=true"))
    event = ("--event", str(tmp_path / "event.json"))
    done = gibil("plan", str(tmp_path / "docs.yml"), *event, "--json")
    assert done.returncode == 0, done.stderr
    (plan,) = json.loads(done.stdout)
    assert plan["workflow"] == "docs"
    assert plan["inputs"] == {"fast": "true"}
    (tmp_path / "event.json").write_text(comment("nothing for us"))
    assert json.loads(gibil("plan", str(tmp_path / "docs.yml"), *event, "--json").stdout) == []


def test_plan_needs_no_payload_and_lists_skipped_tasks(tmp_path: Path) -> None:
    path = tmp_path / "preview.yml"
    path.write_text(
        "on: {command: preview, pull_request: [opened]}\n"
        "inputs: {target: {type: choice, options: [staging, demo], default: staging}, dry: {type: boolean, default: true}}\n"
        "tasks:\n"
        "  - {name: build, run: make}\n"
        "  - {name: upload, if: '${{ !inputs.dry }}', run: make upload}\n"
        "  - {name: mourn, if: failure(), run: make mourn}\n"
    )
    done = gibil("plan", str(path), "/gibil preview target=demo")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["task", "1", "build", "runs"] in lines
    assert ["task", "2", "upload", "skipped:", "if:", "${{", "!true", "}}"] in lines
    assert ["task", "3", "mourn", "runs", "only", "after", "a", "failure"] in lines
    assert ["inputs", "target=demo", "dry=true"] in lines
    assert "target=staging" in gibil("plan", str(path), "--pull-request", "opened").stdout
    refused = gibil("plan", str(path), "/gibil preview target=nowhere")
    assert (refused.returncode, "staging, demo" in refused.stderr) == (2, True)
    other = gibil("plan", str(path), "/gibil deploy")
    assert "its command is /gibil preview" in other.stderr
    assert gibil("plan", str(path)).returncode == 2


def test_plan_says_that_tasks_are_detected_on_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "check.yml"
    path.write_text("on: {command: check}\ntasks: [{name: check, detect: test}, {name: after, run: x}]\n")
    shown = gibil("plan", str(path), "/gibil check").stdout
    assert "task 1       check  runs; its tasks are detected in the project's files on the machine\n" in shown
    assert "task 2       after  runs\n" in shown


def test_check_reads_the_current_or_the_named_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    (project / ".gibil" / "workflows").mkdir(parents=True)
    (project / ".gibil.yml").write_text("tasks: [{run: make}]\n")
    (project / ".gibil" / "workflows" / "docs.yml").write_text(WORKFLOW)
    operators = tmp_path / "operators"
    operators.mkdir()
    (operators / "one.yml").write_text(WORKFLOW)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(project)
    assert json.loads(gibil("check", "--json").stdout)["files"] == 2
    assert json.loads(gibil("check", str(project), str(operators), "--json").stdout)["files"] == 3
    nothing = gibil("check", str(tmp_path / "empty"))
    assert (nothing.returncode, "no workflow" in nothing.stderr) == (2, True)


def test_replay_signs_the_delivery_that_it_posts(tmp_path: Path) -> None:
    seen: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(202)
            self.end_headers()
            self.wfile.write(b"accepted\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        (tmp_path / "comment.json").write_text(comment("/gibil test"))
        url = f"http://127.0.0.1:{server.server_port}/webhook"
        done = gibil("replay", str(tmp_path / "comment.json"), "--url", url, "--json", GIBIL_GITHUB_WEBHOOK_SECRET="a-secret")
        server.shutdown()
        thread.join()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["event"] == "issue_comment"
    (headers, body) = seen[0]
    expected = hmac.new(b"a-secret", body, hashlib.sha256).hexdigest()
    assert headers["X-Hub-Signature-256"] == f"sha256={expected}"
    unreachable = gibil("replay", str(tmp_path / "comment.json"), "--url", url, GIBIL_GITHUB_WEBHOOK_SECRET="a-secret")
    assert unreachable.returncode == 1
    assert "gibil serve" in unreachable.stderr


def test_doctor_prints_one_remedy_for_each_failure(tmp_path: Path, local_machines: None) -> None:
    done = gibil("doctor", "--json", GIBIL_DATA_DIR=str(tmp_path))
    assert done.returncode == 6
    result = json.loads(done.stdout)
    assert result["healthy"] is False
    by_name = {check["name"]: check for check in result["checks"]}
    assert by_name["provider local"]["ok"]
    assert by_name["database"]["ok"]
    assert by_name["workflows"]["ok"]
    failing = [check for check in result["checks"] if not check["ok"]]
    assert {check["name"] for check in failing} == {
        "GIBIL_GITHUB_APP_ID", "GIBIL_GITHUB_PRIVATE_KEY", "GIBIL_GITHUB_WEBHOOK_SECRET",
    }  # fmt: skip
    assert all(check["fix"] for check in failing)


def test_doctor_reports_unreadable_settings(tmp_path: Path) -> None:
    done = gibil("doctor", GIBIL_DATA_DIR=str(tmp_path), GIBIL_PORT="eighty")
    assert done.returncode == 6
    assert "FAIL GIBIL_PORT" in done.stdout
