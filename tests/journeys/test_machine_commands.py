"""The seed's shell examples, unchanged, in a real bash with a real jq; the JSON of every command against its contract."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.contracts import seed_examples as seed
from tests.doubles.commandline import CommandLine
from tests.doubles.patience import patient
from tests.doubles.tools import needs

pytestmark = pytest.mark.usefixtures("local_machines")
needs_jq = needs("jq")

FILE = """
env: {COLOUR: red}
tasks:
  - {name: install, run: 'echo "INSTALLED=yes" >>"$GITHUB_ENV"'}
  - {name: test, run: 'test "$INSTALLED-$COLOUR-${#TOKEN}" = yes-red-11 && echo passed'}
machine: {ttl: 30m}
"""


@needs_jq
def test_the_seeds_create_run_destroy_example_works(line: CommandLine) -> None:
    line.repository("project", seed.PROJECT)
    done = line.bash(f"{seed.CREATE_AND_USE}{seed.DESTROY}gibil list --json | jq length")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["package.json", "agent-task", "destroyed", "0"]


@needs_jq
def test_the_seeds_parallel_agents_and_fleet_example_works(line: CommandLine) -> None:
    done = line.bash(seed.PARALLEL_AGENTS + seed.DESTROY_ALL, AGENTS="3", FLEET="3")
    assert done.returncode == 0, done.stderr
    agents, fleet = ["agent-1", "agent-2", "agent-3"], ["fleet-1", "fleet-2", "fleet-3"]
    assert done.stdout.split() == [*agents, *fleet, "1", "2", "3", "3", "true", "true", "true", "0"]


def test_a_machine_created_in_the_background_of_a_script_still_obeys_signals(line: CommandLine) -> None:
    done = line.bash("gibil create --name m & wait $!; gibil run m 'grep SigIgn /proc/self/status'")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1], 16) & 0b110 == 0, "SIGINT and SIGQUIT"


def test_blocked_connections_are_reported_at_the_end_on_stderr(line: CommandLine) -> None:
    line.repository(
        "project",
        {
            "ask": "exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT %s HTTP/1.1\\r\\n\\r\\n' $1 >&3; cat <&3 >/dev/null\n",
            ".gibil.yml": "tasks:\n  - {name: fetch, run: bash ask 10.9.8.7:443}\n",
        },
    )
    ask = "gibil run m 'bash project/ask 10.1.2.3:22'"
    done = line.bash(f"gibil create --name m --repo project --wait tasks && {ask} && gibil run m true")
    assert done.returncode == 0, done.stderr
    output = [text for text in done.stderr.splitlines() if "GIBIL_EGRESS_ALLOW" in text and "blocked because" in text]
    assert len(output) == 2, done.stderr
    assert output[0].endswith("GIBIL_EGRESS_ALLOW=10.9.8.7:443")
    assert output[1].endswith("GIBIL_EGRESS_ALLOW=10.1.2.3:22")


@needs_jq
def test_the_seeds_error_path_destroys_the_machine(line: CommandLine) -> None:
    done = line.bash(f"gibil create --name flaky --json >/dev/null\n{seed.ERROR_PATH}", NAME="flaky")
    assert [text for text in done.stdout.splitlines() if text] == seed.expected_error_output("flaky")


def test_every_commands_json_has_the_contracts_keys(line: CommandLine) -> None:
    project = line.repository("project", {"a": "1"})
    created = line.json("create", "--name", "keys", "--repo", str(project), "--env", "TOKEN=x")
    seed.check_created(created, "local")
    assert (created["ttl"], created["ssh_key_id"]) == (60, None)
    seed.check_what_works_on_a_machine(line, "keys", created, repo=str(project))
    destroyed = {"name": "keys", "status": "destroyed", "destroyed": True, "was_already_destroyed": False}
    assert line.json("destroy", "keys") == destroyed
    assert line.json("destroy", "keys") == {**destroyed, "was_already_destroyed": True}
    assert line.json("destroy", "keys", "absent") == [
        {**destroyed, "was_already_destroyed": True},
        {**destroyed, "name": "absent", "was_already_destroyed": True},
    ]
    assert line.json("destroy", "--all") == []


def test_create_waits_for_the_tasks_and_reports_the_result_of_each(line: CommandLine) -> None:
    project = line.repository("project", {".gibil.yml": FILE})
    done = line.gibil(
        "create", "--name", "good", "--repo", "project", "--env", "TOKEN=tok-5f7a91c", "--wait", "tasks", "--json"
    )
    assert done.returncode == 0, done.stderr
    good = json.loads(done.stdout)
    assert (good["ready"], good["tasks"], good["ttl"]) == (True, "success", 30)
    assert [(task["name"], task["status"], task["exit_code"]) for task in good["task_results"]] == [
        ("install", "success", 0),
        ("test", "success", 0),
    ]
    assert "passed" in done.stderr  # tasks are shown while they run
    # Commands get the tasks' environment, too, and it is on no disk.
    assert line.json("run", "good", "echo $COLOUR $INSTALLED $TOKEN $CI")["stdout"] == "red yes tok-5f7a91c true\n"
    assert line.gibil("run", "good", "grep -rls 5f7a91c /root /etc /tmp /var/tmp").stdout == ""
    assert line.gibil("run", "good", "git -C /root/project rev-parse --abbrev-ref HEAD").stdout == "main\n"

    line.commit(project, {".gibil.yml": "tasks: [{name: bad, run: exit 5}, {name: after, run: 'true'}]\n"})
    bad = line.gibil("create", "--name", "bad", "--repo", "project", "--wait", "tasks", "--json")
    assert bad.returncode == 1
    result = json.loads(bad.stdout)
    assert (result["tasks"], [task["status"] for task in result["task_results"]]) == ("failure", ["failure", "skipped"])
    assert line.gibil("run", "bad", "test -f /root/.gibil-tasks-failed && test ! -f /root/.gibil-tasks-done").returncode == 0


def test_branch_creates_a_machine_for_a_branch_of_the_origin_and_runs_a_command(line: CommandLine) -> None:
    origin = line.repository("origin", {"a": "main"})
    line.git(origin, "checkout", "-q", "-b", "feature/new-parser")
    line.commit(origin, {"a": "feature"})
    line.git(line.here, "clone", "-q", "-b", "main", str(origin), "work")
    words = "cd work && gibil branch feature/new-parser --ttl 10 --run 'cat a; git log --oneline | wc -l; exit 4' --json"
    done = line.bash(words)
    assert done.returncode == 4, done.stderr
    result = json.loads(done.stdout)
    assert result["name"].startswith("feature-new-parser-")
    assert result["run"]["stdout"].split() == ["feature2", "2"] or result["run"]["stdout"] == "feature2\n"
    assert line.bash("cd work && gibil branch absent --json").returncode == 2


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("create", "--name", "Not_A_Name"), "USAGE"),
    (("create", "--name", "a" * 64), "USAGE"),
    (("create", "--ttl", "soon"), "USAGE"),
    (("create", "--ttl", "30s"), "USAGE"),
    (("create", "--ttl", "2y"), "USAGE"),
    (("create", "--size", "huge"), "USAGE"),
    (("create", "--fleet", "21"), "USAGE"),
    (("create", "--env", "NOVALUE"), "USAGE"),
    (("create", "--env", "1X=y"), "USAGE"),
    (("create", "--env", "GITHUB_TOKEN=y"), "USAGE"),
    (("create", "--provider", "aws"), "USAGE"),
    (("create", "--provider", "hetzner"), "CONFIGURATION"),
    (("create", "--branch", "main"), "USAGE"),
    (("create", "--repo", "nowhere/"), "USAGE"),
    (("create", "--repo", "~no-such-user/project"), "USAGE"),
    (("create", "--repo", "https://ada:secret@example.com/x.git"), "USAGE"),
    (("create", "--repo", "broken"), "WORKFLOW_INVALID"),
    (("run", "absent", "true"), "SERVER_NOT_FOUND"),
    (("run", "absent"), "USAGE"),
    (("run", "absent", "true", "--timeout", "never"), "USAGE"),
    (("extend", "absent", "10m"), "SERVER_NOT_FOUND"),
    (("destroy",), "USAGE"),
    (("destroy", "--all", "absent"), "USAGE"),
    (("logs", "absent"), "SERVER_NOT_FOUND"),
    (("jobs", "absent"), "SERVER_NOT_FOUND"),
    (("init", "--provider", "aws"), "USAGE"),
    (("init", "--token", "x"), "USAGE"),
    (("completion", "tcsh"), "USAGE"),
]


def test_an_invalid_request_is_one_json_value_with_a_code_and_creates_nothing(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    line.repository("broken", {".gibil.yml": "tasks: [{run: make}]\nruntimes: {python: '3'}\n"})
    for done, (arguments, code) in zip(line.many([(*words, "--json") for words, _ in WRONG]), WRONG, strict=True):
        result = json.loads(done.stdout)
        assert result.keys() == seed.ERROR, arguments
        assert (result["code"], result["exit_code"]) == (code, done.returncode), arguments
        assert done.returncode != 0, arguments
        assert "secret" not in done.stdout + done.stderr, arguments
        assert "Traceback" not in done.stderr, arguments
    assert not (line.data_dir / "local").exists()


def test_a_broken_gibil_yml_is_rejected_with_its_line_and_the_nearest_word(tmp_path: Path) -> None:
    line = CommandLine(tmp_path)
    line.repository("broken", {".gibil.yml": "tasks: [{run: make}]\nruntimes: {python: '3'}\n"})
    done = line.gibil("create", "--repo", "broken")
    assert done.returncode == 2
    assert ".gibil.yml:2:1:" in done.stderr
    assert "'runtime'" in done.stderr


def test_a_name_in_use_is_an_error_and_does_not_change_the_machine(line: CommandLine) -> None:
    line.json("create", "--name", "taken")
    again = line.gibil("create", "--name", "taken", "--json")
    assert (again.returncode, json.loads(again.stdout)["code"]) == (3, "NAME_TAKEN")
    side_by_side = line.bash("for n in 1 2 3 4; do gibil create --name race --json >r$n 2>/dev/null & done; wait; cat r*")
    codes = sorted(json.loads(text).get("code", "made") for text in side_by_side.stdout.splitlines())
    assert codes == ["NAME_TAKEN", "NAME_TAKEN", "NAME_TAKEN", "made"]
    assert line.gibil("run", "taken", "true").returncode == line.gibil("run", "race", "true").returncode == 0
    fleet = line.gibil("create", "--name", "taken", "--fleet", "2", "--json")
    assert fleet.returncode == 0, "taken-1 and taken-2 are other names"
    line.json("destroy", "taken-1")
    half = line.gibil("create", "--name", "taken", "--fleet", "2", "--json")
    assert json.loads(half.stdout)["code"] == "NAME_TAKEN"
    assert {view["name"] for view in line.json("list")} == {"taken", "race", "taken-2"}, (
        "a fleet is created completely or not at all"
    )


def test_the_time_to_live_is_capped_and_its_end_is_announced(line: CommandLine) -> None:
    line.json("create", "--name", "short", "--ttl", "1m")
    listed = line.gibil("list")
    assert listed.stdout.splitlines()[0].split() == ["NAME", "PROVIDER", "STATUS", "ADDRESS", "LEFT", "FOR"]
    assert "gibil extend short" in listed.stderr
    too_long = line.gibil("extend", "short", "24h", "--json")
    assert (too_long.returncode, json.loads(too_long.stdout)["code"]) == (2, "USAGE")
    assert line.json("extend", "short", "29")["ttl_minutes"] == 30
    assert line.gibil("list").stderr == ""


def begin_and_interrupt(line: CommandLine, moment: bytes, number: int, *arguments: str) -> tuple[int, str, str]:
    """Send a signal to `create` at this moment; return its exit status, stdout and stderr."""
    process = line.start("create", *arguments)
    assert process.stderr is not None
    output = b""
    while moment not in output:
        output += process.stderr.readline()
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=patient(30))
    assert process.returncode is not None
    return process.returncode, out.decode(), (output + err).decode()


def test_create_interrupted_before_the_machine_answers_destroys_it_and_reports_it(line: CommandLine) -> None:
    line.repository("project", {".gibil.yml": "tasks: [{name: waits, run: sleep 600}]\n"})
    line.json("create", "--name", "warm")
    # It has to send its code after that, so there is time.
    words = ("--name", "stopped", "--repo", "project", "--wait", "tasks", "--json")
    status, out, err = begin_and_interrupt(line, b"created stopped", signal.SIGINT, *words)
    result = json.loads(out)
    assert (status, result["code"], result["exit_code"]) == (130, "INTERRUPTED", 130)
    assert result["message"] == "interrupted; stopped is destroyed"
    assert "press Ctrl-C again to leave that to the next gibil command" in err
    assert [view["name"] for view in line.json("list")] == ["warm"]
    assert [path.name for path in line.paths.machines.iterdir()] == ["warm"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_create_interrupted_while_it_waits_keeps_the_machine_and_explains_the_next_step(line: CommandLine, number: int) -> None:
    line.repository("project", {".gibil.yml": "tasks: [{name: waits, run: sleep 600}]\n"})
    words = ("--name", "kept", "--repo", "project", "--wait", "tasks")
    status, out, err = begin_and_interrupt(line, b"=== waits", number, *words)
    assert (status, out) == (130, "kept\n")
    assert "interrupted while waiting for the tasks; kept exists until 20" in err
    assert "gibil logs kept -f), or destroy it (gibil destroy kept)" in err
    assert line.gibil("run", "kept", "true").returncode == 0
    assert "kept" not in line.gibil("list").stderr, "its name was reported: it is not abandoned"


def test_a_fleet_interrupted_while_it_waits_is_one_json_value_with_all_machines(line: CommandLine) -> None:
    line.repository("project", {".gibil.yml": "tasks: [{name: waits, run: sleep 600}]\n"})
    words = ("--name", "f", "--fleet", "2", "--repo", "project", "--wait", "tasks", "--json")
    status, out, _err = begin_and_interrupt(line, b"=== waits", signal.SIGINT, *words)
    result = json.loads(out)
    assert (status, result["code"], result["fleet_id"]) == (130, "INTERRUPTED", "f")
    assert [view["name"] for view in result["instances"]] == ["f-1", "f-2"]
    assert "gibil destroy f-1 f-2" in result["message"]
    assert [view["name"] for view in line.json("list")] == ["f-1", "f-2"]


def test_the_machine_limit_counts_all_machines_of_the_data_directory(line: CommandLine) -> None:
    limited = {"GIBIL_MAX_MACHINES": "3"}
    fleet = line.gibil("create", "--fleet", "4", "--json", **limited)
    result = json.loads(fleet.stdout)
    assert (fleet.returncode, result["code"]) == (2, "MACHINE_LIMIT")
    assert "GIBIL_MAX_MACHINES=3: create at most 3" in result["message"]
    script = "for n in 1 2 3 4 5; do gibil create --name m-$n --json >r$n 2>/dev/null & done; wait; cat r*"
    side_by_side = line.bash(script, **limited)
    codes = sorted(json.loads(text).get("code", "made") for text in side_by_side.stdout.splitlines())
    assert codes == ["MACHINE_LIMIT", "MACHINE_LIMIT", "made", "made", "made"]
    names = [view["name"] for view in line.json("list")]
    assert len(names) == 3
    again = line.gibil("create", "--json", **limited)
    assert json.loads(again.stdout)["message"].startswith(
        "3 machines exist, and one more would exceed GIBIL_MAX_MACHINES=3: destroy some first"
    )
    line.json("destroy", names[0])
    assert line.gibil("create", "--name", "m-9", **limited).returncode == 0


def test_machines_are_listed_in_the_natural_order_of_their_names(line: CommandLine) -> None:
    for name in ("agent-10", "b"):
        line.json("create", "--name", name)
    line.json("create", "--name", "agent", "--fleet", "3")
    expected = ["agent-1", "agent-2", "agent-3", "agent-10", "b"]
    assert [view["name"] for view in line.json("list")] == expected
    assert [row.split()[0] for row in line.gibil("list").stdout.splitlines()[1:]] == expected
    assert [view["name"] for view in line.json("destroy", "--fleet", "agent")] == expected[:3]
