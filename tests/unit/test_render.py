"""Texts in pull requests are correct, within GitHub's limits, and harmless, whatever tasks and users wrote."""

from __future__ import annotations

import dataclasses
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gibil_bot.github import replies, trust_replies
from gibil_bot.github.markdown import clean, code, cut, defuse, fenced, joined, line, quoted, size
from gibil_bot.github.render import RunReport, check_run, comment
from gibil_bot.humanize import duration, ordinal
from gibil_bot.model import (
    CheckRunUpdate,
    CommentCreated,
    CommentUpdate,
    Conclusion,
    DetectedProject,
    Notification,
    Person,
    Plan,
    PullRequest,
    Quote,
    ReactionUpdate,
    Refusal,
    Refusals,
    Repository,
    Run,
    RunState,
    Source,
    TaskPlan,
    TaskResult,
    TaskStatus,
    Trust,
)
from gibil_bot.views import blocked_view
from tests.doubles.patience import patient

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
SHA = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = Repository(id=77, full_name="octo/hello", clone_url="https://github.com/octo/hello.git", default_branch="main")
PULL = PullRequest(
    number=12,
    title="Faster",
    author=Person(login="ada"),
    head_sha=SHA,
    head_ref="fast",
    head_repository="ada/hello",
    base_ref="main",
    base_sha=SHA,
)
EVENT = CommentCreated(
    installation_id=3,
    repository=REPOSITORY,
    number=12,
    comment_id=501,
    author=Person(login="ada"),
    body="/gibil test",
)


def report(
    *names: str,
    results: tuple[TaskResult, ...] = (),
    plan: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    **rest: Any,
) -> RunReport:
    tasks = tuple(TaskPlan(name=name, run="true") for name in names or ("build", "unit tests", "lint"))
    made = Plan(**({"workflow": "test", "title": "Tests", "path": "workflows/test.yml", "tasks": tasks} | (plan or {})))
    source = Source(installation_id=3, repository=REPOSITORY, pull_request=PULL, sha=SHA, trust=Trust.TRUSTED, actor="ada")
    facts: dict[str, Any] = {"id": "00ff00ff00ff00ff", "seq": 1, "delivery_guid": "g", "source": source, "plan": made}
    facts |= {"state": RunState.RUNNING, "queued_at": NOW, "started_at": NOW} | (run or {})
    return RunReport(run=Run(**facts), results=results, now=NOW + timedelta(seconds=90), **rest)


def result(index: int, status: TaskStatus, **rest: Any) -> TaskResult:
    facts: dict[str, Any] = {
        "name": f"task {index}",
        "machine_attempt": 1,
        "started_at": NOW,
        "finished_at": NOW + timedelta(seconds=12),
    }
    return TaskResult(index=index, status=status, **(facts | rest))


def finished(conclusion: Conclusion, *results: TaskResult, **rest: Any) -> RunReport:
    run = {"state": RunState.FINISHED, "finished_at": NOW + timedelta(seconds=72), "conclusion": conclusion}
    return report(results=results, run=run | rest.pop("run", {}), **rest)


def output(of: RunReport) -> dict[str, str]:
    found: dict[str, str] = msgspec.to_builtins(check_of(of).output)
    return found


def check_of(of: RunReport) -> CheckRunUpdate:
    update = check_run(of).update
    assert isinstance(update, CheckRunUpdate)
    return update


def comment_of(notification: Notification | None) -> CommentUpdate:
    assert notification is not None
    assert isinstance(notification.update, CommentUpdate)
    return notification.update


def visible(text: str) -> str:
    return text.replace("\u200b", "")


OK = tuple(result(index, TaskStatus.SUCCESS) for index in range(3))
RED = (
    result(0, TaskStatus.SUCCESS),
    result(
        1, TaskStatus.FAILURE, exit_status=2, tail="boom\n1 failed", summary="# Coverage\n\n| a | b |\n|---|---|\n| 1 | 2 |"
    ),
    result(2, TaskStatus.SKIPPED, detail="an earlier task failed", started_at=None, finished_at=None),
)


# --- a failed preparation ------------------------------------------------------------------------------------------

