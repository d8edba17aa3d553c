"""Common behaviour of all commands: one JSON value, and a defined end if stdout is closed, full or has no reader."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import click
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gibil_bot.cli import gibil
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient
from tests.doubles.terminal import read_until

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("every command")]

Words = tuple[str, ...]

ROWS: dict[str, tuple[Words | None, Words]] = {
    "demo": ((), ("--nonsense",)),
    "try": (("project",), ("project", "-w", "absent")),
    "create": ((), ("--name", "Not_A_Name")),
    "run": (("m", "echo out; echo err >&2"), ("absent", "true")),
    "ssh": (("m",), ("absent",)),
    "cp": (("bad.yml", "m:copied"), ("absent:file", ".")),
    "fork": (None, ("absent",)),
    "template list": ((), ("--nonsense",)),
    "template create": (None, ("t", "--from", "absent")),
    "template delete": (("absent",), ()),
    "list": ((), ("--provider", "aws")),
    "info": (("m",), ("absent",)),
    "extend": (("m", "1m"), ("absent", "1m")),
    "destroy": (("absent",), ()),
    "branch": (("main",), ("absent",)),
    "logs": (("m",), ("absent",)),
    "jobs": (("m",), ("absent",)),
    "push": (("m", "--branch", "work"), ("absent",)),
    "pr create": (None, ("absent",)),
    "mcp": (("--print-config",), ()),
    "token create": (("ada",), ("a b",)),
    "token list": ((), ("--nonsense",)),
    "token revoke": (None, ("absent",)),
    "providers": ((), ("--nonsense",)),
    "engines": ((), ("--nonsense",)),
    "init": ((), ("--provider", "aws")),
    "serve": (None, ("--port", "eighty")),
    "doctor": (None, ()),
    "cache list": ((), ("--nonsense",)),
    "budget": ((), ("--day", "yesterday")),
    "db status": ((), ("--nonsense",)),
    "db migrate": ((), ("--nonsense",)),
    "db check": ((), ("--nonsense",)),
    "db prune": ((), ("--nonsense",)),
    "db export": (None, ("mysql://absent",)),
    "cache clear": ((), ("--nonsense",)),
    "check": (("good.yml",), ("bad.yml",)),
    "detect": ((), ("absent",)),
    "plan": (("good.yml", "--event", "comment.json"), ("good.yml", "--event", "bad.yml")),
    "replay": (("comment.json", "--url", "BOT"), ("bad.yml",)),
    "schema": ((), ("brew",)),
    "completion": (("bash",), ("tcsh",)),
}
"""For each command: arguments that succeed, and arguments that fail. A new command needs a row.

`serve` runs until it is stopped, `db export` needs a bot that is stopped, `pr` a GitHub, `token revoke` the id of a token, and
copies of a disk end what runs on `m`: other tests cover them. `doctor` reports that half of the settings is missing.
"""
EXPENSIVE = {"demo", "try", "create", "branch", "init", "providers"}
"""They create machines, and print with the same code as the others."""
WORKFLOW = "name: Docs\non: {command: docs}\ntasks:\n  - {name: a, run: 'true'}\n"
COMMENT = {
    "action": "created",
    "installation": {"id": 1},
    "repository": {"id": 1, "full_name": "ada/e", "clone_url": "https://github.com/ada/e.git", "default_branch": "main"},
    "issue": {"number": 7, "pull_request": {}},
    "comment": {"id": 1, "body": "/gibil docs", "user": {"login": "ada"}},
    "sender": {"login": "ada"},
}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Create a machine `m` with a commit on it, a checkout with an origin, and an incomplete configuration of a bot."""
    settings = {"GIBIL_GITHUB_WEBHOOK_SECRET": secrets.token_hex(16), "GIBIL_MAX_MACHINES": "100"}
    with command_line(tmp_path_factory.mktemp("every"), shared_folder(tmp_path_factory), settings, own_daemon=True) as line:
        (line.here / "good.yml").write_text(WORKFLOW)
        (line.here / "bad.yml").write_text("tasks: [")
        (line.here / "comment.json").write_text(json.dumps(COMMENT))
        project = line.repository("project", {".gibil.yml": "tasks: [{name: t, run: 'true'}]\n"})
        line.git(line.folder, "clone", "-q", "--bare", str(project), "origin.git")
        for folder in (project, line.here):
            line.git(folder, "init", "-q")
            line.git(folder, "remote", "add", "origin", str(line.folder / "origin.git"))
        line.json("create", "--name", "m", "--repo", "project", "--wait", "ready")
        commit = "cd project && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m work"
        assert line.gibil("run", "m", commit).returncode == 0
        yield line


