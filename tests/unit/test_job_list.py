"""The list of a machine's jobs, made by a real sh from folders as the supervisor leaves them."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

from gibil_bot.ssh.jobs import JobEntry, list_jobs_command, read_jobs


def job(home: Path, name: str, *, rc: str, script: str = "true\n") -> Path:
    folder = home / ".gibil" / "jobs" / name
    folder.mkdir(parents=True)
    (folder / "pid").write_text("1\n")
    (folder / "rc").write_text(rc)
    (folder.parent / f".{name}.lock").touch()
    (folder / "script.1").write_text(script)
    return folder


def listed(home: Path) -> dict[str, JobEntry]:
    done = subprocess.run(
        ["sh", "-c", list_jobs_command()], env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, capture_output=True, check=True
    )
    return {entry.id: entry for entry in read_jobs(done.stdout)}


def test_a_job_is_running_while_locked_then_exited_or_lost(tmp_path: Path) -> None:
    running = job(tmp_path, "running", rc="...\n", script="echo 'a\tb'\nsleep 9\n")
    job(tmp_path, "exited", rc="7  \n")
    job(tmp_path, "lost", rc="...\n")
    (tmp_path / ".gibil/jobs/never-began").mkdir()
    with (running.parent / ".running.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = listed(tmp_path)
    assert {name: (entry.status, entry.exit_status) for name, entry in found.items()} == {
        "running": ("running", None),
        "exited": ("exited", 7),
        "lost": ("lost", None),
    }
    assert found["running"].script == "echo 'a\tb'\nsleep 9\n"
    assert found["running"].ended_at is None
    assert found["exited"].ended_at is not None


def test_a_machine_without_jobs_has_an_empty_list(tmp_path: Path) -> None:
    assert listed(tmp_path) == {}


def test_an_incomplete_answer_is_not_an_entry() -> None:
    assert read_jobs(b"id\0exited\0") == []