CI = Quote(command="uv run --locked tox run", path=".github/workflows/tests.yaml", line=42)
DETECTED = DetectedProject(purpose="test", quotes=(CI,), suggestion="tasks:\n  - { name: test, run: tox }\n")
KINDS = (("runtime", "prepare"), ("install", "prepare"), ("test", "run"))
PREPARED = tuple(TaskPlan(name=name, run="x", kind=kind) for name, kind in KINDS)
UNPREPARED = (
    result(0, TaskStatus.SUCCESS),
    result(1, TaskStatus.FAILURE, exit_status=1, tail="no such package"),
    result(2, TaskStatus.SKIPPED, detail="the preparation failed", started_at=None, finished_at=None),
)


def test_a_failed_preparation_is_not_reported_as_failed_tests() -> None:
    failed = finished(Conclusion.FAILURE, *UNPREPARED, plan={"tasks": PREPARED, "detected": DETECTED})
    assert output(failed)["title"] == "The preparation failed (install) in 1 min 12 s; the tests didn't run"
    for text in (output(failed)["summary"], comment_body(failed)):
        assert "The **preparation** failed: what the project needs could not be installed. The tests didn't run" in text
        assert "Its CI runs `uv run --locked tox run` (`.github/workflows/tests.yaml:42`)." in text
        fold = text[text.index("<details>") : text.index("</details>")]
        assert "```text\ntasks:\n  - { name: test, run: tox }\n```" in fold
        assert "| ⏭️ | `test` |  | `the preparation failed` |" in text
    assert "no such package" in output(failed)["text"]


def test_failed_tests_are_not_reported_as_a_failed_preparation() -> None:
    red = (result(0, TaskStatus.SUCCESS), result(1, TaskStatus.SUCCESS), result(2, TaskStatus.FAILURE, exit_status=1))
    failed = finished(Conclusion.FAILURE, *red, plan={"tasks": PREPARED, "detected": DETECTED})
    assert output(failed)["title"] == "test failed in 1 min 12 s"
    for text in (output(failed)["summary"], comment_body(failed)):
        assert "preparation" not in text
        assert "tox" not in text


def test_failed_tests_without_the_submodules_of_the_ci_are_a_failed_preparation() -> None:
    red = (result(0, TaskStatus.SUCCESS), result(1, TaskStatus.SUCCESS), result(2, TaskStatus.FAILURE, exit_status=1))
    incomplete = replace(DETECTED, missing="submodules")
    failed = finished(Conclusion.FAILURE, *red, plan={"tasks": PREPARED, "detected": incomplete})
    assert output(failed)["title"] == "The preparation failed (submodules) in 1 min 12 s"
    for text in (output(failed)["summary"], comment_body(failed)):
        assert "The **preparation** failed: the checkout lacks submodules, so this says nothing about the code." in text
        assert "Its CI runs `uv run --locked tox run`" in text
    failed = finished(Conclusion.FAILURE, *UNPREPARED, plan={"tasks": PREPARED, "detected": incomplete})
    assert output(failed)["title"] == "The preparation failed (install) in 1 min 12 s; the tests didn't run"
    green = tuple(result(index, TaskStatus.SUCCESS) for index in range(3))
    passed = finished(Conclusion.SUCCESS, *green, plan={"tasks": PREPARED, "detected": incomplete})
    assert "preparation" not in output(passed)["summary"]


def test_tests_of_which_no_command_can_run_are_answered_with_the_projects_ci() -> None:
    red = (result(0, TaskStatus.SUCCESS), result(1, TaskStatus.SUCCESS), result(2, TaskStatus.FAILURE, exit_status=127))
    failed = finished(Conclusion.FAILURE, *red, plan={"tasks": PREPARED, "detected": DETECTED})
    for text in (output(failed)["summary"], comment_body(failed)):
        assert "A program that the tests need doesn't exist on the machine, so this says nothing about the code." in text
        assert "Its CI runs `uv run --locked tox run` (`.github/workflows/tests.yaml:42`)." in text
        assert "```text\ntasks:\n  - { name: test, run: tox }\n```" in text


def test_a_failed_set_up_of_a_repositorys_file_is_a_failed_preparation_too() -> None:
    failed = finished(Conclusion.FAILURE, *UNPREPARED, plan={"tasks": PREPARED})
    assert output(failed)["title"].startswith("The preparation failed (install) in 1 min 12 s; the other tasks didn't run")
    assert "<details>" not in comment_body(failed)


