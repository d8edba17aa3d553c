"""Replies to users: reactions, comments, and messages that say why a command was rejected and what to do next.

Pure. Every message is one line of Markdown. Users' names and words in it are inline code, so that they mention no one; `reply`
also defuses the whole text, because a message may come from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from gibil_bot.github.commands import PREFIX
from gibil_bot.github.markdown import code, defuse, fenced, line, size
from gibil_bot.humanize import count
from gibil_bot.model import CommentCreated, CommentUpdate, Notification, ReactionUpdate, Repository

REPLY_LIMIT = 60_000

Reaction = Literal["+1", "-1", "laugh", "confused", "heart", "hooray", "rocket", "eyes"]
"""https://docs.github.com/en/rest/reactions/reactions#about-reactions"""


@dataclass(frozen=True, slots=True, kw_only=True)
class HelpEntry:
    """A workflow that has a command."""

    word: str
    title: str
    inputs: tuple[str, ...] = ()
    """As in a command: `browser=firefox` with the default, `version=…` for a required input."""
    source: str = ""
    """The file that defines it: `workflows/test.yml`, `.gibil/workflows/docs.yml@main`."""


def reply(event: CommentCreated, key: str, text: str) -> Notification:
    """Return a comment in the conversation, once per `key`."""
    marker = f"<!-- gibil-reply:{line(key, 100).replace('-->', '')} -->"
    shown = defuse(text)
    if size(shown) > REPLY_LIMIT:
        shown = fenced(text, REPLY_LIMIT)
    return Notification(
        key=f"reply:{key}",
        installation_id=event.installation_id,
        repository=event.repository.full_name,
        update=CommentUpdate(number=event.number, marker=marker, body=f"{marker}\n{shown}"),
    )


def reaction(event: CommentCreated, content: Reaction) -> Notification:
    """Return a reaction to the comment: `eyes` when it was read, `confused` when a command was rejected."""
    return Notification(
        key=f"reaction:{event.comment_id}:{content}",
        installation_id=event.installation_id,
        repository=event.repository.full_name,
        update=ReactionUpdate(comment_id=event.comment_id, is_review_comment=event.is_review_comment, content=content),
    )


def reactions(event: CommentCreated, content: Reaction) -> list[Notification]:
    """Return the reaction, if the event supports reactions: reviews have none in the REST API (reference above)."""
    return [] if event.is_review else [reaction(event, content)]


def help_text(entries: Sequence[HelpEntry], problems: Sequence[str] = ()) -> str:
    """List all commands, the workflows' first. `problems`: messages about unusable workflow files, one line each."""
    lines = ["**Commands**, one per line:", ""]
    for entry in entries[:50]:
        words = " ".join((PREFIX, entry.word, *entry.inputs))
        source = f" ({code(entry.source, 120)})" if entry.source else ""
        lines.append(f"- {code(words, 300)}: {line(entry.title, 200)}{source}")
    if len(entries) > 50:
        lines.append(f"- … and {len(entries) - 50} more")
    lines += [
        f"- {code(f'{PREFIX} retest')}: run the workflows that did not succeed again, or the named one",
        f"- {code(f'{PREFIX} cancel')}: stop all queued and running workflows, or the named one",
        f"- {code(f'{PREFIX} approve SHA')}: allow one commit of an untrusted pull request to run, without secrets",
        f"- {code(f'{PREFIX} help')}: this list",
    ]
    if problems:
        lines += ["", "Workflow files that can't be used:", *(f"- {code(problem, 300)}" for problem in problems[:20])]
    return "\n".join(lines)


# --- rejections: the reason, and what to do next ----------------------------------------------------------------------


def permission_refused(login: str, permission: str) -> str:
    """The author of the comment may not use commands here."""
    has = "no permission" if permission == "none" else f"{line(permission, 20)} permission"
    return f"{code(login)} has {has} on this repository, but commands need write permission. Ask a user who has it to comment."


def rate_limited(login: str, per_hour: int, wait_s: float) -> str:
    """A user has reached the limit of commands. Sent once an hour."""
    return (
        f"{code(login)} has reached the limit of {count(per_hour, 'command')} an hour in this repository: try again in "
        f"{count(max(1, ceil(wait_s / 60)), 'minute')}. Further commands above the limit get no reply. The "
        "operator of this bot sets the limit with GIBIL_COMMANDS_PER_HOUR."
    )


