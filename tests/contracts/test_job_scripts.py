"""The shell text of jobs, run by the shells that a machine may have: as the login shell, and as `sh`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gibil_bot.model import Job
from gibil_bot.scripts.jobs import attach_command, start_command
from tests.doubles.patience import patient

SHELLS = ("dash", "bash")


@pytest.fixture(params=SHELLS)
def login(request: pytest.FixtureRequest) -> str:
    return found(request.param)


@pytest.fixture(params=SHELLS)
def far_env(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """Return an environment with a home, and a PATH on which `sh` is that shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to(found(request.param))
    return {"HOME": str(tmp_path), "PATH": f"{folder}:/usr/bin:/bin"}


def found(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here")
    return path


def start(login: str, env: dict[str, str], job: Job) -> tuple[bytes, list[bytes]]:
    """Start a job; return its stdout and the protocol lines for the client."""
    command, stdin = start_command(job)
    done = subprocess.run([login, "-c", command], input=stdin, env=env, capture_output=True, timeout=patient(30), umask=0o027)
    return done.stdout, [line for line in done.stderr.split(b"\n") if line.startswith(b"gibil:")]


def test_scripts_and_variables_arrive_byte_for_byte(login: str, far_env: dict[str, str]) -> None:
    """Every possible byte occurs in the script and in a value."""
    odd = bytes(range(1, 256)) + b"'\\''\n$(x) `y` \\\n"
    job = Job(
        id="j",
        script=odd.decode("utf-8", "surrogateescape"),
        env={"ODD": odd.decode("utf-8", "surrogateescape")},
        working_directory=far_env["HOME"],
        shell='python3 -c \'import os, sys; os.write(1, open(sys.argv[1], "rb").read() + os.environb[b"ODD"])\' {0}',
    )
    output, lines = start(login, far_env, job)
    assert output == odd + odd
    assert [line.split()[0] for line in lines] == [b"gibil:started", lines[-1].split()[0]]


def test_a_job_has_the_logins_umask_and_its_files_are_private(login: str, far_env: dict[str, str]) -> None:
    output, _ = start(login, far_env, Job(id="j", script="umask", working_directory="/"))
    assert output == b"0027\n"
    folder = Path(far_env["HOME"], ".gibil/jobs/j")
    assert {path.name.partition(".")[0]: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("script", "out", "rc", "pid", "copiers"), 0o600
    )
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_job_inherits_no_descriptor(login: str, far_env: dict[str, str]) -> None:
    script = 'for fd in /proc/$$/fd/*; do readlink "$fd" || :; done'
    output, _ = start(login, far_env, Job(id="j", script=script, working_directory="/"))
    folder = os.path.realpath(f"{far_env['HOME']}/.gibil/jobs/j")
    kinds = {line.removeprefix(folder).partition(".")[0].partition(":")[0] for line in output.decode().splitlines()}
    assert kinds == {"/dev/null", "pipe", "/script"}
    assert len({line for line in output.decode().splitlines() if line.startswith("pipe:")}) == 1


def test_a_repeated_or_interrupted_start_runs_nothing(login: str, far_env: dict[str, str]) -> None:
    job = Job(id="j", script="echo ran", working_directory="/", env={"A": "b"})
    command, stdin = start_command(job)
    for size in (0, 1, len(stdin) // 2, len(stdin) - 3):
        done = subprocess.run([login, "-c", command], input=stdin[:size], env=far_env, capture_output=True, timeout=patient(30))
        assert (done.stdout, b"gibil:started" in done.stderr) == (b"", False), size
    output, lines = start(login, far_env, job)
    assert (output, lines[0]) == (b"ran\n", b"gibil:started")
    assert start(login, far_env, job) == (b"", [b"gibil:again"])
    followed = subprocess.run(
        [login, "-c", attach_command("j", "stdout", 1)], env=far_env, capture_output=True, timeout=patient(30)
    )
    assert (followed.stdout, followed.stderr) == (b"an\n", b"gibil:exit 0 4\n")


def test_a_job_folder_that_cannot_be_created_is_reported(login: str, far_env: dict[str, str]) -> None:
    Path(far_env["HOME"], ".gibil").write_text("in the way")
    output, lines = start(login, far_env, Job(id="j", script="echo ran", working_directory="/"))
    assert (output, [line.partition(b" ")[0] for line in lines]) == (b"", [b"gibil:failed"])


def test_a_long_job_is_followed_and_its_end_reports_its_size(login: str, far_env: dict[str, str]) -> None:
    output, lines = start(login, far_env, Job(id="j", script="echo a; sleep 0.2; echo b; exit 137", working_directory="/"))
    assert (output, lines) == (b"a\nb\n", [b"gibil:started", b"gibil:exit 137 4"])


def test_a_job_runs_to_its_end_if_its_starter_disconnects_early(far_env: dict[str, str]) -> None:
    _, stdin = start_command(Job(id="j", script="grep SigIgn /proc/self/status; exit 6", working_directory="/"))
    jobs = Path(far_env["HOME"], ".gibil/jobs")
    jobs.mkdir(parents=True)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        subprocess.run(
            ["flock", "-nF", jobs / ".j.lock", "sh"],
            input=stdin,
            env=far_env,
            stdout=writer,
            stderr=writer,
            timeout=patient(30),
        )
    finally:
        os.close(writer)
    assert (jobs / "j/rc").read_text() == "6      \n"
    assert int((jobs / "j/out").read_text().split()[1], 16) & (1 << 12) == 0  # the job doesn't ignore SIGPIPE
