"""The key `commit:` of a workflow, and workflows that the bot's own commits start."""

from __future__ import annotations

import pytest

from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.model import Command, CommitPlan, Plan, PullRequestRequest, Trust
from gibil_bot.planning.plan import catalogue, for_command, for_pull_request, plan_view
from gibil_bot.planning.schema import parse_workflow
from tests.doubles.facts import facts


def planned(commit: str, *, trust: Trust = Trust.TRUSTED, **arguments: str) -> Plan:
    text = f"name: Format\non: {{command: x}}\ninputs: {{tool: {{default: ruff}}}}\ntasks: [{{run: x}}]\n{commit}\n"
    found = catalogue({"x.yml": text.encode()}, {}, base_ref="main")
    assert not found.problems, found.problems
    (plan,) = for_command(found, Command(word="x", arguments=arguments), facts(trust=trust))
    return plan


def problem(commit: str) -> str:
    text = f"on: {{command: x}}\ntasks: [{{run: x}}]\n{commit}\n"
    with pytest.raises(InvalidWorkflow) as caught:
        parse_workflow("x.yml", text.encode())
    return str(caught.value)


def test_a_message_alone_commits_all_changes_to_the_pull_requests_branch() -> None:
    assert planned("commit: Format the code").commit == CommitPlan(message="Format the code")


def test_without_the_key_nothing_is_committed() -> None:
    assert planned("").commit is None


def test_every_option_is_read_and_shown_in_the_plan() -> None:
    plan = planned(
        "commit:\n  message: |\n    Format with ${{ inputs.tool }}\n\n    For ${{ github.actor }}.\n"
        "  paths: ['src/**', '!src/generated/**']\n  when: changed\n  to: branch\n  branch: fix/${{ github.number }}\n"
        "  pull-request: {title: 'Format ${{ github.head_ref }}', draft: true, body: Please review.}\n"
        "  on-conflict: fail\n  strict: true",
        tool="black",
    )
    number, actor, ref = plan.github["number"], plan.github["actor"], plan.github["head_ref"]
    assert plan.commit == CommitPlan(
        message=f"Format with black\n\nFor {actor}.",
        paths=("src/**", "!src/generated/**"),
        to="branch",
        branch=f"fix/{number}",
        pull_request=PullRequestRequest(title=f"Format {ref}", draft=True, body="Please review."),
        on_conflict="fail",
        strict=True,
    )
    shown = plan_view(plan)["commit"]
    assert isinstance(shown, dict)
    assert shown["branch"] == f"fix/{number}"


def test_a_branch_needs_no_name_and_a_name_needs_no_target() -> None:
    unnamed, named = planned("commit: {message: x, to: branch}"), planned("commit: {message: x, branch: fixes}")
    assert unnamed.commit is not None
    assert unnamed.commit.branch == f"gibil/x-{unnamed.github['number']}"
    assert named.commit is not None
    assert (named.commit.to, named.commit.branch) == ("branch", "fixes")


def test_an_untrusted_run_only_leaves_a_patch() -> None:
    plan = planned("commit: {message: x, branch: fixes, pull-request: {title: t}}", trust=Trust.UNTRUSTED)
    assert plan.commit == CommitPlan(message="x", to="patch")
    assert any("patch instead of commits" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("commit", "expected"),
    [
        ("commit: {paths: [src]}", "commit needs the key 'message'"),
        ("commit: {message: x, path: [src]}", "did you mean 'paths'?"),
        ("commit: {message: x, to: main}", "'main' is not one of head, branch, patch"),
        ("commit: {message: x, to: head, branch: b}", "branch belongs to to: branch, and this writes to: head"),
        ("commit: {message: x, to: patch, pull-request: {title: t}}", "pull-request belongs to to: branch"),
        ("commit: {message: x, to: patch, on-conflict: fail}", "there are no conflicts"),
        ("commit: {message: x, branch: a..b}", "'a..b' is not a valid branch name"),
        ("commit: {message: x, branch: '${{ inputs.nothing }}'}", "nothing"),
        ("commit: {message: x, paths: [../secrets]}", "'../secrets' is outside the checkout"),
        ("commit: {message: x, paths: ['!']}", "a path has 1 to 500 characters"),
        (f"commit: {{message: x, paths: [{'a' * 501}]}}", "a path has 1 to 500 characters"),
        ("commit: {message: x, when: always}", "only changes of successful runs are committed"),
        ("commit: {message: x, author: me}", "the author is the App"),
        ("commit: {message: x, pull-request: {draft: true}}", "pull-request needs the key 'title'"),
        ("commit: 'x ${{ steps.a }}'", "steps"),
        ("commit: '  '", "a message can't be empty"),
        ("commit: [a]", "a message"),
    ],
)
def test_a_mistake_is_reported_with_what_to_write(commit: str, expected: str) -> None:
    assert expected in problem(commit)


def test_a_branch_name_that_an_argument_makes_invalid_is_rejected() -> None:
    with pytest.raises(UsageError, match="'fix/a b' is not a valid branch name"):
        planned("commit: {message: x, branch: 'fix/${{ inputs.tool }}'}", tool="a b")


def test_a_message_of_an_empty_argument_is_rejected() -> None:
    with pytest.raises(UsageError, match="message of its commit is empty"):
        planned("commit: '${{ inputs.tool }}'", tool="")


def test_only_workflows_that_ask_for_it_are_started_by_the_bots_own_commits() -> None:
    files = {
        "test.yml": b"on: pull_request\ntasks: [{run: x}]",
        "check.yml": b"on: {own-push: {max-attempts: 2}}\ntasks: [{run: x}]",
        "lint.yml": b"on: {command: lint, own-push: }\ntasks: [{run: x}]",
    }
    found = catalogue(files, {}, base_ref="main")
    assert not found.problems
    own, _ = for_pull_request(found, "synchronize", facts(), is_own_push=True)
    pushed, _ = for_pull_request(found, "synchronize", facts())
    assert [(plan.workflow, plan.max_attempts) for plan in own] == [("check", 2), ("lint", 3)]
    assert [plan.workflow for plan in pushed] == ["test"]
