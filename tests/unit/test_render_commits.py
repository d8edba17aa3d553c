"""What a report says about the commits of a run. The names of files and some messages come from the machine."""

from __future__ import annotations

import pytest

from gibil_bot.limits import APPLY_PATCH
from gibil_bot.model import CommitPlan, CommitProgress, Conclusion
from tests.unit.test_render import check_of, output, report

HEAD = CommitPlan(message="Tidy")
PATCH = CommitPlan(message="Tidy", to="patch")


def shown(plan: CommitPlan, progress: CommitProgress, conclusion: Conclusion, patch: str = "") -> dict[str, str]:
    return output(report(plan={"commit": plan}, run={"commit": progress}, conclusion=conclusion, patch=patch))


@pytest.mark.parametrize(
    ("plan", "progress", "conclusion", "title", "text"),
    [
        (
            HEAD,
            CommitProgress(phase="moved", branch="fast", url="https://github.com/o/r/commit/1", commits=1, files=2),
            Conclusion.SUCCESS,
            "1 commit pushed to fast",
            "Pushed 1 commit with 2 changed files to `fast`: https://github.com/o/r/commit/1",
        ),
        (
            HEAD,
            CommitProgress(phase="patch", patch=True, message="fast has other commits.", commits=1, files=2),
            Conclusion.ACTION_REQUIRED,
            "The changes were not pushed; they are a patch",
            "The changes were **not pushed**: fast has other commits. They are a patch: 1 commit with 2 changed files.",
        ),
        (
            HEAD,
            CommitProgress(phase="patch", message="The machine was lost.", commits=1, files=2),
            Conclusion.ACTION_REQUIRED,
            "The changes were not pushed",
            "The changes were **not pushed**: The machine was lost. There is no patch of them",
        ),
        (
            HEAD,
            CommitProgress(phase="patch", unchecked=True, message="GitHub is down."),
            Conclusion.ACTION_REQUIRED,
            "The changes were not pushed",
            "The changes were **not pushed**: GitHub is down. They are stored, but couldn't be checked.",
        ),
        (
            PATCH,
            CommitProgress(phase="patch", patch=True, commits=1, files=2),
            Conclusion.SUCCESS,
            "0 tasks passed",
            "The result is a patch: 1 commit with 2 changed files.",
        ),
        (
            HEAD,
            CommitProgress(phase="rejected", message="x is protected\ny is protected"),
            Conclusion.FAILURE,
            "The changes were rejected",
            "The changes were **rejected**, and nothing was pushed:\n- x is protected\n- y is protected",
        ),
        (HEAD, CommitProgress(phase="unchanged"), Conclusion.SUCCESS, "0 tasks passed", "The tasks changed nothing"),
    ],
)
def test_the_report_says_what_became_of_the_changes(
    plan: CommitPlan, progress: CommitProgress, conclusion: Conclusion, title: str, text: str
) -> None:
    found = shown(plan, progress, conclusion)
    assert title in found["title"]
    assert text in found["summary"]


def test_names_and_branches_from_the_machine_are_harmless_text() -> None:
    progress = CommitProgress(
        phase="moved",
        branch="fast",
        message="Only what was pushed to @org/team![](x) was collected.",
        dropped=("`@org/team`",),
        commits=1,
        files=2,
    )
    summary = shown(HEAD, progress, Conclusion.SUCCESS)["summary"]
    assert "@org/team!" not in summary
    assert "![](x)" not in summary
    assert "`` `@org/team` ``" in summary


def test_only_stored_changes_have_a_button() -> None:
    """Only the run's own process knows the values of its secrets, so unchecked changes of a run with secrets have none."""
    for progress, applies, secrets, expected in (
        (CommitProgress(phase="patch", patch=True), None, ("KEY",), [APPLY_PATCH]),
        (CommitProgress(phase="patch", patch=True), "another run", (), []),
        (CommitProgress(phase="patch", unchecked=True), None, (), [APPLY_PATCH]),
        (CommitProgress(phase="patch", unchecked=True), None, ("KEY",), []),
        (CommitProgress(phase="patch"), None, (), []),
        (CommitProgress(phase="moved", patch=True), None, (), []),
    ):
        made = report(
            plan={"commit": HEAD, "applies": applies, "secrets": secrets},
            run={"commit": progress},
            conclusion=Conclusion.ACTION_REQUIRED,
        )
        assert [action.identifier for action in check_of(made).actions] == expected
