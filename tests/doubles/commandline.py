"""The `gibil` command for tests as users have it: on PATH, in a real bash, with a separate data directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gibil_bot.providers.local.paths import LocalPaths
from tests.doubles import prefork
from tests.doubles.json_output import check_output
from tests.doubles.machines import lend, take_back
from tests.doubles.patience import patient
from tests.doubles.repositories import ADA

_NOT_OURS = ("GIBIL_", "HCLOUD_", "GH_", "GITHUB_")
"""Settings and tokens of the user who runs the tests."""


@dataclass
class CommandLine:
    """`folder` contains everything; commands run in `folder / "here"`."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    """For every command: a provider's token, …"""
    started: list[prefork.Forked] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def here(self) -> Path:
        return self.folder / "here"

    @property
    def paths(self) -> LocalPaths:
        return LocalPaths(self.data_dir.absolute())

    def environment(self, **more: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_OURS)}
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        ours = {"PATH": path, "HOME": str(self.folder / "home"), "GIBIL_DATA_DIR": str(self.data_dir), "NO_COLOR": "1"}
        ours["GIBIL_CONNECTION_IDLE"] = "0"  # no process is left behind
        return {**kept, **ours, **ADA, **self.settings, **more}

    def gibil(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command, forked by prefork.py. Its JSON output has to agree with `gibil schema`."""
        done = prefork.run(arguments, env=self.environment(**more), cwd=self.here, timeout=patient(120))
        check_output(arguments, done.stdout)
        return done

    def many(
        self, calls: Sequence[Sequence[str]], *, stdout: str = "kept", stderr: str = "kept", **more: str
    ) -> list[subprocess.CompletedProcess[str]]:
        """Run each command in a separate process. `stdout`, `stderr`: kept; gone (no reader); full (a full disk); closed."""
        return [self._with_streams(call, stdout, stderr, self.environment(**more)) for call in calls]

    def _with_streams(
        self, call: Sequence[str], stdout: str, stderr: str, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        with contextlib.ExitStack() as opened:

            def stream(how: str) -> Any:
                if how == "gone":
                    reading, writing = os.pipe()
                    os.close(reading)
                    opened.callback(os.close, writing)
                    return writing
                if how == "full":
                    return opened.enter_context(open("/dev/full", "wb", buffering=0))
                return {"kept": subprocess.PIPE, "closed": None}[how]

            done = prefork.run(
                call, env=environment, cwd=self.here, stdout=stream(stdout), stderr=stream(stderr), timeout=patient(120)
            )
            check_output(call, done.stdout)
            return done

    def start(self, *arguments: str, **more: Any) -> prefork.Forked:
        """Start the command, forked by prefork.py, in a new process group. `more`: env, cwd, stdin, stdout, stderr."""
        words: dict[str, Any] = {"env": self.environment(), "cwd": self.here, "process_group": 0}
        process = prefork.Forked(arguments, **{**words, **more})
        self.started.append(process)
        return process

    def end(self) -> None:
        """End everything that was started, also after a failed test."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            process.wait(timeout=patient(20))

    def json(self, *arguments: str) -> Any:
        """Run a command that has to succeed; return its stdout, which has to be exactly one JSON value."""
        done = self.gibil(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def bash(self, script: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a script as a user would, with `gibil` and `jq` on PATH."""
        return subprocess.run(
            ["bash", "-c", script],
            env=self.environment(**more),
            cwd=self.here,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patient(120),
        )

    def repository(self, name: str, files: dict[str, str], *, branch: str = "main") -> Path:
        """Create a checkout with one commit."""
        folder = self.here / name
        folder.mkdir(parents=True)
        self.git(folder, "init", "-q", "-b", branch)
        self.commit(folder, files)
        return folder

    def commit(self, folder: Path, files: dict[str, str]) -> str:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        self.git(folder, "add", "-A")
        self.git(folder, "commit", "-q", "-m", "change")
        return self.git(folder, "rev-parse", "HEAD")

    def git(self, folder: Path, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**os.environ, **ADA},
            capture_output=True,
            text=True,
            timeout=patient(60),
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@contextlib.contextmanager
def command_line(
    folder: Path,
    shared: Path,
    settings: dict[str, str] | None = None,
    *,
    own_daemon: bool = False,
    forked_in_scripts: bool = False,
) -> Iterator[CommandLine]:
    """At the end no machine is left.

    `own_daemon`: for tests that end the daemon, or whose machines outlive a test (machines.lend).
    `forked_in_scripts`: the `gibil` of `bash` scripts is forked, too.
    """
    line = CommandLine(folder, settings or {})
    line.here.mkdir()
    (folder / "home").mkdir()
    (folder / "bin").mkdir()
    shim = folder / "bin" / "gibil"
    started = "-m gibil_bot"
    if forked_in_scripts:
        (folder / "gibil.py").write_text(prefork.program(line.environment()))
        started = f'-IS "{folder}/gibil.py"'
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" {started} "$@"\n')
    shim.chmod(0o755)
    asyncio.run(lend(line.data_dir, shared, own_daemon=own_daemon))
    try:
        yield line
    finally:
        line.end()
        asyncio.run(take_back(line.data_dir, own_daemon=own_daemon))
