"""Renders a run's check run and comment.

Pure: RunReport → Notification. Limits are GitHub's, in bytes, minus a reserve: https://docs.github.com/en/rest/checks/runs
(65,535 for a summary and a text); comments have at most 65,536 characters.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote

from gibil_bot.github.markdown import clean, code, fenced, joined, line, quoted, sentence, size
from gibil_bot.github.render_agents import agent_details, agent_lines, agent_title
from gibil_bot.humanize import count, duration, ordinal
from gibil_bot.limits import APPLY_PATCH
from gibil_bot.model import (
    CheckRunAction,
    CheckRunOutput,
    CheckRunUpdate,
    CommentUpdate,
    Conclusion,
    Notification,
    Refusals,
    Run,
    RunState,
    TaskResult,
    TaskStatus,
)
from gibil_bot.views import (
    blocked_view,
    failed_preparation,
    none_could_run,
    not_run,
    preparation_name,
    quotes_view,
    timestamp,
)

CHECK_PREFIX = "gibil / "
"""Prefix of the names of our check runs, followed by the workflow's name."""
OUTPUT_LIMIT = 64_000
COMMENT_LIMIT = 64_000
TITLE_LIMIT = 255
TABLE_LIMIT = 20_000
TAIL_LIMIT = 16_000
SUMMARIES_LIMIT = 24_000
SUGGESTION_LIMIT = 6_000
PATCH_LIMIT = 30_000
"""A larger patch isn't shown: a part of one can't be applied."""
DROPPED_SHOWN = 10
QUOTES_SHOWN = 5

