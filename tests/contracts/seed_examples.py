"""The seed's contract with scripts that use the command line: its shell examples, unchanged, and its JSON keys.

Every provider has to fulfil it: test_machine_commands.py runs it on `local`, test_seed_on_hetzner.py runs it on cloud servers.
"""

from __future__ import annotations

import json
from typing import Any

from tests.doubles.commandline import CommandLine

CREATED = {
    "name", "provider", "ip", "port", "server_id", "ssh_key_id", "status", "ttl", "ttl_minutes", "created_at", "expires_at",
    "ssh_command", "host_key",
}  # fmt: skip
LISTED = {
    "name", "provider", "ip", "server_id", "status", "ttl", "ttl_remaining_minutes", "created_at", "expires_at", "repo",
    "labels",
}  # fmt: skip
ERROR = {"error", "code", "message", "exit_code"}

PROJECT = {"package.json": "{}", ".gibil.yml": "tasks: [{name: test, run: test -f package.json}]\n"}
"""The files of the checkout `project`, in the folder where the examples run."""

CREATE_AND_USE = """
set -e
RESULT=$(gibil create --name agent-task --repo file://$PWD/project --ttl 20 --json)
test "$(echo "$RESULT" | jq -r .name)" = agent-task
test "$(echo "$RESULT" | jq -r .status)" = ready
test "$(echo "$RESULT" | jq -r .ttl)" = 20
IP=$(echo "$RESULT" | jq -r .ip)
while ! gibil run agent-task "test -f /root/.gibil-ready" --json >/dev/null; do sleep 0.3; done
while ! gibil run agent-task "test -f /root/.gibil-tasks-done" --json >/dev/null; do
    if gibil run agent-task "test -f /root/.gibil-tasks-failed" --json >/dev/null; then exit 70; fi
    sleep 0.3
done
gibil run agent-task "cd /root/project && ls package.json" --json | jq -r .stdout
"""
DESTROY = """
gibil list --json | jq -r '.[].name'
gibil destroy agent-task --json | jq -r .status
"""

PARALLEL_AGENTS = """
set -e
for n in $(seq $AGENTS); do gibil create --name agent-$n --json >created-$n & done
wait
cat created-* | jq -r .name
gibil create --fleet $FLEET --name fleet --json >fleet
jq -r '.instances[].name' fleet
"""
DESTROY_ALL = """
set -e
for n in $(seq $AGENTS); do gibil run agent-$n "echo $n >/root/mine; cat /root/mine" --json >ran-$n & done
wait
cat ran-* | jq -r .stdout
gibil destroy --fleet $(jq -r .fleet_id fleet) --json | jq length
gibil destroy --all --json | jq -r '.[].destroyed'
gibil list --json | jq length
"""

ERROR_PATH = """
RESULT=$(gibil run $NAME "echo broken >&2; exit 3" --json)
STATUS=$?
if [ "$(echo "$RESULT" | jq -r .exit_code)" != 0 ]; then
    echo "$RESULT" | jq -r .stderr
    gibil destroy $NAME --json | jq -r .destroyed
fi
gibil destroy $NAME --json | jq -r .was_already_destroyed
ERROR=$(gibil run $NAME true --json)
echo "$STATUS $?"
echo "$ERROR" | jq -r '.error, .code'
"""


def expected_error_output(name: str) -> list[str]:
    """Return what ERROR_PATH prints, without empty lines."""
    return ["broken", "true", "true", "3 2", f"Server '{name}' not found", "SERVER_NOT_FOUND"]


def check_created(view: dict[str, Any], provider: str) -> None:
    assert view.keys() >= CREATED
    assert (view["status"], view["provider"], view["ttl"]) == ("ready", provider, view["ttl_minutes"])
    assert view["host_key"].startswith("ssh-ed25519 ")
    assert view["ssh_command"] == f"gibil ssh {view['name']}"


def check_what_works_on_a_machine(line: CommandLine, name: str, created: dict[str, Any], repo: str) -> None:
    """Check every command that needs a machine with a repository, created by `gibil create`, except `destroy`."""
    (listed,) = [view for view in line.json("list") if view["name"] == name]
    assert listed.keys() >= LISTED
    assert (listed["status"], listed["repo"], listed["labels"]["made-by"]) == ("running", repo, "gibil create")
    assert [listed[key] for key in ("ip", "server_id", "provider")] == [created[key] for key in ("ip", "server_id", "provider")]
    assert listed["ttl"] - 2 <= listed["ttl_remaining_minutes"] <= listed["ttl"] == created["ttl"]
    extended = line.json("extend", name, "10m")
    assert extended.keys() == {"name", "ttl_minutes", "expires_at"}
    assert extended["ttl_minutes"] == created["ttl"] + 10
    started = line.json("run", name, "echo one; echo two >&2; exit 3", "--background")
    assert started == {"stdout": "", "stderr": "", "exit_code": None, "job_id": started["job_id"]}
    followed = line.json("logs", name, started["job_id"], "-f")
    assert followed == {"name": name, "job_id": started["job_id"], "stdout": "one\n", "stderr": "two\n", "exit_code": 3}
    assert {job["job_id"] for job in line.json("jobs", name)} == {"provision", started["job_id"]}
    line.json("run", name, "until [ -e /root/.gibil-ready ]; do sleep 0.1; done")
    logs = line.json("logs", name)
    assert (logs.keys(), logs["job_id"], logs["exit_code"]) == (followed.keys(), "provision", None)
    assert "ready" in logs["stdout"]
    shown = json.loads(line.gibil("ssh", "--json", name).stdout)
    assert (shown["ip"], shown["host_key"][:12]) == (created["ip"], "ssh-ed25519 ")
    assert shown["host_key"] == created.get("host_key", shown["host_key"])
    assert [view["name"] for view in line.json("providers")] == ["local", "hetzner"]
