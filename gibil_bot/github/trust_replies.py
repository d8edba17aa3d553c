"""Why code is untrusted, what a person can do then, and the check run that asks for an approval. Pure.

Clauses (`fork_gone` … `pusher_unknown`) end a sentence that begins with "this commit is untrusted, because". They keep forks
apart from branches: what helps is different.
"""

from __future__ import annotations

from datetime import datetime

from gibil_bot.github.commands import PREFIX
from gibil_bot.github.markdown import code, line
from gibil_bot.github.render import CHECK_PREFIX
from gibil_bot.model import CheckRunOutput, CheckRunUpdate, Conclusion, Notification, Person, Repository
from gibil_bot.views import timestamp

APPROVAL_CHECK = f"{CHECK_PREFIX}approval"
"""The name of the check run; `external_id` and the telling's key are `approval_key`."""


def fork_gone() -> str:
    return "its fork doesn't exist any more"


def fork_of_organization(fork: str) -> str:
    return f"it comes from the fork {code(fork)}, which belongs to an organization, whose members GitHub does not show here"


def fork_of_stranger(fork: str, owner: Person) -> str:
    return f"it comes from the fork {code(fork)}, and {code(owner.login)} has no write permission on this repository"


def fork_pusher_unknown(fork: str) -> str:
    return f"it comes from the fork {code(fork)}, and not every push to it since the pull request was opened is known"


def pusher_unknown(branch: str) -> str:
    return f"who pushed it to the branch {code(branch)} is not known"


def pusher_cannot_write(pusher: Person, place: str) -> str:
    return f"{_account(pusher)} pushed to {code(place)} {_without(pusher)}"


def author_cannot_write(author: Person) -> str:
    return f"the pull request was opened by {_account(author)} {_without(author)}"


def requester_cannot_write(requester: Person) -> str:
    return f"it was asked for by {_account(requester)} {_without(requester)}"


def _account(person: Person) -> str:
    return f"the App {code(person.login)}" if person.is_bot else code(person.login)


def _without(person: Person) -> str:
    return "and not by a person with write permission" if person.is_bot else "without write permission on this repository"


# --- answers ----------------------------------------------------------------------------------------------------------


def head_moved(number: int, sha: str) -> str:
    """The head is, or may be, another commit than when the request was written."""
    return (
        f"Nothing was started: the head of pull request {number} is now {code(sha)}, which may not have been the head "
        "when this was requested. Review that commit, then comment again."
    )


def rerun_moved(old_sha: str, number: int, sha: str) -> str:
    """Re-run was pressed on a commit that is not the head any more."""
    return (
        f"Nothing was run again: commit {code(old_sha[:7])} is not the head of pull request {number} any more, which is now "
        f"{code(sha)}. Review that commit, then comment {code(f'{PREFIX} retest')}."
    )


def rerun_lost(check_name: str, sha: str) -> str:
    """The store knows nothing of that check run, and its name does not say what to do."""
    which = code(check_name, 120) if check_name else "What was checked"
    return (
        f"{which} of commit {code(sha[:7])} cannot be run again, because the bot has no "
        f"record of its run: comment {code(f'{PREFIX} help')} to list what can be run."
    )


def needs_approval(sha: str, because: str) -> str:
    """Untrusted code waits for a writer's word."""
    return (
        f"Commit {code(sha[:7])} is untrusted, because {because}. To run it, without secrets, read it first and then comment "
        f"{code(approve_command(sha), 120)}; commands after that line work for this commit."
    )


def untrusted_branch_waits(sha: str, because: str) -> str:
    """A branch of the repository itself: a writer's command is enough."""
    return (
        f"Commit {code(sha[:7])} is untrusted, because {because}. It does not run by itself: a command of a person with write "
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


def approval_of_another(given: str, sha: str) -> str:
    """The commit that was named is not the head."""
    return (
        f"{code(given, 80)} was not approved: it is not the head of this pull request, which is now {code(sha)}. Read that "
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
    """The operator lets nothing untrusted onto these machines."""
    return (
        f"Nothing was approved: no untrusted code runs on the {code(provider)} machines of this bot, approved or not. Its "
        "operator can set GIBIL_LOCAL_UNTRUSTED=approve; or a person with write permission pushes the commits to a branch of "
        "this repository."
    )


def approved(sha: str, started: int) -> str:
    begun = "The waiting workflows were started." if started else f"Commands work for it now, such as {code(f'{PREFIX} test')}."
    return f"Commit {code(sha[:7])} may run, without secrets, until the next push. {begun}"


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
    """Once per pull request and commit: `action_required` until it is approved, then the same check run as `success`.

    `text`: `needs_approval` or `untrusted_branch_waits`."""
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
    """A failure, because a merge queue takes `neutral` and `skipped` for tested."""
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