def test_a_project_without_tests_is_answered_with_its_ci_and_a_file_to_start_from() -> None:
    red = (result(0, TaskStatus.FAILURE, exit_status=1, tail="x"),)
    more = tuple(replace(CI, line=line) for line in range(9))
    detected = replace(DETECTED, problem="found no way to test this project", quotes=more)
    failed = finished(Conclusion.FAILURE, *red, plan={"tasks": (TaskPlan(name="test", run="x"),), "detected": detected})
    for text in (output(failed)["summary"], comment_body(failed)):
        assert "Found no way to test this project." in text
        assert text.count("- `uv run --locked tox run` (") == 5
        assert "<details>" in text
    assert output(failed)["title"] == "test failed in 1 min 12 s"


def test_a_project_without_linters_is_neutral_and_not_scolded() -> None:
    idle = (result(0, TaskStatus.SKIPPED, exit_status=0, detail="found no linter"),)
    detected = DetectedProject(purpose="lint", problem="found no linter")
    neutral = finished(Conclusion.NEUTRAL, *idle, plan={"tasks": (TaskPlan(name="lint", run="x"),), "detected": detected})
    assert output(neutral)["title"] == "Nothing to do: found no linter"
    assert "preparation" not in comment_body(neutral)


@pytest.mark.parametrize(
    "text", ["</details><script>@everyone #1", "`" * 50, "```\n@ada", "\x1b[31m\u202e|\n\n# x", "x" * 100_000]
)
def test_quotes_and_suggestions_stay_harmless_text(text: str) -> None:
    quotes = tuple(Quote(command=text, path=text, line=1) for _ in range(30))
    detected = DetectedProject(purpose="test", quotes=quotes, suggestion=text, problem=text)
    failed = finished(Conclusion.FAILURE, *UNPREPARED, plan={"tasks": PREPARED, "detected": detected})
    body = comment_body(failed)
    assert size(body) < 20_000
    assert "\u202e" not in body
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", " ", body, flags=re.DOTALL)
    for active in ("<script", "@everyone", "@ada"):
        assert active not in outside
    assert outside.count("<details>") == outside.count("</details>") == 1


def test_blocked_hosts_are_listed_once_and_escaped() -> None:
    mirror, itself = Refusal(host="mirror.corp", port=443), Refusal(host="127.0.0.2", port=80, itself=True)
    rude = Refusal(host="`@everyone_<script>", port=1)  # these aren't host names; neither is a masked secret
    red = (
        result(0, TaskStatus.SUCCESS, refusals=Refusals(refused=(mirror, itself))),
        result(1, TaskStatus.FAILURE, refusals=Refusals(refused=(mirror, rude), more=True)),
    )
    for text in (output(finished(Conclusion.FAILURE, *red))["summary"], comment_body(finished(Conclusion.FAILURE, *red))):
        (blocked,) = [line for line in text.splitlines() if "GIBIL_EGRESS_ALLOW" in line]
        assert blocked.count("mirror.corp:443") == 2, "in the list and in the remedy"
        assert "GIBIL_EGRESS_ALLOW=mirror.corp:443," in blocked
        assert "and others" in blocked
        assert blocked.startswith("> ⛔ ``"), "in code between double backticks, where a single one is a character"
        (own,) = [line for line in text.splitlines() if "127.0.0.2:80" in line]
        assert "GIBIL_EGRESS_ALLOW" not in own


def test_hosts_that_an_agent_may_not_reach_are_listed_once_as_entries_of_its_allow_list() -> None:
    ports = (0, 443, 80, 22, 22)
    unlisted = [Refusal(host="a.example", port=port, unlisted=True) for port in ports]
    private = Refusal(host="10.0.0.1", port=80)
    lines = blocked_view(Refusals(refused=(*unlisted, private, Refusal(host="b.example", port=0, unlisted=True))))
    assert lines == [
        "blocked because the agent task's allow-list doesn't have them: a.example, a.example:22, b.example; add them to "
        "`allow:` of the task, or let the operator add them to GIBIL_EGRESS_ALLOW",
        "blocked because they are not public: 10.0.0.1:80; the operator can allow them with GIBIL_EGRESS_ALLOW=10.0.0.1:80",
    ]