def loop_stopped(workflow: str, per_hour: int) -> str:
    """Commits of Apps started a workflow too often. Sent once an hour."""
    return (
        f"The workflow {code(workflow)} wasn't started: commits of Apps have started it {count(per_hour, 'time')} on this pull "
        f"request within an hour. If the changes are finished, comment {code(f'/gibil retest {workflow}', 200)}; otherwise "
        "check whether two Apps keep changing the same files."
    )


def no_patch(workflow: str) -> str:
    """The button was pressed, but there is nothing to apply."""
    again = code(f"/gibil retest {workflow}", 200)
    return f"There is no patch of {code(workflow)} to apply any more; comment {again} for a new one."


def patch_applied(workflow: str, branch: str, sha: str) -> str:
    """The button was pressed again."""
    return f"The patch of {code(workflow)} was applied already: commit {code(sha[:7])} on {code(branch, 200)}."


def patch_outdated(workflow: str, base: str, head: str) -> str:
    """The button was pressed, and the branch has other commits than those that the patch is for."""
    return (
        f"The patch of {code(workflow)} is for commit {code(base[:7])}, and the branch is at {code(head[:7])} now: comment "
        f"{code(f'/gibil retest {workflow}', 200)} for a new one, or apply the patch with `git am`."
    )


def may_not_commit(repository: str) -> str:
    """The App may not write contents."""
    owner = code(repository.partition("/")[0])
    return (
        f"The App may only read contents here: an owner of {owner} has to accept its permission `contents: write` at the "
        "installation."
    )


def untrusted_refused(because: str, provider: str) -> str:
    """The operator doesn't allow untrusted code on these machines. `because` is a clause of trust_replies."""
    return (
        f"This commit is untrusted, because {because}. This bot doesn't run untrusted code on its {code(provider)} machines, "
        "because they share its kernel. Its operator can set GIBIL_LOCAL_UNTRUSTED=approve, which lets users with write "
        "permission approve single commits."
    )


def command_unreadable(word: str, problem: str) -> str:
    """A line can't be parsed as a command. `problem` is Command.problem."""
    return f"I can't read {code(f'{PREFIX} {word}')}: {line(problem, 500)}. {code(f'{PREFIX} help')} lists the commands."


def pull_request_closed(number: int) -> str:
    """Commands work on open pull requests."""
    return f"Pull request {number} is closed; commands work on open pull requests. Reopen it and comment again."


def nothing_to_retest(workflow: str | None) -> str:
    """No matching workflow has run."""
    which = f"{code(workflow)} has not run" if workflow else "Nothing has run"
    return f"{which} at the newest commit of this pull request yet: {code(f'{PREFIX} help')} lists what can be run."


def nothing_failed() -> str:
    """Nothing that ran has failed."""
    return f"No workflow of this pull request has failed: {code(f'{PREFIX} retest')} with a workflow's name runs it again."


def github_failed(problem: str) -> str:
    """GitHub didn't answer a request that was needed before executing the command."""
    return f"Nothing was started, because GitHub did not answer the bot ({code(problem, 300)}). Comment again later."


def internal_error(reference: str) -> str:
    """An internal error occurred while handling the comment."""
    where = f"the operator can find it in the log as {code(reference)}"
    return f"An internal error in gibil prevented the handling of this comment; {where}. Comment again to retry."


def notice(installation_id: int, repository: Repository, number: int, topic: str, text: str) -> Notification:
    """Return the comment of a pull request about one topic. It is edited in place, so that comments don't pile up."""
    marker = f"<!-- gibil-notice:{repository.id}:{number}:{topic} -->"
    return Notification(
        key=f"notice:{repository.id}:{number}:{topic}",
        installation_id=installation_id,
        repository=repository.full_name,
        update=CommentUpdate(
            number=number,
            marker=marker,
            body=f"{marker}\n{fenced(text, REPLY_LIMIT) if size(text) > REPLY_LIMIT else defuse(text)}",
        ),
    )


def workflow_problems(problems: Sequence[str]) -> str:
    """List unusable workflow files, one line each: path, line, column, problem."""
    lines = ["These workflow files can't be used until they are fixed (`gibil check FILE` reports the same problems):", ""]
    lines += [f"- {code(problem, 400)}" for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"- … and {len(problems) - 20} more")
    return "\n".join(lines)
