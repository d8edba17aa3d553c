"""What a workflow's `commit:` would have committed, for runs of local checkouts, which push nothing."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from gibil_bot.errors import GibilError
from gibil_bot.github.markdown import line
from gibil_bot.humanize import count
from gibil_bot.model import CommitPlan, Conclusion, Run
from gibil_bot.runs.run_commits import PATCH

KEPT = 50
"""How many patches are stored; older ones are deleted."""
_SHOWN = 20
_NOTHING_TO_DO = (Conclusion.NEUTRAL, Conclusion.SKIPPED)


def preview(plan: CommitPlan, run: Run, patch: Path | None, *, checkout: str, dirty: bool) -> dict[str, object]:
    """Return the result as JSON. `plan`: as the workflow has it; `checkout`: a path for a command line."""
    progress, apply = run.commit, None
    if patch is not None:
        git = "git" if checkout == "." else f"git -C {shlex.quote(checkout)}"
        # The patch is relative to the uncommitted changes, and `git am` wants none.
        apply = f"{git} {'apply' if dirty else 'am'} {shlex.quote(str(patch))}"
    return {
        "outcome": progress.phase if progress is not None else "skipped" if run.conclusion in _NOTHING_TO_DO else "failed",
        "to": plan.to,
        "branch": plan.branch,
        "pull_request": plan.pull_request.title if plan.pull_request is not None else None,
        "commits": progress.commits if progress is not None else 0,
        "files": progress.files if progress is not None else 0,
        "bytes": progress.bytes if progress is not None else 0,
        "left_out": list(progress.dropped) if progress is not None else [],
        "problems": progress.message.splitlines() if progress is not None and progress.phase == "rejected" else [],
        "patch": str(patch) if patch is not None else None,
        "apply": apply,
    }


def lines(plan: CommitPlan, run: Run, view: dict[str, object]) -> Iterator[str]:
    """Yield the result for people."""
    progress = run.commit
    if progress is None:
        yield "commit: nothing would be committed, because " + (
            "no task had anything to do" if view["outcome"] == "skipped" else "not all tasks succeeded"
        )
        return
    match progress.phase:
        case "patch":
            what = f"{count(progress.commits, 'commit')} with {count(progress.files, 'changed file')}"
            yield f"commit: {what} {_target(plan)}"
        case "rejected":
            yield "commit: the changes would be rejected:"
            yield from (f"  {line(problem, 1000)}" for problem in progress.message.splitlines())
        case _:
            yield (
                "commit: the tasks changed nothing that `paths` includes"
                if progress.dropped
                else "commit: the tasks changed nothing"
            )
    if progress.dropped:
        more = len(progress.dropped) - _SHOWN
        shown = ", ".join(line(path, 120) for path in progress.dropped[:_SHOWN])
        yield f"  left out, because `paths` doesn't include them: {shown}{f' and {more} more' if more > 0 else ''}"
    if view["apply"]:
        yield f"  apply them here: {view['apply']}"
    elif progress.phase == "patch":
        yield "  the patch is too large to be stored"


def _target(plan: CommitPlan) -> str:
    match plan.to:
        case "branch":
            request = f", with the pull request {line(plan.pull_request.title)!r}" if plan.pull_request is not None else ""
            return f"would be pushed to the branch {plan.branch}{request}"
        case "patch":
            return "would be shown as a patch"
    return "would be pushed to the pull request's branch"


def keep(run: Run, logs: Path, data_dir: Path) -> Path | None:
    """Copy the run's patch to the data directory, and delete the oldest ones there; None if there is no patch."""
    if run.commit is None or run.commit.phase != "patch":
        return None
    try:
        content = (logs / run.id / PATCH).read_bytes()
    except FileNotFoundError:
        return None
    folder = data_dir / "patches"
    kept = folder / f"{run.id}.patch"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        raise GibilError(f"the patch can't be written to {kept}: {error.strerror}", code="OUTPUT") from error
    with contextlib.suppress(OSError):  # another process may delete the same ones
        for old in sorted(folder.glob("*.patch"), key=lambda each: each.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    return kept