def test_the_list_of_blocked_hosts_is_bounded() -> None:
    many = tuple(Refusal(host=f"{n}." + "a" * 250, port=port) for n in range(50) for port in range(1, 50))
    for lines in (blocked_view(Refusals(refused=many)), blocked_view(Refusals(refused=many[:49]))):
        assert len(lines) == 1
        assert len(lines[0]) < 3000
        assert "and others" in lines[0]
    assert blocked_view(Refusals()) == []
    six = blocked_view(Refusals(refused=(Refusal(host="fd00::1", port=443),)))
    assert six[0].endswith("GIBIL_EGRESS_ALLOW=[fd00::1]:443")


def comment_body(of: RunReport) -> str:
    return comment_of(comment(of)).body


# --- the check run ----------------------------------------------------------------------------------------------------


def test_a_queued_run_shows_its_position() -> None:
    update = check_of(report(run={"state": RunState.QUEUED, "started_at": None}, position=3))
    assert (update.name, update.status, update.external_id, update.head_sha) == (
        "gibil / test",
        "queued",
        "00ff00ff00ff00ff",
        SHA,
    )
    assert update.output.title == "Queued: 3rd in the queue"
    assert (update.conclusion, update.started_at, update.details_url) == (None, None, None)
    assert set(msgspec.to_builtins(update)) == {"name", "status", "external_id", "head_sha", "output"}


def test_a_starting_run_shows_its_phase() -> None:
    assert output(report(phase="forging a machine"))["title"] == "Forging a machine"


def test_a_running_run_shows_its_progress_and_its_latest_output() -> None:
    results = (OK[0], result(1, TaskStatus.RUNNING, finished_at=None))
    shown = output(report(results=results, live_tail="collecting …\nok 12", created_in_s=0.42))
    assert shown["title"] == "1 of 3 tasks done: unit tests"
    assert "```text\ncollecting …\nok 12\n```" in shown["summary"]
    assert "| ▶️ | `unit tests` | 1 min 30 s | |" in shown["summary"].replace("  ", " ")
    assert "forged in 0.4 s" in shown["summary"]
    assert "`/gibil cancel test`" in shown["summary"]
    assert "text" not in shown


def test_a_successful_run() -> None:
    notification = check_run(finished(Conclusion.SUCCESS, *OK, public_url="https://bot.example/"))
    assert notification.key == "check:00ff00ff00ff00ff"
    update = notification.update
    assert isinstance(update, CheckRunUpdate)
    assert update.status == "completed"
    assert update.conclusion == "success"
    assert update.started_at == "2026-05-04T12:00:00Z"
    assert update.completed_at == "2026-05-04T12:01:12Z"
    assert update.details_url == "https://bot.example/runs/00ff00ff00ff00ff"
    assert update.output.title == "3 tasks passed in 1 min 12 s"


def test_a_failed_run_names_the_failed_task_and_how_to_retry() -> None:
    shown = output(finished(Conclusion.FAILURE, *RED))
    assert shown["title"] == "unit tests failed in 1 min 12 s"
    assert "exit status 2" in shown["summary"]
    assert "an earlier task failed" in shown["summary"]
    assert "`/gibil retest test`" in shown["summary"]
    assert "Re-run" in shown["summary"]
    assert "boom\n1 failed" in shown["text"]
    assert "> | 1 | 2 |" in shown["text"], "summaries are Markdown"


def test_an_internal_error_is_a_failure_with_a_remedy() -> None:
    shown = output(finished(Conclusion.FAILURE, OK[0], run={"note": "the machine was lost twice"}))
    assert shown["title"] == "gibil itself failed, not your code: the machine was lost twice"
    assert "`/gibil retest test`" in shown["summary"]


