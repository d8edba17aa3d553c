"""From files and an event to plans: which workflow applies, what a command may contain, what a plan contains."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.caps import Caps
from gibil_bot.errors import UsageError
from gibil_bot.model import Cache, Checkout, Command, MachinePlan, Plan, Trust
from gibil_bot.planning.expressions import GITHUB_NAMES
from gibil_bot.planning.plan import (
    Catalogue,
    again,
    catalogue,
    check_files,
    commands,
    for_command,
    for_pull_request,
    for_workflow,
    plan_view,
)
from gibil_bot.planning.services import ServiceCapabilities
from tests.doubles.facts import SHA, facts

TEST = b"on: {command: test}\ntasks: [{name: test, uses: .gibil.yml, run: make test}]\n"
OWN_TEST = b"name: Own\non: {command: test}\ntasks: [{run: ./own}]\n"
OWN_FILE = b"""
env: {A: own, B: own}
packages: [make]
machine: {size: large}
tasks: [{name: one, run: first}, {name: two, run: second, if: always()}]
"""


def known(operator: dict[str, bytes], repository: dict[str, bytes] | None = None) -> Catalogue:
    return catalogue(operator, repository or {}, base_ref="main")


def one(yaml: str, trust: Trust = Trust.TRUSTED, *, repository: dict[str, bytes] | None = None, max_ttl_s: int = 86400,
        **arguments: str) -> Plan:  # fmt: skip
    (plan,) = for_command(
        known({"x.yml": yaml.encode()}, repository),
        Command(word="x", arguments={name.replace("_", "-"): value for name, value in arguments.items()}),
        facts(trust=trust, max_ttl_s=max_ttl_s),
    )
    return plan


def refusal(found: Catalogue, word: str, **arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        for_command(found, Command(word=word, arguments=arguments), facts())
    return caught.value.message


# --- which workflow applies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_name", ["test.yml", "other.yml"])
def test_a_repositorys_workflow_replaces_the_operators(own_name: str) -> None:
    found = known({"test.yml": TEST}, {f".gibil/workflows/{own_name}": OWN_TEST})
    (plan,) = for_command(found, Command(word="test"), facts())
    assert (plan.path, plan.title) == (f".gibil/workflows/{own_name}@main", "Own")
    assert [workflow.path for workflow in commands(found)] == [f".gibil/workflows/{own_name}@main"]


def test_a_broken_file_hides_no_other_and_is_reported() -> None:
    found = known(
        {"test.yml": TEST, "lint.yml": b"on: {command: lint}\ntasks: [{run: x}]", "README.md": b"# not a workflow"},
        {
            ".gibil/workflows/test.yml": b"on: {command: test}\ntask: []",
            ".gibil/workflows/docs.yml": b"on: {command: docs}\ntasks: [{run: x}]",
        },
    )
    assert [str(problem) for problem in found.problems] == [
        ".gibil/workflows/test.yml@main:2:1: a workflow has no key 'task' (did you mean 'tasks'?)"
    ]
    assert [entry.word for entry in commands(found)] == ["docs", "lint"]
    assert for_command(found, Command(word="docs"), facts())
    assert refusal(found, "test").startswith("`/gibil test` can't be used: .gibil/workflows/test.yml@main:2:1: ")


def test_a_file_that_is_not_yaml_blocks_the_command_of_its_name() -> None:
    found = known({"test.yml": TEST}, {".gibil/workflows/test.yml": b"\tno"})
    assert "can't be used" in refusal(found, "test")


def test_a_broken_workflow_blocks_the_command_that_it_names() -> None:
    own = {
        ".gibil/workflows/a.yml": b"on: {command: deploy}\nwrong: 1",
        ".gibil/workflows/b.yml": b"on: pull_request\nwrong: 1",
    }
    assert set(known({}, own).broken_words) == {"deploy", "b"}


def test_a_problem_is_short_even_for_a_long_file() -> None:
    found = known({}, {".gibil/workflows/a.yml": b"x: !" + b"y" * 60000, ".gibil/workflows/b.yml": b"y" * 9000 + b": 1"})
    assert [len(str(problem)) < 1100 for problem in found.problems] == [True, True]


def test_two_workflows_of_one_repository_may_share_a_command() -> None:
    found = known({}, {".gibil/workflows/a.yml": OWN_TEST, ".gibil/workflows/b.yml": OWN_TEST})
    assert [plan.workflow for plan in for_command(found, Command(word="test"), facts())] == ["a", "b"]


# --- what a command may contain --------------------------------------------------------------------------------------

INPUTS = """
on: {command: x}
inputs:
  target: {type: choice, options: [staging, demo], default: demo}
  dry-run: {type: boolean}
  workers: {type: number, default: 2}
  label: {pattern: '[a-z]+'}
  note: {required: true, description: what people should know}
