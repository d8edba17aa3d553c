"""Syntax of GitHub Actions that gibil doesn't support: the check reports all of it at once, with what to write instead."""

from __future__ import annotations

import time

import pytest

from gibil_bot.humanize import nearest
from gibil_bot.planning.actions import _missing_variables
from gibil_bot.planning.catalogue import check_files
from gibil_bot.planning.schema import parse_workflow
from gibil_bot.planning.schema_types import MAX_PROBLEMS


def problems_of(text: str, path: str = "w.yml") -> list[tuple[int, str]]:
    return [(problem.line, problem.problem) for problem in check_files({path: text.encode()})]


def task(script: str) -> str:
    return "on: {command: w}\ninputs: {target: }\ntasks:\n  - run: |\n      " + script.replace("\n", "\n      ") + "\n"


@pytest.mark.parametrize(
    ("piece", "instead"),
    [
        ("inputs.target", 'write "$GIBIL_INPUT_TARGET"'),
        ("inputs.dry-run", 'write "$GIBIL_INPUT_DRY_RUN"'),
        ("secrets.DEPLOY_KEY", 'list DEPLOY_KEY under secrets: and write "$DEPLOY_KEY"'),
        ("secrets.GITHUB_TOKEN", "machines get no GitHub token"),
        ("github.token", "machines get no GitHub token"),
        ("env.VERSION", 'write "$VERSION"'),
        ("github.sha", 'write "$GITHUB_SHA"'),
        ("github.event.pull_request.title", 'write "$GIBIL_PR_TITLE"'),
        ("github.event.pull_request.user.login", 'write "$GIBIL_PR_AUTHOR"'),
        ("github.event.number", 'write "$GIBIL_PR_NUMBER"'),
        ("github.event.repository.topics", "compute it in the script"),
        ("steps.build.outputs.page", "tasks have no outputs"),
        ("needs.build.result", "tasks have no outputs"),
        ("matrix.python", "there is no matrix"),
        ("vars.REGION", "there are no configuration variables"),
        ("runner.temp", 'write "$RUNNER_TEMP"'),
        ("runner.os == 'Linux'", 'compute it in the script from "$RUNNER_OS"'),
        ("inputs.target && 'a' || 'b'", 'compute it in the script from "$GIBIL_INPUT_TARGET"'),
        ("hashFiles('**/uv.lock')", "compute it in the script"),
        ("!inputs.target", 'compute it in the script from "$GIBIL_INPUT_TARGET"'),
        (" inputs.target ", 'write "$GIBIL_INPUT_TARGET"'),
    ],
)
def test_an_expression_in_a_script_is_reported_with_a_replacement(piece: str, instead: str) -> None:
    ((line, problem),) = problems_of(task(f"true\necho ${{{{{piece}}}}}"))
    assert line == 6, "the line of the script"
    assert "expressions are not evaluated in scripts" in problem
    assert instead in problem


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        ("${{ secrets.K }}", 'list K under secrets: and write "$K"'),
        ("x-${{ inputs.target }}", "compute $K in the script from $GIBIL_INPUT_TARGET"),
        ("${{ inputs.target || github.sha }}", "compute $K in the script from $GIBIL_INPUT_TARGET"),
        ("${{ github.head_ref }}", "scripts already have it as $GITHUB_HEAD_REF: write that for $K and remove this line"),
    ],
)
@pytest.mark.parametrize("where", ["workflow", "task", ".gibil.yml"])
def test_an_expression_in_an_environment_is_reported_with_a_replacement(value: str, instead: str, where: str) -> None:
    text = {
        "workflow": f"on: {{command: w}}\ninputs: {{target: }}\nenv: {{K: '{value}'}}\ntasks: [{{run: x}}]\n",
        "task": f"on: {{command: w}}\ninputs: {{target: }}\n\ntasks: [{{run: x, env: {{K: '{value}'}}}}]\n",
        ".gibil.yml": f"tasks: [{{run: x}}]\n\nenv: {{K: '{value}'}}\n",
    }[where]
    ((_, problem),) = problems_of(text, ".gibil.yml" if where == ".gibil.yml" else "w.yml")
    assert (
        "expressions are evaluated only in if:, concurrency.group, commit, prompts of agents and the keys of caches" in problem
    )
    assert instead in problem