@pytest.mark.parametrize(
    ("conclusion", "results", "run", "title"),
    [
        (Conclusion.TIMED_OUT, (result(0, TaskStatus.TIMED_OUT),), {}, "build timed out in 1 min 12 s"),
        (Conclusion.TIMED_OUT, (), {}, "Ran out of time in 1 min 12 s"),
        (Conclusion.CANCELLED, (), {"cancel_reason": "superseded by abc1234"}, "Superseded by abc1234"),
        (Conclusion.CANCELLED, (), {"cancel_reason": "cancelled by ada"}, "Cancelled by ada"),
        (Conclusion.CANCELLED, (), {}, "Cancelled"),
        (Conclusion.ACTION_REQUIRED, (), {}, "Waiting for approval"),
        (Conclusion.NEUTRAL, (), {}, "Nothing to do"),
        (Conclusion.FAILURE, (RED[1], result(2, TaskStatus.FAILURE)), {}, "unit tests and 1 other task failed in 1 min 12 s"),
    ],
)
def test_every_conclusion_has_a_title(
    conclusion: Conclusion, results: tuple[TaskResult, ...], run: dict[str, Any], title: str
) -> None:
    assert output(finished(conclusion, *results, run=run))["title"] == title


def test_only_the_newest_machine_is_shown() -> None:
    again = replace(RED[1], machine_attempt=2, status=TaskStatus.SUCCESS, exit_status=0, tail="")
    shown = output(finished(Conclusion.SUCCESS, again, *OK[:1], RED[1], OK[2], run={"machine_attempt": 2}))
    assert "boom" not in shown.get("text", "")
    assert shown["title"].startswith("3 tasks passed")


def test_notes_of_the_plan_are_shown() -> None:
    assert "chose python3" in output(report(plan={"notes": ("chose python3",)}))["summary"]


# --- the comment ------------------------------------------------------------------------------------------------------


def test_a_pull_request_and_workflow_have_one_comment() -> None:
    first, second = comment(finished(Conclusion.FAILURE, *RED)), comment(finished(Conclusion.SUCCESS, *OK, run={"id": "11"}))
    assert first is not None
    assert second is not None
    assert first.key == second.key == "comment:77:12:test"
    update = comment_of(first)
    assert update.marker == comment_of(second).marker == "<!-- gibil:77:12:test -->"
    assert update.body.startswith("<!-- gibil:77:12:test -->\n")
    assert "boom" in update.body
    assert not update.only_if_exists


@pytest.mark.parametrize(
    ("wish", "conclusion", "expected"),
    [
        ("always", Conclusion.SUCCESS, "shown"),
        ("always", Conclusion.FAILURE, "shown"),
        ("always", None, "shown"),
        ("on-failure", Conclusion.FAILURE, "shown"),
        ("on-failure", Conclusion.TIMED_OUT, "shown"),
        ("on-failure", Conclusion.SUCCESS, "only_if_exists"),
        ("on-failure", Conclusion.CANCELLED, "only_if_exists"),
        ("on-failure", None, "nothing"),
        ("never", Conclusion.FAILURE, "nothing"),
        ("never", None, "nothing"),
    ],
)
def test_the_workflow_decides_when_a_comment_is_written(wish: str, conclusion: Conclusion | None, expected: str) -> None:
    plan = {"comment": wish}
    shown = comment(finished(conclusion, *OK, plan=plan) if conclusion else report(plan=plan))
    got = "nothing" if shown is None else "only_if_exists" if comment_of(shown).only_if_exists else "shown"
    assert got == expected


def test_a_superseded_run_leaves_the_comment_to_its_successor() -> None:
    assert comment(finished(Conclusion.CANCELLED, run={"cancel_reason": "superseded by abc1234"})) is None
    assert comment(finished(Conclusion.CANCELLED, run={"cancel_reason": "cancelled by ada"})) is not None


def test_a_workflows_name_cannot_fake_a_marker() -> None:
    shown = comment(report(plan={"workflow": "x --> <!-- gibil:77:12:test -->"}))
    assert shown is not None
    update = comment_of(shown)
    assert update.marker.count("-->") == 1
    assert update.body.startswith(update.marker)
    assert "<!-- gibil:77:12:test -->" not in outside_code(update.body)


# --- replies ----------------------------------------------------------------------------------------------------------


