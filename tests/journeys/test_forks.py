"""`git push` on a machine, `gibil fork` and `gibil template`, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("forks")]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Create a bare repository `origin.git`, a clone of it `work`, and a machine `m` created from the clone."""
    with command_line(tmp_path_factory.mktemp("forks"), shared_folder(tmp_path_factory), own_daemon=True) as line:
        first = line.repository("first", {"file": "1"})
        line.git(line.here, "clone", "-q", "--bare", str(first), "origin.git")
        line.git(line.here, "clone", "-q", str(line.here / "origin.git"), "work")
        made = line.gibil("create", "--name", "m", "--repo", "work", "--wait", "ready", "--env", "WORD=secret word")
        assert made.returncode == 0, made.stderr
        yield line


def on_machine(line: CommandLine, script: str, name: str = "m") -> str:
    done = line.gibil("run", name, f"set -e; cd /root/project; {script} 2>&1")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def test_what_was_pushed_on_a_machine_is_collected_before_its_head(line: CommandLine) -> None:
    on_machine(line, "git config user.name Agent; git config user.email agent@example.com; git checkout -q -b fix")
    pushed = on_machine(line, "echo 2 >file; git commit -qam two; git push")
    assert "gibil: 1 commit of 'fix' waits for gibil's checks; it isn't on the server yet." in pushed
    assert "gibil push m" in pushed
    head = on_machine(line, "git rev-parse HEAD; echo 3 >file; git commit -qam three").splitlines()[0]
    result = line.json("push", "m")
    assert (result["commit"], result["commits"]) == (head, 1)
    assert line.json("push", "m")["commits"] == 2, "nothing waits any more: its HEAD is pushed"


def test_forks_have_the_code_the_variables_and_the_remote_of_a_machine_that_goes_on(line: CommandLine) -> None:
    on_machine(line, "echo draft >draft")
    result = line.json("fork", "m", "--name", "try", "--count", "2")
    assert (result["fleet_id"], [each["name"] for each in result["instances"]]) == ("try", ["try-1", "try-2"])
    assert {each["forked_from"] for each in result["instances"]} == {"m"}
    for name in ("m", "try-1", "try-2"):
        assert on_machine(line, 'cat draft; echo "$WORD"; hostname', name) == f"draft\nsecret word\n{name}"
    on_machine(line, "echo 4 >file; git commit -qam four; git push -f", "try-1")
    assert line.json("push", "try-1")["branch"] == "gibil/try-1"
    line.json("destroy", "--fleet", "try")


def test_a_busy_machine_is_forked_only_with_stop(line: CommandLine) -> None:
    line.json("run", "m", "sleep 600", "--background")
    refused = line.gibil("fork", "m", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (2, "MACHINE_BUSY")
    fork = line.json("fork", "m", "--stop")
    assert (fork["forked_from"], fork["status"]) == ("m", "ready")
    line.json("destroy", fork["name"])


def test_a_template_is_created_listed_used_and_deleted(line: CommandLine) -> None:
    saved = line.json("template", "create", "ready", "--from", "m")
    assert (saved["name"], saved["machine"], saved["provider"], saved["price_monthly"]) == ("ready", "m", "local", None)
    assert line.json("template", "list") == [{key: value for key, value in saved.items() if key != "machine"}]
    line.json("create", "--template", "ready", "--name", "from-it", "--env", "OTHER=x", "--wait", "ready")
    assert on_machine(line, 'cat draft; echo "$WORD$OTHER"', "from-it") == "draft\nx"
    again = line.gibil("create", "--template", "ready", "--name", "code", "--repo", "work", "--wait", "ready", "--json")
    assert again.returncode == 0, again.stderr
    assert on_machine(line, "cat file; echo; ls", "code") == "1\nfile"
    assert line.json("template", "delete", "ready") == {"name": "ready", "deleted": True, "was_already_deleted": False}
    missing = line.gibil("create", "--template", "ready", "--json")
    assert (missing.returncode, json.loads(missing.stdout)["code"]) == (2, "TEMPLATE_NOT_FOUND")