@pytest.fixture(scope="module")
def bot(line: CommandLine) -> Iterator[str]:
    """Start `gibil serve --json`, whose JSON value contains its address."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    app = {
        "GIBIL_GITHUB_URL": "http://127.0.0.1:9",
        "GIBIL_GITHUB_APP_ID": "1",
        "GIBIL_GITHUB_PRIVATE_KEY": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    process = line.start("serve", "--json", "--port", "0", stderr=subprocess.DEVNULL, env=line.environment(**app))
    where = json.loads(read_until(process, b"\n"))
    assert where.keys() == {"url", "host", "port", "pid"}
    assert (where["pid"], where["url"]) == (process.pid, f"http://127.0.0.1:{where['port']}")
    yield where["url"]
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=patient(20))
    assert (rest, process.returncode) == (b"", 0)


def calls(which: int, bot: str = "", *, but: set[str] = frozenset(), options: Words = ("--json",)) -> list[Words]:  # type: ignore[assignment]
    found = []
    for name, row in ROWS.items():
        words = row[which]
        if words is not None and name not in but:
            found.append((*name.split(), *options, *(f"{bot}/webhook" if word == "BOT" else word for word in words)))
    return found


def one_value(done: subprocess.CompletedProcess[str]) -> Any:
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise AssertionError(f"{done.args}: not one JSON value: {done.stdout!r}; {done.stderr}") from None


def assert_no_noise(done: subprocess.CompletedProcess[str]) -> None:
    for word in ("Traceback", "Exception", "internal error", "Error "):
        assert word not in done.stderr + done.stdout, (done.args, done.stderr, done.stdout)


def test_every_command_has_a_row() -> None:
    assert {name.split()[0] for name in ROWS} == set(gibil.list_commands(click.Context(gibil)))


def test_success_is_one_json_value(line: CommandLine, bot: str) -> None:
    for done in line.many(calls(0, bot)):
        assert done.returncode == 0, (done.args, done.stderr, done.stdout)
        assert one_value(done) is not None
        assert_no_noise(done)


@pytest.mark.parametrize("stderr", ["kept", "full", "closed"])
def test_failure_is_one_json_value_whatever_happens_to_stderr(line: CommandLine, stderr: str) -> None:
    for done in line.many(calls(1), stderr=stderr):
        result = one_value(done)
        assert done.returncode in (2, 6), (done.args, done.stdout)
        if done.args[0] == "doctor":
            assert result["healthy"] is False
        elif done.args[0] == "check":
            assert result["problems"]
        else:
            assert (result.keys(), result["exit_code"]) == ({"error", "code", "message", "exit_code"}, done.returncode)
        assert_no_noise(done)


@pytest.mark.parametrize("options", [("--json",), ()])
def test_a_full_stdout_is_reported_in_one_line(line: CommandLine, bot: str, options: Words) -> None:
    for done in line.many(calls(0, bot, but=EXPENSIVE, options=options), stdout="full"):
        if options or done.returncode:
            assert done.returncode == 1, (done.args, done.stderr)
            assert done.stderr.count("No space left on device") == 1, (done.args, done.stderr)
        assert_no_noise(done)


@pytest.mark.parametrize(("stdout", "options"), [("gone", ("--json",)), ("closed", ())])
def test_a_command_without_a_reader_ends_quietly(line: CommandLine, bot: str, stdout: str, options: Words) -> None:
    for done in line.many(calls(0, bot, but=EXPENSIVE, options=options), stdout=stdout):
        assert done.returncode == 141 or (not options and done.returncode == 0), (done.args, done.stderr)
        assert_no_noise(done)