def test_a_replys_marker_contains_its_delivery() -> None:
    reply = replies.reply(EVENT, "guid-1", replies.permission_refused("eve", "read"))
    assert (reply.key, comment_of(reply).number, comment_of(reply).marker) == (
        "reply:guid-1",
        12,
        "<!-- gibil-reply:guid-1 -->",
    )
    assert comment_of(reply).body.startswith("<!-- gibil-reply:guid-1 -->\n`eve` has read permission")


def test_a_reaction_names_the_comment() -> None:
    shown = replies.reaction(EVENT, "eyes")
    assert shown.key == "reaction:501:eyes"
    assert shown.update == ReactionUpdate(comment_id=501, is_review_comment=False, content="eyes")


def test_help_lists_workflows_and_built_in_commands() -> None:
    entries = [replies.HelpEntry(word="test", title="Run the tests", inputs=("browser=firefox",), source="workflows/test.yml")]
    text = replies.help_text(entries, ["docs.yml:3:1: unknown key"])
    assert "- `/gibil test browser=firefox`: Run the tests (`workflows/test.yml`)" in text
    for command in ("retest", "cancel", "help"):
        assert f"`/gibil {command}" in text
    assert "docs.yml:3:1" in text


NASTY = "@eve #1 <b> `x` | \n\n# h\n- [ ] \x1b[31m&#64;eve GH-1 \u202e https://github.com/o/r/issues/1 -->"


SHA = "0123456789abcdef0123456789abcdef01234567"
REASONS = (
    trust_replies.fork_gone(),
    trust_replies.fork_of_organization(NASTY),
    trust_replies.fork_of_stranger(NASTY, Person(login=NASTY)),
    trust_replies.fork_pusher_unknown(NASTY),
    trust_replies.pusher_unknown(NASTY),
    trust_replies.pusher_cannot_write(Person(login=NASTY), NASTY),
    trust_replies.pusher_cannot_write(Person(login=NASTY, is_bot=True), NASTY),
    trust_replies.author_cannot_write(Person(login=NASTY)),
    trust_replies.requester_cannot_write(Person(login=NASTY)),
)


def test_every_rejection_is_one_harmless_line() -> None:
    sentences = [
        replies.permission_refused(NASTY, NASTY),
        *REASONS,
        *(replies.untrusted_refused(reason, NASTY) for reason in REASONS),
        *(trust_replies.needs_approval(SHA, reason) for reason in REASONS),
        *(trust_replies.untrusted_branch_waits(SHA, reason) for reason in REASONS),
        trust_replies.head_moved(3, SHA),
        trust_replies.rerun_moved(SHA, 3, SHA),
        trust_replies.rerun_lost(NASTY, SHA),
        trust_replies.approval_needs_sha(SHA),
        trust_replies.approval_of_another(NASTY, SHA),
        trust_replies.approval_too_late(SHA),
        trust_replies.approval_not_needed(SHA),
        trust_replies.approval_refused_here(NASTY),
        trust_replies.approved(SHA, 0),
        trust_replies.merge_queue_unsupported(NASTY),
        replies.command_unreadable(NASTY, NASTY),
        replies.pull_request_closed(3),
        replies.nothing_to_retest(NASTY),
        replies.nothing_to_retest(None),
        replies.internal_error(NASTY),
    ]
    for sentence in sentences:
        assert "\n" not in sentence
        body = comment_of(replies.reply(EVENT, "g", sentence)).body
        assert_harmless(body.replace("<!-- gibil-reply:g -->\n", "", 1))


# --- harmless for any input ---------------------------------------------------------------------------------------------