tasks: [{run: x}]
"""


def test_arguments_and_defaults_become_the_inputs() -> None:
    plan = one(INPUTS, note="hi", dry_run="true")
    assert plan.inputs == {"target": "demo", "dry-run": "true", "workers": "2", "label": "", "note": "hi"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "`/gibil x` needs `note` (what people should know): write `/gibil x note=…`"),
        ({"note": "x", "targt": "demo"}, "`/gibil x` has no argument `targt` (did you mean 'target'?)"),
        (
            {"note": "x", "zzz": ""},
            "`/gibil x` has no argument `zzz`; it takes `target`, `dry-run`, `workers`, `label`, `note`",
        ),
        ({"note": "x", "target": "dmo"}, "`target` must be one of staging, demo, got 'dmo' (did you mean 'demo'?)"),
        ({"note": "x", "dry-run": "yes"}, "`dry-run` must be true or false, got 'yes'"),
        ({"note": "x", "workers": "many"}, "`workers` must be a number, got 'many'"),
        ({"note": "x", "label": "A;b"}, "`label` must match [a-z]+, got 'A;b'"),
        ({"note": "x" * 1001}, "`note` is longer than 1000 characters"),
        ({"note": "x\0"}, "`note` contains a NUL character"),
    ],
)
def test_invalid_arguments_are_reported_to_the_user(arguments: dict[str, str], sentence: str) -> None:
    assert refusal(known({"x.yml": INPUTS.encode()}), "x", **arguments) == sentence


def test_an_unknown_command_is_answered_with_the_nearest_and_the_list() -> None:
    found = known({"test.yml": TEST})
    assert (
        refusal(found, "tset")
        == "`/gibil tset` is unknown (did you mean 'test'?). There are `test`, `retest`, `cancel`, and `help`."
    )
    assert refusal(known({}), "deploy").endswith("This repository has no commands yet; see `/gibil help`.")


def test_an_unreadable_command_line_is_answered_with_its_problem() -> None:
    with pytest.raises(UsageError, match="a quote is not closed"):
        for_command(known({"test.yml": TEST}), Command(word="test", problem="a quote is not closed"), facts())


def test_help_lists_commands_inputs_and_their_source() -> None:
    (entry,) = commands(known({"x.yml": INPUTS.encode(), "p.yml": b"on: pull_request\ntasks: [{run: x}]"}))
    assert (entry.word, entry.title, entry.path) == ("x", "x", "workflows/x.yml")
    assert [declared.name for declared in entry.inputs] == ["target", "dry-run", "workers", "label", "note"]


# --- detected tasks ----------------------------------------------------------------------------------------------------

DETECTS = b"on: {command: test}\ntasks: [{name: test, uses: .gibil.yml, detect: test}]\n"


def test_a_task_that_detects_is_planned_without_a_script() -> None:
    (plan,) = for_command(known({"test.yml": DETECTS}), Command(word="test"), facts())
    assert [(task.name, task.run, task.detect, task.kind) for task in plan.tasks] == [("test", "", "test", "run")]
    assert plan.detected is None
    assert json.loads(json.dumps(plan_view(plan)))["tasks"][0]["detect"] == "test"


def test_a_repositorys_own_tasks_replace_detection_and_its_set_up_precedes_it() -> None:
    (own,) = for_command(known({"test.yml": DETECTS}, {".gibil.yml": OWN_FILE}), Command(word="test"), facts())
    assert [(task.name, task.detect, task.kind) for task in own.tasks] == [
        ("set up", "", "prepare"), ("one", "", "run"), ("two", "", "run"),
    ]  # fmt: skip
    set_up = {".gibil.yml": b"runtime: {node: '22'}"}
    (plan,) = for_command(known({"test.yml": DETECTS}, set_up), Command(word="test"), facts())
    assert [(task.name, task.detect, task.kind) for task in plan.tasks] == [("set up", "", "prepare"), ("test", "test", "run")]


def test_a_file_can_mark_preparation_and_ask_for_a_terminal() -> None:
    own = b"tasks: [{name: deps, prepare: true, run: x}, {name: test, tty: true, run: y}]"
    (plan,) = for_command(known({"test.yml": DETECTS}, {".gibil.yml": own}), Command(word="test"), facts())
    assert [(task.kind, task.tty) for task in plan.tasks] == [("prepare", False), ("run", True)]


@pytest.mark.parametrize(
    ("path", "data", "problem"),
    [
        ("w.yml", b"on: pull_request\ntasks: [{run: x, detect: test}]", "a task has either run or detect"),
        ("w.yml", b"on: pull_request\ntasks: [{detect: tests}]", "'tests' is not one of test, lint"),
        (".gibil.yml", b"tasks: [{detect: test}]", "only a workflow's task can detect"),
    ],
)
def test_a_wrong_detect_is_rejected(path: str, data: bytes, problem: str) -> None:
    assert problem in str(check_files({path: data})[0])


# --- keys of both files ------------------------------------------------------------------------------------------------


def test_a_workflow_describes_its_set_up_with_the_same_keys_as_a_repository_file() -> None:
    set_up = "runtime: {python: '3.12'}\npackages: [jq]\nservices: {cache: {image: redis}}\n"
    plan = one(f"on: {{command: x}}\n{set_up}tasks: [{{name: before, run: a}}, {{name: after, run: b}}]")
    assert [(task.name, task.kind) for task in plan.tasks] == [
        ("set up", "prepare"), ("services", "prepare"), ("before", "run"), ("after", "run"),
    ]  # fmt: skip
    (same,) = for_command(
        known(
            {"x.yml": b"on: {command: x}\ntasks: [{uses: .gibil.yml}]"}, {".gibil.yml": f"{set_up}tasks: [{{run: a}}]".encode()}
        ),
        Command(word="x"),
        facts(),
    )
    assert [task.run for task in same.tasks[:2]] == [task.run for task in plan.tasks[:2]]


def test_the_repository_file_overrides_the_workflows_set_up_key_by_key() -> None:
    yaml = """