_ICONS = {
    TaskStatus.PENDING: "▫️",
    TaskStatus.RUNNING: "▶️",
    TaskStatus.SUCCESS: "✅",
    TaskStatus.FAILURE: "❌",
    TaskStatus.SKIPPED: "⏭️",
    TaskStatus.TIMED_OUT: "⏱️",
    TaskStatus.CANCELLED: "🚫",
}
_HEADLINES = {
    Conclusion.SUCCESS: "✅",
    Conclusion.FAILURE: "❌",
    Conclusion.NEUTRAL: "▫️",
    Conclusion.CANCELLED: "🚫",
    Conclusion.SKIPPED: "⏭️",
    Conclusion.TIMED_OUT: "⏱️",
    Conclusion.ACTION_REQUIRED: "✋",
}
_APPLY = CheckRunAction(label="Apply patch", description="Commit the changes of this run", identifier=APPLY_PATCH)
_PROGRAMS = {"lint": "linters", "format": "formatters"}
_DONE = (TaskStatus.SUCCESS, TaskStatus.FAILURE, TaskStatus.SKIPPED, TaskStatus.TIMED_OUT, TaskStatus.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The current state of a run. Its output is already redacted."""

    run: Run
    results: tuple[TaskResult, ...] = ()
    position: int | None = None
    """Position in the queue, from 1."""
    live_tail: str = ""
    """The end of the running task's output."""
    phase: str = ""
    """The current activity: "waiting for a machine", "forging a machine", "cloning", "running" …"""
    created_in_s: float | None = None
    """How long creating the machine took."""
    conclusion: Conclusion | None = None
    """None: the run continues, unless `run` itself has a conclusion."""
    public_url: str = ""
    patch: str = ""
    """The changes of the run, if they are stored as a patch."""
    now: datetime


def check_run(report: RunReport) -> Notification:
    """Return the complete check run of a run: queued, in progress or completed."""
    run, conclusion = report.run, _conclusion(report)
    return Notification(
        key=f"check:{run.id}",
        installation_id=run.source.installation_id,
        repository=run.source.repository.full_name,
        update=CheckRunUpdate(
            name=check_name(run.plan.workflow),
            head_sha=run.source.sha,
            external_id=run.id,
            status="completed" if conclusion else "in_progress" if run.state is RunState.RUNNING else "queued",
            output=_output(report, conclusion),
            started_at=timestamp(run.started_at),
            completed_at=timestamp(run.finished_at or report.now) if conclusion else None,
            conclusion=conclusion,
            details_url=details_url(report) or None,
            actions=(_APPLY,) if conclusion is not None and _can_be_applied(run) else (),
        ),
    )


def check_name(workflow: str) -> str:
    """Return the name that is shown and that branch protection refers to."""
    return f"{CHECK_PREFIX}{line(workflow, 200)}"


def comment(report: RunReport) -> Notification | None:
    """Return the comment for a pull request and workflow, depending on the workflow's `comment:`; None: no comment.

    With `on-failure`, a successful or cancelled run only updates the comment of an earlier failure (`only_if_exists`). A
    superseded run has no comment, because the comment now belongs to its successor.
    """
    run, conclusion = report.run, _conclusion(report)
    wanted = run.plan.comment
    if wanted == "never" or (conclusion is Conclusion.CANCELLED and (run.cancel_reason or "").startswith("superseded")):
        return None
    failed = conclusion in (Conclusion.FAILURE, Conclusion.TIMED_OUT)
    if wanted == "on-failure" and conclusion is None:
        return None
    identity = f"{run.source.repository.id}:{run.source.pull_request.number}:{quote(clean(run.plan.workflow)[:200], safe='')}"
    marker = f"<!-- gibil:{identity} -->"
    return Notification(
        key=f"comment:{identity}",
        installation_id=run.source.installation_id,
        repository=run.source.repository.full_name,
        update=CommentUpdate(
            number=run.source.pull_request.number,
            marker=marker,
            body=joined([marker, *_comment_blocks(report, conclusion)], COMMENT_LIMIT),
            only_if_exists=wanted == "on-failure" and not failed,
        ),
    )


def details_url(report: RunReport) -> str:
    """Return the URL of the run at the bot; empty if the operator configured no public URL."""
    return f"{report.public_url.rstrip('/')}/runs/{report.run.id}" if report.public_url else ""


# --- the parts -------------------------------------------------------------------------------------------------------


def _conclusion(report: RunReport) -> Conclusion | None:
    return report.conclusion or report.run.conclusion


def _output(report: RunReport, conclusion: Conclusion | None) -> CheckRunOutput:
    blocks = [*agent_details(_tasks(report)), *_patch(report), *_tails(report, TAIL_LIMIT), *_summaries(report)]
    text = joined(blocks, OUTPUT_LIMIT) if conclusion is not None else ""
    return CheckRunOutput(
        title=line(_title(report, conclusion), TITLE_LIMIT) or "Working",
        summary=joined(
            [
                _headline(report),
                *_notes(report),
                *_commits(report),
                *agent_lines(_tasks(report)),
                _table(report),
                *_advice(report, conclusion),
                _live(report, conclusion),
                _next_steps(report, conclusion),
            ],
            OUTPUT_LIMIT,
        ),
        text=text or None,
    )


def _comment_blocks(report: RunReport, conclusion: Conclusion | None) -> list[str]:
    icon = _HEADLINES[conclusion] if conclusion else "⏳"
    title = sentence(_title(report, conclusion), TITLE_LIMIT)
    link = f"[Details]({url})" if (url := details_url(report)) else ""
    return [
        f"### {icon} {code(report.run.plan.workflow)}: {title}",
        _headline(report),
        *_notes(report),
        *_commits(report),
        *agent_lines(_tasks(report)),
        _table(report),
        *_advice(report, conclusion),
        " ".join(part for part in (_next_steps(report, conclusion), link) if part),
        *(agent_details(_tasks(report)) if conclusion is not None else ()),
        *_tails(report, TAIL_LIMIT // 2),
        *_summaries(report),
    ]


def _title(report: RunReport, conclusion: Conclusion | None) -> str:
    run = report.run
    if conclusion is None:
        return _title_so_far(report)
    tasks = _tasks(report)
    took = f" in {duration((end - run.started_at).total_seconds())}" if (end := run.finished_at) and run.started_at else ""
    bad = [(name, result) for name, result in tasks if result is not None and result.status.has_failed]
    match conclusion:
        case Conclusion.SUCCESS:
            passed = sum(1 for _, result in tasks if result is not None and result.status is TaskStatus.SUCCESS)
            return f"{count(passed, 'task')} passed{took}{_commits_title(run)}{agent_title(tasks)}"
        case Conclusion.CANCELLED:
            reason = run.cancel_reason or "cancelled"
            return reason[:1].upper() + reason[1:]
        case Conclusion.ACTION_REQUIRED if run.commit is not None:
            return "The changes were not pushed" + ("; they are a patch" if run.commit.patch else "")
        case Conclusion.ACTION_REQUIRED:
            return "Waiting for approval"
        case Conclusion.NEUTRAL:
            reasons = [result.detail for _, result in tasks if result is not None and result.exit_status == 0 and result.detail]
            return f"Nothing to do: {line(reasons[0], 200)}" if reasons else "Nothing to do"
        case Conclusion.TIMED_OUT if not bad:
            return f"Ran out of time{took}"
        case Conclusion.FAILURE if run.commit is not None and run.commit.phase == "rejected":
            return f"The changes were rejected: {run.commit.message}"
        case Conclusion.FAILURE if not bad:
            return "gibil itself failed, not your code" + (f": {run.note}" if run.note else "")
        case Conclusion.FAILURE | Conclusion.TIMED_OUT:
            name, result = bad[0]
            if (failed := failed_preparation(run.plan, report.results)) is not None:
                name = preparation_name(run.plan, failed)
                act = "timed out" if result is not None and result.status is TaskStatus.TIMED_OUT else "failed"
                missing = not_run(run.plan, report.results)
                so = f"; {missing} didn't run" if missing else ""
                return f"The preparation {act} ({line(name, 120)}){took}{so}"
            act = "timed out" if result is not None and result.status is TaskStatus.TIMED_OUT else "failed"
            others = f" and {count(len(bad) - 1, 'other task')}" if len(bad) > 1 else ""
            return f"{line(name, 120)}{others} {act}{took}"
        case _:
            return conclusion.value.replace("_", " ").capitalize()


def _title_so_far(report: RunReport) -> str:
    if report.run.state is not RunState.RUNNING:
        where = f"{ordinal(report.position)} in the queue" if report.position else ""
        return ": ".join(part for part in ("Queued", where or report.phase) if part)
    tasks = _tasks(report)
    running = [name for name, result in tasks if result is not None and result.status is TaskStatus.RUNNING]
    done = sum(1 for _, result in tasks if result is not None and result.status in _DONE)
    if not running and not done:
        return (report.phase or "starting").capitalize()
    now = f": {line(running[0], 120)}" if running else f": {report.phase}" if report.phase else ""
    return f"{done} of {count(len(tasks), 'task')} done{now}"


def _headline(report: RunReport) -> str:
    source = report.run.source
    parts = [f"Commit {code(source.sha[:7])} of {code(source.pull_request.head_ref)}", f"requested by {code(source.actor)}"]
    if report.created_in_s is not None:
        parts.append(f"machine forged in {duration(report.created_in_s)}")
    if report.run.machine_attempt > 1:
        parts.append(f"machine number {report.run.machine_attempt}")
    return ", ".join(parts) + "."


def _notes(report: RunReport) -> list[str]:
    """Return the run's own notes, and those of its plan."""
    notes = [report.run.note] if report.run.note else []
    quoted_notes = [f"> ℹ️ {sentence(note)}" for note in (*notes, *report.run.plan.notes)[:20]]
    return [*quoted_notes, *(f"> ⛔ {code(line, 4000)}" for line in blocked_view(_refusals(report)))]


def _can_be_applied(run: Run) -> bool:
    progress = run.commit
    return progress is not None and progress.can_be_applied(run.plan) and run.plan.applies is None


def _commits_title(run: Run) -> str:
    progress = run.commit
    if progress is None or progress.phase != "moved":
        return ""
    return f", {count(progress.commits, 'commit')} pushed to {progress.branch}"


def _commits(report: RunReport) -> list[str]:
    """Return what became of the run's changes, and what was left out. The names of files come from the machine."""
    progress, plan = report.run.commit, report.run.plan.commit
    if progress is None or plan is None:
        return []
    what = f"{count(progress.commits, 'commit')} with {count(progress.files, 'changed file')}"
    reason = f": {sentence(progress.message.rstrip('.'))}" if progress.message else ""
    match progress.phase:
        case "moved":
            link = f": {url}" if (url := progress.url) else ""
            blocks = [f"Pushed {what} to {code(progress.branch, 200)}{link}"]
            blocks += [f"> ℹ️ {sentence(progress.message)}"] if progress.message else []
        case "patch" if progress.unchecked:
            blocks = [f"The changes were **not pushed**{reason}. They are stored, but couldn't be checked."]
            if report.run.plan.applies is not None:
                blocks.append("**Apply patch** can be pressed again on the check that has the button.")
            elif not _can_be_applied(report.run):
                blocks.append("They can't be applied without the run's secrets; run the workflow again.")
        case "patch" if not progress.patch:
            blocks = [f"The changes were **not pushed**{reason}. There is no patch of them: they are too large, or were lost."]
        case "patch" if plan.to == "patch":
            blocks = [f"The result is a patch: {what}{reason}."]
        case "patch":
            blocks = [f"The changes were **not pushed**{reason}. They are a patch: {what}."]
        case "rejected":
            problems = [sentence(problem) for problem in progress.message.splitlines()]
            text = f" {problems[0]}" if len(problems) == 1 else "\n" + "\n".join(f"- {problem}" for problem in problems)
            blocks = [f"The changes were **rejected**, and nothing was pushed:{text}"]
        case "unchanged":
            blocks = ["The tasks changed nothing, so there is no commit."]
        case _:
            return []
    if progress.dropped:
        shown = ", ".join(code(path, 120) for path in progress.dropped[:DROPPED_SHOWN])
        more = len(progress.dropped) - DROPPED_SHOWN
        blocks.append(f"Left out, because `paths` doesn't include them: {shown}{f' and {more} more' if more > 0 else ''}.")
    if _can_be_applied(report.run):
        blocks.append("A user with write permission can press **Apply patch** on the check to commit it.")
    if progress.phase == "patch" and progress.patch and not _patch(report):
        blocks.append("The patch is too large to be shown here." if report.patch else "The patch can't be read at present.")
    return blocks


def _patch(report: RunReport) -> list[str]:
    """Return the patch with the command that applies it."""
    progress = report.run.commit
    if progress is None or progress.phase != "patch" or not report.patch or size(report.patch) > PATCH_LIMIT:
        return []
    return [f"#### Patch\n\nSave it as a file, and apply it with `git am FILE`:\n\n{fenced(report.patch, PATCH_LIMIT + 1000)}"]


def _refusals(report: RunReport) -> Refusals:
    """Return the refusals of all tasks, each endpoint once."""
    results = [result.refusals for _, result in _tasks(report) if result is not None]
    found = dict.fromkeys(refusal for refusals in results for refusal in refusals.refused)
    return Refusals(refused=tuple(found), more=any(refusals.more for refusals in results))


def _tasks(report: RunReport) -> list[tuple[str, TaskResult | None]]:
    """Return every planned task with its result on the newest machine that has one."""
    newest: dict[int, TaskResult] = {}
    for result in report.results:
        previous = newest.get(result.index)
        if previous is None or result.machine_attempt >= previous.machine_attempt:
            newest[result.index] = result
    return [(task.name, newest.get(index)) for index, task in enumerate(report.run.plan.tasks)]


def _table(report: RunReport) -> str:
    rows = ["| | task | took | |", "|---|---|---:|---|"]
    room = TABLE_LIMIT
    tasks = _tasks(report)
    for index, (name, result) in enumerate(tasks):
        row = _row(report, name, result)
        room -= size(row) + 1
        if room < 0:
            rows.append(f"| … | {count(len(tasks) - index, 'more task')} | | |")
            break
        rows.append(row)
    return "\n".join(rows) if tasks else ""


def _row(report: RunReport, name: str, result: TaskResult | None) -> str:
    if result is None:
        return f"| {_ICONS[TaskStatus.PENDING]} | {code(name, in_table=True)} | | |"
    seconds = result.duration_s
    if seconds is None and result.status is TaskStatus.RUNNING and result.started_at is not None:
        seconds = (report.now - result.started_at).total_seconds()
    took = duration(seconds) if seconds is not None else ""
    detail = code(result.detail, 120, in_table=True) if result.detail.strip() else ""
    if not detail and result.exit_status:
        detail = f"exit status {result.exit_status}"
    return f"| {_ICONS[result.status]} | {code(name, in_table=True)} | {took} | {detail} |"


def _advice(report: RunReport, conclusion: Conclusion | None) -> list[str]:
    """Return what people need if the project couldn't be prepared, or nothing was detected: its own CI, and a `.gibil.yml`."""
    plan = report.run.plan
    detected = plan.detected
    if conclusion not in (Conclusion.FAILURE, Conclusion.TIMED_OUT, Conclusion.NEUTRAL):
        return []
    blocks = []
    failed = failed_preparation(plan, report.results)
    prepared_badly = failed is not None
    if failed is not None and plan.tasks[failed.index].kind != "prepare":
        lacks = preparation_name(plan, failed)
        blocks.append(f"The **preparation** failed: the checkout lacks {lacks}, so this says nothing about the code.")
    elif prepared_badly:
        missing = not_run(plan, report.results)
        blocks.append(
            "The **preparation** failed: what the project needs could not be installed."
            + (f" {missing.capitalize()} didn't run, so this says nothing about the code." if missing else "")
        )
    none_ran = not prepared_badly and none_could_run(plan, report.results)
    if detected is None or not (prepared_badly or none_ran or detected.problem):
        return blocks
    if none_ran and not detected.problem:
        blocks.append(
            f"A program that the {_PROGRAMS.get(detected.purpose, 'tests')} need doesn't exist on the machine, "
            "so this says nothing about the code."
        )
    if detected.problem and not prepared_badly and conclusion is not Conclusion.NEUTRAL:
        blocks.append(sentence(detected.problem[:1].upper() + detected.problem[1:] + "."))
    quotes = [f"{code(command, 300)} ({code(place, 200)})" for command, place in quotes_view(detected)[:QUOTES_SHOWN]]
    if len(quotes) == 1:
        blocks.append(f"Its CI runs {quotes[0]}.")
    elif quotes:
        blocks.append("\n".join(["Its CI runs:", *(f"- {each}" for each in quotes)]))
    if detected.suggestion and (shown := fenced(detected.suggestion, SUGGESTION_LIMIT)):
        summary = "A <code>.gibil.yml</code> to start from: correct it, and commit it to the base branch"
        blocks.append(f"<details><summary>{summary}</summary>\n\n{shown}\n\n</details>")
    return blocks


def _live(report: RunReport, conclusion: Conclusion | None) -> str:
    return fenced(report.live_tail, TAIL_LIMIT) if conclusion is None else ""


def _tails(report: RunReport, limit: int) -> list[str]:
    """Return the end of the output of each failed task, as separate blocks with headings."""
    bad = [(name, result) for name, result in _tasks(report) if result is not None and result.status.has_failed]
    share = max(1000, limit * 2 // max(len(bad), 2))
    blocks = []
    for name, result in bad:
        if result is not None and (tail := fenced(result.tail, share)):
            blocks.append(f"#### {_ICONS[result.status]} {code(name)}\n\n{tail}")
    return blocks


def _summaries(report: RunReport) -> list[str]:
    """Return what tasks wrote to GITHUB_STEP_SUMMARY."""
    written = [(name, result) for name, result in _tasks(report) if result is not None and result.summary.strip()]
    share = max(1000, SUMMARIES_LIMIT // max(len(written), 1))
    return [
        f"#### {code(name)}\n\n{summary}"
        for name, result in written
        if result is not None and (summary := quoted(result.summary, share))
    ]


def _next_steps(report: RunReport, conclusion: Conclusion | None) -> str:
    run = report.run
    again = f"comment {code(f'/gibil retest {run.plan.workflow}', 200)} or press **Re-run** on the check"
    match conclusion:
        case None:
            return f"To stop it, comment {code(f'/gibil cancel {run.plan.workflow}', 200)}."
        case Conclusion.SUCCESS | Conclusion.NEUTRAL | Conclusion.SKIPPED:
            return ""
        case _:
            return f"To run it again, {again}."