def outside_code(markdown: str) -> str:
    """Return the text outside of fences at the margin, with inline code as a space. Asserts that every such fence is closed."""
    kept: list[str] = []
    fence = ""
    for part in markdown.split("\n"):
        if fence:
            if re.fullmatch(rf" {{0,3}}{fence}`*[ \t]*", part):
                fence = ""
            continue
        if opened := re.match(r" {0,3}(`{3,})[^`]*$", part):
            fence = opened[1]
            continue
        assert not re.match(r" {0,3}~{3,}", part), "no such fence is ever opened"
        kept.append(re.sub(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", " ", part))
    assert not fence, "a fence is left open"
    return "\n".join(kept)


def assert_harmless(markdown: str) -> None:
    text = outside_code(markdown)
    assert not re.search(r"@[A-Za-z0-9]", text), text
    assert not re.search(r"#[0-9]", text), text
    assert not re.search(r"<[A-Za-z/!?]", text), text
    assert not re.search(r"&[#A-Za-z]", text), text
    assert not re.search(r"GH-[0-9]", text, re.IGNORECASE), text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", markdown), markdown


HOSTILE = st.text(alphabet=st.sampled_from("`~<>@#&|\\!-\n\r\t ab1/\x1b[]m\u202e\u200b\U0001f600é*_")) | st.text()
RESULTS = st.builds(
    TaskResult,
    index=st.integers(0, 2),
    machine_attempt=st.integers(1, 2),
    name=HOSTILE,
    status=st.sampled_from(TaskStatus),
    started_at=st.none() | st.just(NOW),
    finished_at=st.none() | st.just(NOW + timedelta(seconds=5)),
    exit_status=st.none() | st.integers(0, 255),
    summary=HOSTILE,
    tail=HOSTILE,
    detail=HOSTILE,
)


@given(
    names=st.lists(HOSTILE, min_size=3, max_size=3),
    results=st.lists(RESULTS, max_size=4),
    conclusion=st.none() | st.sampled_from(Conclusion),
    tail=HOSTILE,
    note=HOSTILE,
    phase=HOSTILE,
    workflow=HOSTILE,
)
def test_any_input_stays_within_limits_and_is_harmless(
    names: list[str], results: list[TaskResult], conclusion: Conclusion | None, tail: str, note: str, phase: str, workflow: str
) -> None:
    of = report(
        *names,
        results=tuple(results),
        plan={"notes": (note,), "workflow": workflow or "w"},
        run={"note": note, "cancel_reason": note},
        conclusion=conclusion,
        live_tail=tail,
        phase=phase,
    )
    assert_fits(of)


def assert_fits(of: RunReport) -> None:
    check = output(of)
    assert 0 < size(check["title"]) <= 255
    assert "\n" not in check["title"]
    for part in ("summary", "text"):
        if part in check:
            assert size(check[part]) <= 65_535
            assert_harmless(check[part])
    msgspec.json.encode(check_run(of).update)
    if (message := comment(of)) is not None:
        body, marker = comment_of(message).body, comment_of(message).marker
        assert size(body) <= 65_535
        assert body.startswith(marker)
        assert_harmless(body.replace(marker, "", 1))


@pytest.mark.parametrize(
    "unit",
    [
        "x",
        "\U0001f600",
        "`",
        "``` \n",
        "~~~\n",
        "\n",
        "> ",
        "| ",
        "\x1b]0;",
        "\x1b[31m",
        "\r",
        "<details>\n",
        "@a ",
        "\u202e",
        "- ```\n  ",
    ],
)
@pytest.mark.parametrize("count", [1, 100])
def test_the_largest_input_stays_within_limits(unit: str, count: int) -> None:
    big = (unit * 200_000)[:200_000]
    results = tuple(
        result(
            index,
            TaskStatus.FAILURE,
            name=big[:1000],
            tail=big[: 200_000 // count],
            summary=big[: 200_000 // count],
            detail=big[:5000],
        )
        for index in range(count)
    )
    notes = (big[:9000],) * 30
    of = report(
        *([unit * 300] * count),
        results=results,
        live_tail=big,
        plan={"notes": notes},
        run={"note": big},
        conclusion=Conclusion.FAILURE,
    )
    began = time.process_time()
    assert_fits(of)
    assert_fits(dataclasses.replace(of, conclusion=None))
    assert time.process_time() - began < patient(20), "quadratic work would take minutes"


def test_a_long_reply_is_cut_and_harmless() -> None:
    body = comment_of(replies.reply(EVENT, "g", "``` @eve <b>\n" * 20_000)).body
    assert size(body) <= 65_535
    assert "bytes omitted" in body
    assert_harmless(body.replace("<!-- gibil-reply:g -->\n", "", 1))


# --- building blocks ----------------------------------------------------------------------------------------------------


@given(text=st.text(), limit=st.integers(0, 300))
def test_a_cut_stays_within_its_limit_and_splits_no_character(text: str, limit: int) -> None:
    done = cut(text, limit)
    assert size(done) <= max(limit, 0)
    assert "\ufffd" not in done or "\ufffd" in text or limit < 60


def test_a_cut_counts_what_is_missing_and_keeps_more_of_the_end() -> None:
    text = "".join(f"{number:05}\n" for number in range(20_000))
    done = cut(text, 1000)
    message = re.search(r"… ([\d,]+) bytes omitted …", done)
    assert message is not None
    kept = size(done) - size(message[0]) - 2
    assert int(message[1].replace(",", "")) + kept == size(text)
    assert done.startswith("00000\n")
    assert done.endswith("19999\n")
    assert len(done.partition("…")[0]) < len(done.rpartition("…")[2])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;never ended\nnext", "\nnext"),
        ("\x9b31mred", "red"),
        ("\x1bPdcs\x1b\\text", "text"),
        ("\x1b(Btext\x1b", "text"),
        ("10%\r50%\r100%\nnext", "100%\nnext"),
        ("10%\r100%\r\nnext", "100%\nnext"),
        ("a\x00b\x08c\x7fd\te", "abcd\te"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("pay\u202edlog", "pay‹U+202E›dlog"),
        ("a\u2028b", "a b"),
        ("\ud800", "\ufffd"),
        ("\U000e0041tag", "tag"),
        ("äöü 😀 e\u0301 ✔\ufe0f", "äöü 😀 e\u0301 ✔\ufe0f"),
    ],
)
def test_output_is_cleaned(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a", "`a`"),
        ("a`b", "``a`b``"),
        ("`a", "`` `a ``"),
        ("a|b", "`a\\|b`"),
        ("a\nb  c", "`a b c`"),
        ("", "(empty)"),
        ("x" * 100, f"`{'x' * 79}…`"),
    ],
)
def test_names_are_inline_code(text: str, shown: str) -> None:
    assert code(text, in_table=True) == shown


def test_a_fence_is_longer_than_any_in_its_content() -> None:
    assert fenced("a\n````\nb", 1000) == "`````text\na\n````\nb\n`````"
    assert fenced(" \n\n", 1000) == ""


def test_foreign_markdown_cannot_leave_its_quotation() -> None:
    assert quoted("```\nopen\n<details>", 1000) == "> ```\n> open\n> <\u200bdetails>"


@given(text=HOSTILE, limit=st.integers(100, 400))
def test_containers_stay_within_their_limits(text: str, limit: int) -> None:
    assert size(fenced(text, limit)) <= limit
    quotation = quoted(text, limit)
    assert size(quotation) <= limit
    assert all(part.startswith("> ") for part in quotation.split("\n") if quotation)
    assert size(line(text, limit)) <= limit
    outside_code(fenced(text, limit))


@given(text=HOSTILE)
def test_escaping_does_not_change_the_visible_text(text: str) -> None:
    done = clean(text)
    assert visible(defuse(done)) == done


@given(blocks=st.lists(st.text(min_size=1, max_size=200), max_size=20), limit=st.integers(150, 1000))
def test_blocks_are_included_whole_or_counted(blocks: list[str], limit: int) -> None:
    done = joined(blocks, limit)
    assert size(done) <= limit
    assert done == "\n\n".join(blocks) or "omitted" in done


def test_numbers_and_durations_are_readable() -> None:
    assert [duration(seconds) for seconds in (0, 0.42, 12, 59.9, 72, 3600, 7384)] == [
        "0.0 s",
        "0.4 s",
        "12 s",
        "1 min 0 s",
        "1 min 12 s",
        "1 h 0 min",
        "2 h 3 min",
    ]
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 112, 123)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th", "123rd",
    ]  # fmt: skip


@pytest.mark.parametrize("host", ["169.254.169.254", "100.100.100.200", "fd00:ec2::254", "metadata.google.internal"])
@pytest.mark.parametrize("unlisted", [True, False])
def test_no_advice_allows_addresses_where_clouds_answer_with_credentials(host: str, unlisted: bool) -> None:
    (line,) = blocked_view(Refusals(refused=(Refusal(host=host, port=80, unlisted=unlisted),)))
    assert host in line
    assert "GIBIL_EGRESS_ALLOW" not in line
    assert "`allow:`" not in line
