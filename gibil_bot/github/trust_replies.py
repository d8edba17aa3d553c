"""Why code is untrusted, what a user can do about it, and the check run that asks for an approval. Pure.

Clauses (`fork_gone` … `pusher_unknown`) complete a sentence that begins with "this commit is untrusted, because". They
distinguish forks from branches, because the remedies differ.
"""

from __future__ import annotations

from datetime import datetime

from gibil_bot.github.commands import PREFIX
from gibil_bot.github.markdown import code, line
from gibil_bot.github.render import CHECK_PREFIX
from gibil_bot.model import CheckRunOutput, CheckRunUpdate, Conclusion, Notification, Person, Repository
from gibil_bot.views import timestamp

APPROVAL_CHECK = f"{CHECK_PREFIX}approval"
"""The name of the check run; `external_id` and the notification's key are `approval_key`."""


def fork_gone() -> str:
    return "its fork was deleted"


def fork_of_organization(fork: str) -> str:
    return f"it comes from the fork {code(fork)}, which belongs to an organization, whose members GitHub doesn't show"


def fork_of_stranger(fork: str, owner: Person) -> str:
    return f"it comes from the fork {code(fork)}, and {code(owner.login)} has no write permission on this repository"


def fork_pusher_unknown(fork: str) -> str:
    return f"it comes from the fork {code(fork)}, and not every push to it since the pull request was opened is known"


def pusher_unknown(branch: str) -> str:
    return f"it is unknown who pushed it to the branch {code(branch)}"


def agent_wrote() -> str:
    return "an agent wrote its newest commits, which counts as read once a user with write permission pushes a commit on top"


def pusher_cannot_write(pusher: Person, pushed_to: str) -> str:
    return f"{_account(pusher)} pushed to {code(pushed_to)} {_without(pusher)}"


def author_cannot_write(author: Person) -> str:
    return f"the pull request was opened by {_account(author)} {_without(author)}"


def requester_cannot_write(requester: Person) -> str:
    return f"it was requested by {_account(requester)} {_without(requester)}"


def _account(person: Person) -> str:
    return f"the App {code(person.login)}" if person.is_bot else code(person.login)


def _without(person: Person) -> str:
    return "and not by a user with write permission" if person.is_bot else "without write permission on this repository"


# --- answers ----------------------------------------------------------------------------------------------------------


def head_moved(number: int, sha: str) -> str:
    """The head is, or may be, another commit than when the request was written."""
    return (
        f"Nothing was started: the head of pull request {number} is now {code(sha)}, which may not have been the head "
        "when this was requested. Review that commit, then comment again."
    )


def rerun_moved(old_sha: str, number: int, sha: str) -> str:
    """Re-run was requested for a commit that is no longer the head."""
    return (
        f"Nothing was run again: commit {code(old_sha[:7])} is no longer the head of pull request {number}, which is now "
        f"{code(sha)}. Review that commit, then comment {code(f'{PREFIX} retest')}."
    )


def rerun_lost(check_name: str, sha: str) -> str:
    """The store has no record of that check run, and its name doesn't identify a workflow."""
    which = code(check_name, 120) if check_name else "The check"
    return (
        f"{which} of commit {code(sha[:7])} can't be run again, because the bot has no "
        f"record of its run: comment {code(f'{PREFIX} help')} to list what can be run."
    )


def needs_approval(sha: str, because: str) -> str:
    """Untrusted code waits for a writer's approval."""
    return (
        f"Commit {code(sha[:7])} is untrusted, because {because}. To run it, without secrets, read it first and then comment "
        f"{code(approve_command(sha), 120)}; commands after that line work for this commit."
    )


def untrusted_branch_waits(sha: str, because: str) -> str:
    """A branch of the repository itself: a command of a writer is enough."""
    return (
        f"Commit {code(sha[:7])} is untrusted, because {because}. It doesn't run automatically: a command of a user with write "
        f"permission, such as {code(f'{PREFIX} test')}, runs it without secrets."
    )


def approve_command(sha: str) -> str:
    return f"{PREFIX} approve {sha}"


