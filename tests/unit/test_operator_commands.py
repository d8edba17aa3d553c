"""`gibil replay` and `gibil doctor` on an operator's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gibil_bot.cli.doctor import _data_dir
from gibil_bot.cli.replay import guess_event
from gibil_bot.config import load_settings


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        ({"zen": "Design for failure.", "hook_id": 1, "hook": {}}, "ping"),
        ({"comment": {}, "issue": {}}, "issue_comment"),
        ({"comment": {}, "pull_request": {}}, "pull_request_review_comment"),
        ({"review": {}, "pull_request": {}}, "pull_request_review"),
        ({"pull_request": {}}, "pull_request"),
        ({"check_run": {"pull_requests": []}}, "check_run"),
        ({"check_suite": {}}, "check_suite"),
        ({"merge_group": {}}, "merge_group"),
    ],
)
def test_replay_guesses_the_event(payload: dict[str, object], event: str) -> None:
    assert guess_event(json.dumps(payload).encode(), Path("payload.json")) == event


def test_the_doctor_reports_a_data_directory_readable_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    found = _data_dir(load_settings({"GIBIL_DATA_DIR": str(folder)}))
    assert not found.ok
    assert "mode 755" in found.detail
    assert f"chmod 700 {folder}" in found.fix
    folder.chmod(0o700)
    assert "mode" not in _data_dir(load_settings({"GIBIL_DATA_DIR": str(folder)})).detail