on: {command: x}
runtime: {python: '3.12', node: '20'}
packages: [jq]
services: {cache: {image: 'redis:7'}, db: {image: 'postgres:15', env: {POSTGRES_PASSWORD: a}}}
checkout: {depth: 1, lfs: true, submodules: recursive}
cache: [{path: a, key: a}]
tasks: [{name: before, run: x}, {uses: .gibil.yml}]
"""
    own = b"""
runtime: {node: '22', rust: '1.85'}
packages: [make]
services: {cache: {image: 'redis:8'}}
checkout: {depth: 10, tags: false, submodules: false}
cache: [{path: b, key: b}]
tasks: [{run: y}]
"""
    plan = one(yaml, repository={".gibil.yml": own})
    assert [task.name for task in plan.tasks] == ["set up", "services", "before", "y"]
    script = plan.tasks[0].run
    for word in ("want python 3.12 ", "want node 22 ", "want rust 1.85 ", "packages=make"):
        assert word in script
    assert "jq" not in script
    assert "redis:8" in plan.tasks[1].run
    assert "postgres:15" in plan.tasks[1].run
    assert plan.checkout == Checkout(depth=10, lfs=True, submodules="false", tags=False)
    assert plan.caches == (Cache(path=("b",), key="b"),)
    none = one(yaml, repository={".gibil.yml": b"runtime: none\ntasks: [{run: y}]"})
    assert "want " not in none.tasks[0].run
    assert none.checkout.depth == 1
    assert none.caches == (Cache(path=("a",), key="a"),)


def test_without_checkout_the_whole_history_and_its_tags_are_checked_out() -> None:
    assert one("on: {command: x}\ntasks: [{run: x}]").checkout == Checkout(depth=None, submodules=None, lfs=False, tags=True)


def test_services_of_both_files_cannot_share_a_port() -> None:
    yaml = "on: {command: x}\nservices: {a: {image: redis}}\ntasks: [{uses: .gibil.yml}]"
    with pytest.raises(UsageError, match="the services 'a' and 'b' both have the port 6379"):
        one(yaml, repository={".gibil.yml": b"services: {b: {image: redis}}\ntasks: [{run: x}]"})


def test_services_of_a_workflow_are_checked_too() -> None:
    yaml = b"on: {command: x}\nservices: {search: {image: 'elasticsearch:8', ports: [9200]}}\ntasks: [{run: x}]"
    with pytest.raises(UsageError, match=r"x can't run here: workflows/x.yml:2:12: the service 'search': local machines"):
        for_command(
            known({"x.yml": yaml}),
            Command(word="x"),
            replace(facts(), service_capabilities=ServiceCapabilities(containers=False)),
        )


def test_the_keys_of_caches_are_bound_except_for_hashes_of_files() -> None:
    yaml = """