@pytest.mark.parametrize(
    "script",
    [
        "echo '{{ jinja }}' '${{ jinja }}' ${{",
        "awk '{ print ${{1}} }'",
        'echo "${GITHUB_TOKEN:-none}"',
        'GITHUB_TOKEN=$(cat token) && use "$GITHUB_TOKEN"',
        'if [ -n "$GITHUB_TOKEN" ]; then gh auth status; else echo "no token: $GITHUB_TOKEN"; fi',
        '[[ -z ${GITHUB_TOKEN} ]] && exit 0\ngh "$GITHUB_TOKEN"',
        'echo "${GITHUB_TOKEN:+yes} $GITHUB_TOKEN"',
        "# in Actions this was $GITHUB_TOKEN\ntrue  # or $GITHUB_EVENT_PATH",
        "echo 'set $GITHUB_TOKEN first' \\$GITHUB_TOKEN \"\\$GITHUB_TOKEN isn't set\"",
        "perl -e '\n  print $GITHUB_STATE;\n'",
        "cat >a.sh <<'EOF'\nit's curl $GITHUB_TOKEN\nEOF\ncat >b.sh <<-\"E F\"\n$GITHUB_TOKEN\n\tE F\ntrue",
        'read -r GITHUB_TOKEN <token; use "$GITHUB_TOKEN"',
        'echo "page=1" >>"$GITHUB_OUTPUT"; echo "$RUNNER_OS $RUNNER_TEMP"',
    ],
)
def test_valid_scripts_have_no_problem(script: str) -> None:
    assert problems_of(task(script)) == []


@pytest.mark.parametrize("name", ["GITHUB_STATE", "GITHUB_EVENT_PATH", "GITHUB_TOKEN", "ACTIONS_CACHE_URL"])
@pytest.mark.parametrize("form", ["${}", "${{{}}}"])
def test_an_undefined_variable_is_reported(name: str, form: str) -> None:
    ((line, problem),) = problems_of(task("true\ncat " + form.format(name)))
    assert line == 6
    assert problem.startswith(f"${name} is not set: ")


@pytest.mark.parametrize(
    "script",
    [
        'echo "it\'s $GITHUB_TOKEN"',
        "cat >a.sh <<EOF\nit's $GITHUB_TOKEN\nEOF",
        "cat <<'A' <<B\n$GITHUB_STATE\nA\n$GITHUB_TOKEN\nB",
        "echo 'a' \"$GITHUB_TOKEN\" 'b'  # 'c",
        "echo ${#x} a#b $GITHUB_TOKEN",
        "echo 'unclosed $GITHUB_TOKEN",
    ],
)
def test_a_variable_that_the_shell_would_expand_is_reported(script: str) -> None:
    ((_, problem),) = problems_of(task(script))
    assert problem.startswith("$GITHUB_TOKEN is not set: ")


@pytest.mark.parametrize(
    "filler", ["read " * 12_000, "".join(f"<<a{n}\na{n}\n" for n in range(4000)), "<<E\n" + "\t" * 60_000], ids=range(3)
)
def test_the_search_for_variables_takes_linear_time(filler: str) -> None:
    begun = time.process_time()
    list(_missing_variables("$GITHUB_TOKEN\n" + filler))
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(("shell", "problems"), [("python", 0), ("perl {0}", 0), ("bash", 1), ("/bin/bash -e {0}", 1)])
def test_variables_are_checked_in_shell_scripts_only(shell: str, problems: int) -> None:
    text = f"on: {{command: w}}\ntasks: [{{shell: '{shell}', run: 'print(\"$GITHUB_TOKEN\")'}}]\n"
    assert len(problems_of(text)) == problems