def approval_needs_sha(sha: str) -> str:
    """`/gibil approve` without a usable commit."""
    return (
        f"An approval names one commit by at least 7 digits of its SHA. The head of this pull request is {code(sha)}: read it, "
        f"then comment {code(approve_command(sha), 120)}."
    )


def approval_of_another(named: str, sha: str) -> str:
    """The named commit isn't the head."""
    return (
        f"{code(named, 80)} was not approved: it is not the head of this pull request, which is now {code(sha)}. Read that "
        f"commit, then comment {code(approve_command(sha), 120)}."
    )


def approval_too_late(sha: str) -> str:
    """The named commit is the head again, but the branch was pushed to since the approval was written."""
    return (
        f"{code(sha[:7])} was not approved: the branch was pushed to after that comment was written. The head is now "
        f"{code(sha)}: read it, then comment {code(approve_command(sha), 120)}."
    )


def approval_not_needed(sha: str) -> str:
    return f"Commit {code(sha[:7])} needs no approval here: {code(f'{PREFIX} help')} lists what can be run."


def approval_refused_here(provider: str) -> str:
    """The operator doesn't allow untrusted code on these machines."""
    return (
        f"Nothing was approved: this bot doesn't run untrusted code on its {code(provider)} machines, approved or not. Its "
        "operator can set GIBIL_LOCAL_UNTRUSTED=approve; or a user with write permission can push the commits to a branch of "
        "this repository."
    )


def approved(sha: str, started: int) -> str:
    next_step = (
        "The waiting workflows were started." if started else f"Commands such as {code(f'{PREFIX} test')} now work for it."
    )
    return f"Commit {code(sha[:7])} may run, without secrets, until the next push. {next_step}"


def merge_queue_unsupported(workflow: str) -> str:
    return (
        f"gibil runs {code(workflow)} on pull requests and does not test the commits of merge queues yet. Remove this check "
        "from the required checks of the merge queue (Settings, Rules), or merge without the queue. The check on the "
        "pull request itself works as before."
    )


# --- check runs -------------------------------------------------------------------------------------------------------


def approval_key(repository: Repository, number: int, sha: str) -> str:
    return f"approval:{repository.id}:{number}:{sha}"


def approval_check(
    installation_id: int,
    repository: Repository,
    number: int,
    sha: str,
    *,
    text: str,
    now: datetime,
    approved_by: str | None = None,
) -> Notification:
    """Return the approval check, one per pull request and commit: `action_required`, and after the approval `success`.

    `text`: `needs_approval` or `untrusted_branch_waits`.
    """
    if approved_by is None:
        conclusion, title = Conclusion.ACTION_REQUIRED, f"Commit {sha[:7]} needs an approval to run"
        summary = f"{text}\n\n```\n{approve_command(sha)}\n```"
    else:
        conclusion, title = Conclusion.SUCCESS, f"Approved by {line(approved_by, 60)} for commit {sha[:7]}"
        summary = (
            f"{code(approved_by)} approved {code(sha)}: it may run, without secrets. The approval ends with the next push."
        )
    return _completed(
        approval_key(repository, number, sha), installation_id, repository, APPROVAL_CHECK, sha, conclusion, title, summary, now
    )


def merge_queue_check(
    installation_id: int, repository: Repository, sha: str, name: str, workflow: str, *, now: datetime
) -> Notification:
    """Return a failed check: merge queues count `neutral` and `skipped` as passed."""
    title = "gibil does not test merge queues yet"
    key = f"merge-group:{repository.id}:{sha}:{line(workflow, 200)}"
    summary = merge_queue_unsupported(workflow)
    return _completed(key, installation_id, repository, name, sha, Conclusion.FAILURE, title, summary, now)


def _completed(
    key: str,
    installation_id: int,
    repository: Repository,
    name: str,
    sha: str,
    conclusion: Conclusion,
    title: str,
    summary: str,
    now: datetime,
) -> Notification:
    return Notification(
        key=key,
        installation_id=installation_id,
        repository=repository.full_name,
        update=CheckRunUpdate(
            name=name,
            head_sha=sha,
            external_id=key,
            status="completed",
            conclusion=conclusion,
            completed_at=timestamp(now),
            output=CheckRunOutput(title=title, summary=summary),
        ),
    )