on: {command: x}
inputs: {browser: {default: firefox}}
cache:
  - path: |
      ~/.npm
      !~/.npm/_logs
    key: ${{ runner.os }}-${{ inputs.browser }}-${{ github.base_ref }}-${{ hashFiles( 'a/package-lock.json','**/x.lock' ) }}
    restore-keys: |
      ${{ runner.os }}-${{ inputs.browser }}-
      ${{ runner.os }}-
tasks: [{run: x}]
"""
    assert one(yaml).caches == (
        Cache(
            path=("~/.npm", "!~/.npm/_logs"),
            key="Linux-firefox-main-${{ hashFiles('a/package-lock.json', '**/x.lock') }}",
            restore_keys=("Linux-firefox-", "Linux-"),
        ),
    )


@pytest.mark.parametrize(
    ("cache", "problem"),
    [
        ("{path: a}", "a cache needs the key 'key'"),
        ("{key: a}", "a cache needs the key 'path'"),
        ("{path: ../a, key: a}", "'../a' contains '..'"),
        ("{path: a, key: \"${{ hashFiles('../x') }}\"}", "hashFiles(): '../x' has to be a path inside the checkout"),
        ("{path: a, key: \"${{ hashFiles('/etc/passwd') }}\"}", "has to be a path inside the checkout"),
        ('{path: a, key: "${{ hashFiles(github.ref) }}"}', "expected hashFiles('pattern', …)"),
        ('{path: a, key: "${{ inputs.nope }}"}', "there is no input 'nope'"),
        ('{path: a, key: "${{ secrets.KEY }}"}', "'secrets' is unknown"),
        ('{path: a, key: a, restore-keys: "${{ always() }}"}', "are allowed only in if:"),
        ("{path: a, key: a, fail-on-cache-miss: true}", "a missing cache never fails a run"),
    ],
)
def test_a_wrong_cache_is_reported(cache: str, problem: str) -> None:
    found = check_files({"w.yml": f"on: {{command: w}}\ncache: [{cache}]\ntasks: [{{run: x}}]\n".encode()})
    assert [problem in str(each) for each in found] == [True]


# --- what a plan contains ----------------------------------------------------------------------------------------------


def test_a_plan_has_the_values_of_its_event() -> None:
    plan = one("name: The X\non: {command: x}\ntasks: [{run: x}]")
    assert set(plan.github) == set(GITHUB_NAMES)
    assert plan.github == {
        "event_name": "issue_comment",
        "actor": "Ada",
        "sha": SHA,
        "ref": "refs/pull/7/head",
        "head_ref": "faster",
        "base_ref": "main",
        "repository": "ada/engine",
        "repository_owner": "ada",
        "workflow": "The X",
        "number": "7",
    }
    assert (plan.workflow, plan.title, plan.comment) == ("x", "The X", "always")


def test_the_tasks_of_the_repository_file_replace_the_task_that_uses_it() -> None:
    yaml = """