def test_expressions_are_allowed_where_they_are_evaluated_and_in_prose() -> None:
    text = (
        "on: {command: w}\ndescription: 'writes ${{ inputs.target }} on a wall'\ninputs: {target: }\n"
        "concurrency: 'w-${{ inputs.target }}'\ntasks:\n  - {if: \"${{ inputs.target == 'a' }}\", run: x}\n"
    )
    assert problems_of(text) == []


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("on: push\ntasks: [{run: x}]\n", "pushes outside pull requests start nothing"),
        ("on: [push, pull_request]\ntasks: [{run: x}]\n", "pushes outside pull requests start nothing"),
        ("on: {schedule: [{cron: 0 0 * * *}]}\ntasks: [{run: x}]\n", "there is no schedule"),
        ("on: {workflow_dispatch: {}}\ntasks: [{run: x}]\n", "write command: WORD"),
        ("on: {pull_request_target: }\ntasks: [{run: x}]\n", "write pull_request"),
        ("on: {pull_request: {paths: [src]}}\ntasks: [{run: x}]\n", "changed paths are not considered"),
        ("on: {pull_request: {branches: [main]}}\ntasks: [{run: x}]\n", "github.base_ref == 'main'"),
        ("on: {pull_request: [labeled]}\ntasks: [{run: x}]\n", "'labeled' is not an event that starts a workflow"),
        ("on: pull_request\njobs: {}\n", "write its steps under tasks"),
        ("on: pull_request\nstrategy: {}\ntasks: [{run: x}]\n", "there is no matrix"),
        ("on: pull_request\ntasks: [{run: x, cache: pip}]\n", "it belongs at the top of the file"),
        ("on: pull_request\ntasks: [{run: x, services: {}}]\n", "it belongs at the top of the file"),
        ("on: pull_request\ncheckout: {fetch-depth: 0}\ntasks: [{run: x}]\n", "its name here is depth"),
        ("on: pull_request\ncheckout: {fetch-tags: true}\ntasks: [{run: x}]\n", "its name here is tags"),
        ("on: pull_request\ncheckout: {token: x}\ntasks: [{run: x}]\n", "machines get no GitHub token"),
        ("on: pull_request\ntasks: [{uses: actions/cache@v4}]\n", "write cache: [{path: …, key: …}]"),
        ("on: pull_request\ntasks: [{uses: ruby/setup-ruby@v1}]\n", "write runtime: {ruby: '3.3'}"),
        ("on: pull_request\npermissions: {}\ntasks: [{run: x}]\n", "machines get no GitHub token"),
        ("on: pull_request\ntasks: [{uses: actions/checkout@v4}]\n", "not needed"),
        ("on: pull_request\ntasks: [{uses: actions/upload-artifact@v4}]\n", "artifacts are not stored yet"),
        ("on: pull_request\ntasks: [{uses: astral-sh/ruff-action@v3}]\n", "write the commands under run"),
        ("on: pull_request\ntasks: [{id: a, run: x}]\n", "$GITHUB_ENV"),
        ("on: pull_request\ntasks: [{needs: a, run: x}]\n", "in the order of the file"),
    ],
)
def test_a_key_of_actions_is_reported_with_the_alternative(text: str, instead: str) -> None:
    ((_, problem),) = problems_of(text)
    assert instead in problem
    assert "did you mean" not in problem


def test_every_problem_of_a_file_is_reported_in_order() -> None:
    found = problems_of(
        "on: {command: w, schedule: x}\n"
        "strategy: {}\n"
        "env: {K: '${{ secrets.K }}', 3bad: x}\n"
        "inputs: {n: {type: number, default: many}}\n"
        "tasks:\n"
        "  - {name: [a], run: x}\n"
        "  - {run: x, if: inputs.m == 'a'}\n"
        "  - {timeout-minutes: soon}\n"
        "concurrency: {group: '${{ inputs.q }}'}\n"
    )
    assert [line for line, _ in found] == [1, 2, 3, 3, 4, 6, 7, 8, 8, 9]


def test_an_unreadable_input_is_reported_once() -> None:
    found = problems_of("on: {command: w}\ninputs: {n: {type: nonsense}}\ntasks: [{run: x, if: inputs.n == 'a'}]\n")
    assert [line for line, _ in found] == [2]


def test_the_number_of_reported_problems_is_bounded() -> None:
    text = "on: {command: w}\ntasks: [{run: x}]\n" + "".join(f"key{number}: x\n" for number in range(3000))
    assert len(problems_of(text)) == MAX_PROBLEMS


def test_unclosed_expressions_do_not_slow_the_check() -> None:
    assert problems_of("on: {command: w}\ntasks: [{run: '" + "${{" * 15_000 + "'}]\n") == []


@pytest.mark.parametrize(
    ("word", "choices", "hint"),
    [
        ("taks", ["tasks", "name"], " (did you mean 'tasks'?)"),
        ("crate", ["create", "run"], " (did you mean 'create'?)"),
        ("tset", ["test", "lint"], " (did you mean 'test'?)"),
        ("concurency", ["concurrency"], " (did you mean 'concurrency'?)"),
        ("cache", ["machine", "name"], ""),
        ("services", ["secrets"], ""),
        ("on", ["if", "run"], ""),
        ("x" * 5000, ["test"], ""),
    ],
)
def test_a_suggested_word_differs_by_at_most_two_typing_errors(word: str, choices: list[str], hint: str) -> None:
    assert nearest(word, choices) == hint


def test_a_workflow_with_several_triggers_is_read() -> None:
    workflow = parse_workflow("w.yml", b"on: {command: w, pull_request: [opened]}\ntasks: [{run: x}]\n")
    assert (workflow.command, workflow.pull_request) == ("w", ("opened",))