on: {command: x}
env: {A: workflow, C: workflow}
machine: {size: small, image: plain}
tasks:
  - {name: before, run: x}
  - {name: own, uses: .gibil.yml, run: guess, if: github.actor != 'eve', env: {D: task},
     timeout-minutes: 2, continue-on-error: true}
  - {name: after, run: x}
"""
    plan = one(yaml, repository={".gibil.yml": OWN_FILE})
    assert [task.name for task in plan.tasks] == ["before", "set up", "one", "two", "after"]
    assert plan.env == {"A": "own", "B": "own", "C": "workflow"}
    assert (plan.machine.size, plan.machine.image) == ("large", "plain")
    two = plan.tasks[3]
    assert two.condition == "(success() && (github.actor != 'eve')) && (always())"
    assert (two.env, two.timeout_s, two.continue_on_error) == ({"D": "task"}, 120.0, True)
    assert "packages=make" in plan.tasks[1].run
    assert plan.notes == ("The tasks come from .gibil.yml@main.",)


def test_without_a_repository_file_the_task_runs_its_own_script() -> None:
    (plan,) = for_command(known({"test.yml": TEST}), Command(word="test"), facts())
    assert [(task.name, task.run) for task in plan.tasks] == [("test", "make test")]


def test_a_repository_file_without_tasks_still_sets_up_the_machine() -> None:
    found = known({"test.yml": TEST}, {".gibil.yml": b"packages: [make]\nenv: {A: b}"})
    (plan,) = for_command(found, Command(word="test"), facts())
    assert [task.name for task in plan.tasks] == ["set up", "test"]
    assert plan.env == {"A": "b"}


def test_a_broken_repository_file_stops_only_workflows_that_use_it() -> None:
    other = b"on: {command: other, pull_request: opened}\ntasks: [{run: x}]"
    uses = TEST.replace(b"{command: test}", b"{command: test, pull_request: opened}")
    found = known({"test.yml": uses, "other.yml": other}, {".gibil.yml": b"services: []"})
    assert "test uses a file that can't be read: .gibil.yml@main:1:11: expected a mapping, got a list" in refusal(found, "test")
    assert [plan.workflow for plan in for_pull_request(found, "opened", facts())[0]] == ["other"]


def test_a_workflow_that_needs_the_repository_file_reports_missing_tasks() -> None:
    found = known({"x.yml": b"on: {command: x, pull_request: opened}\ntasks: [{uses: .gibil.yml}]"})
    assert refusal(found, "x") == "x needs tasks in the repository's .gibil.yml, and there are none on its base branch"
    assert for_pull_request(found, "opened", facts()) == ((), ())


def test_unsupported_services_are_reported_although_the_workflow_was_not_named() -> None:
    found = known(
        {"x.yml": b"on: {command: x, pull_request: opened}\ntasks: [{uses: .gibil.yml}]"},
        {".gibil.yml": b"services: {search: {image: 'elasticsearch:8', ports: [9200]}}\ntasks: [{run: x}]"},
    )
    plans, (reason,) = for_pull_request(
        found, "opened", replace(facts(), service_capabilities=ServiceCapabilities(containers=False))
    )
    assert plans == ()
    assert reason.startswith("x can't run here: .gibil.yml@main:1:12: the service 'search': local machines run no containers")
    plans, reasons = for_pull_request(
        found, "opened", replace(facts(), service_capabilities=ServiceCapabilities(containers=True))
    )
    assert ([plan.workflow for plan in plans], reasons) == (["x"], ())


def test_an_untrusted_run_gets_no_secrets_and_a_note() -> None:
    yaml = "on: {command: x}\nsecrets: [KEY, OTHER]\ntasks: [{run: x}]"
    assert one(yaml).secrets == ("KEY", "OTHER")
    untrusted = one(yaml, Trust.UNTRUSTED)
    assert untrusted.secrets == ()
    assert untrusted.notes == ("Without its secrets (KEY, OTHER): the run is untrusted.",)


def test_a_rerun_uses_todays_file_with_the_inputs_that_still_exist() -> None:
    today = b"on: {command: y}\ninputs: {to: {default: eu}, new: {default: 'n'}}\ntasks: [{run: today}]"
    before = {"to": "us", "gone": "x"}
    plan = again(known({"x.yml": today}), "x", before, replace(facts(), event_name="check_run"))
    assert (plan.inputs, plan.tasks[0].run, plan.github["event_name"]) == ({"to": "us", "new": "n"}, "today", "check_run")
    with pytest.raises(UsageError, match="there is no workflow 'x'"):
        again(known({}), "x", before, facts())


def test_runs_of_one_pull_request_supersede_each_other_unless_the_group_differs() -> None:
    plain = one("on: {command: x}\ntasks: [{run: x}]")
    assert (plain.concurrency_group, plain.cancel_in_progress) == ("x/7", True)
    grouped = one(
        "on: {command: x}\ninputs: {to: {default: eu}}\n"
        "concurrency: deploy-${{ inputs.to }}-${{ github.base_ref }}\ntasks: [{run: x}]"
    )
    assert (grouped.concurrency_group, grouped.cancel_in_progress) == ("deploy-eu-main", False)


@pytest.mark.parametrize(
    ("keys", "max_ttl_s", "timeout_s", "ttl_s", "noted"),
    [
        ("", 86400, 3600, 4200, False),
        ("timeout-minutes: 5", 86400, 300, 900, False),
        ("machine: {ttl: 2h}", 86400, 7200, 7200, False),
        ("timeout-minutes: 5\nmachine: {ttl: 2h}", 86400, 300, 7200, False),
        ("timeout-minutes: 90\nmachine: {ttl: 1h}", 86400, 3600, 3600, False),
        ("", 1800, 1800, 1800, False),
        ("machine: {ttl: 2h}", 1800, 1800, 1800, True),
    ],
)
def test_the_time_of_the_tasks_never_exceeds_the_time_to_live(
    keys: str, max_ttl_s: int, timeout_s: float, ttl_s: int, noted: bool
) -> None:
    plan = one(f"on: {{command: x}}\n{keys}\ntasks: [{{run: x}}, {{run: y, timeout-minutes: 1}}]", max_ttl_s=max_ttl_s)
    assert (plan.timeout_s, plan.machine.ttl_s, bool(plan.notes)) == (timeout_s, ttl_s, noted)
    assert [task.timeout_s for task in plan.tasks] == [timeout_s, 60.0]


def test_a_files_machine_settings_are_limited_by_the_operators_caps() -> None:
    caps = Caps(
        memory_mb=4096, disk_mb=20480, pids=1000, server_types=("cx23",), sizes_mb={"small": 2048, "large": 8192},
        default_disk_mb=10240,
    )  # fmt: skip
    limited = replace(facts(), caps=caps)
    own = b"machine: {memory: 900g, disk: 4000g, pids: 400000, server-type: ccx63}\ntasks: [{run: x}]\n"
    found = known({"x.yml": b"on: {command: x}\ntasks: [{uses: .gibil.yml}]"}, {".gibil.yml": own})
    (plan,) = for_command(found, Command(word="x"), limited)
    machine = plan.machine
    assert (machine.memory_mb, machine.disk_mb, machine.pids, machine.server_type) == (4096, 20480, 1000, None)
    for setting in ("GIBIL_MAX_MEMORY", "GIBIL_MAX_DISK", "GIBIL_MAX_PIDS", "GIBIL_SERVER_TYPES"):
        assert any(setting in note for note in plan.notes), setting
    found = known({"x.yml": b"on: {command: x}\nmachine: {size: large, server-type: cx23}\ntasks: [{run: x}]"})
    (plan,) = for_command(found, Command(word="x"), limited)
    assert (plan.machine.memory_mb, plan.machine.server_type) == (4096, "cx23"), "a size can't exceed a cap"
    assert len(plan.notes) == 1
    found = known({"x.yml": b"on: {command: x}\ntasks: [{run: x}]"})
    (plan,) = for_command(found, Command(word="x"), limited)
    assert (plan.machine.memory_mb, plan.machine.disk_mb, plan.notes) == (None, None, ())


def test_booleans_and_numbers_are_bound_into_conditions() -> None:
    yaml = "on: {command: x}\ninputs: {dry-run: {type: boolean}, n: {type: number}}\n"
    yaml += "tasks: [{run: x, if: '!inputs.dry-run && inputs.n > 1'}]"
    assert one(yaml, n="3").tasks[0].condition == "!false && 3 > 1"
    assert one(yaml, dry_run="true").tasks[0].condition == "!true && inputs.n > 1"


def test_an_action_of_a_pull_request_starts_the_workflows_that_name_it() -> None:
    found = known(
        {
            "a.yml": b"on: pull_request\ntasks: [{run: x}]",
            "b.yml": b"on: {pull_request: [opened]}\ntasks: [{run: x}]",
            "test.yml": TEST,
        }
    )
    assert [plan.workflow for plan in for_pull_request(found, "opened", facts())[0]] == ["a", "b"]
    assert [plan.workflow for plan in for_pull_request(found, "synchronize", facts())[0]] == ["a"]
    assert for_pull_request(found, "closed", facts()) == ((), ())


def test_a_workflow_can_be_requested_by_its_name() -> None:
    found = known({"test.yml": TEST, "broken.yml": b"x: y"})
    assert for_workflow(found, "test", {}, facts()).workflow == "test"
    with pytest.raises(UsageError, match="there is no workflow 'tets' \\(did you mean 'test'\\?\\)"):
        for_workflow(found, "tets", {}, facts())
    with pytest.raises(UsageError, match=r"workflows/broken\.yml:1:1: a workflow has no key 'x'"):
        for_workflow(found, "broken", {}, facts())


def test_a_plan_survives_the_round_trip_through_json() -> None:
    plan = one(INPUTS, note="hi")
    assert json.loads(json.dumps(plan_view(plan)))["workflow"] == "x"
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    assert plan.machine == MachinePlan(ttl_s=4200)


def test_checking_files_reports_every_problem_of_each() -> None:
    problems = check_files({"test.yml": TEST, ".gibil.yml": b"tasks: []", "bad.yml": b"on: push"})
    assert [problem.path for problem in problems] == [".gibil.yml", "bad.yml", "bad.yml"]


@given(
    st.dictionaries(st.sampled_from([".gibil.yml", ".gibil/workflows/a.yml", ".gibil/workflows/b.yml"]), st.binary(max_size=80))
)
def test_no_repository_file_can_crash_the_catalogue(repository: dict[str, bytes]) -> None:
    found = known({"test.yml": TEST}, repository)
    assert len(found.problems) + len(found.workflows) >= 1
