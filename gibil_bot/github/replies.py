"""Answers to people: reactions, replies, and the sentences that say no and what to do next.

Pure. Every sentence is one line of Markdown. Names and words of people in it are inline code, so that they mention
nobody; `reply` defuses the whole text once more, because a sentence may also come from elsewhere.
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
    """One workflow that has a command."""

    word: str
    title: str
    inputs: tuple[str, ...] = ()
    """As they are written: `browser=firefox` with the default, `version=…` for one that is required."""
    origin: str = ""
    """Where it comes from: `workflows/test.yml`, `.gibil/workflows/docs.yml@main`."""


def reply(event: CommentCreated, guid: str, text: str) -> Notification:
    """An answer in the conversation, once for each delivery."""
    marker = f"<!-- gibil-reply:{line(guid, 100).replace('-->', '')} -->"
    shown = defuse(text)
    if size(shown) > REPLY_LIMIT:
        shown = fenced(text, REPLY_LIMIT)
    return Notification(
        key=f"reply:{guid}",
        installation_id=event.installation_id,
        repository=event.repository.full_name,
        update=CommentUpdate(number=event.number, marker=marker, body=f"{marker}\n{shown}"),
    )


def reaction(event: CommentCreated, content: Reaction) -> Notification:
    """A reaction to the comment: `eyes` when it was read, `confused` when a command was refused."""
    return Notification(
        key=f"reaction:{event.comment_id}:{content}",
        installation_id=event.installation_id,
        repository=event.repository.full_name,
        update=ReactionUpdate(comment_id=event.comment_id, is_review_comment=event.is_review_comment, content=content),
    )


def reactions(event: CommentCreated, content: Reaction) -> list[Notification]:
    """The same where there are reactions: a review has none in the REST API (reference above)."""
    return [] if event.is_review else [reaction(event, content)]


def help_text(entries: Sequence[HelpEntry], problems: Sequence[str] = ()) -> str:
    """All commands, the workflows' first. `problems` are workflow files that cannot be used, one line each."""
    lines = ["**Commands**, each on a line of its own:", ""]
    for entry in entries[:50]:
        words = " ".join((PREFIX, entry.word, *entry.inputs))
        origin = f" ({code(entry.origin, 120)})" if entry.origin else ""
        lines.append(f"- {code(words, 300)}: {line(entry.title, 200)}{origin}")
    if len(entries) > 50:
        lines.append(f"- … and {len(entries) - 50} more")
    lines += [
        f"- {code(f'{PREFIX} retest')}: run again what did not succeed, or the named workflow",
        f"- {code(f'{PREFIX} cancel')}: stop what is queued or running, or the named workflow",
        f"- {code(f'{PREFIX} approve SHA')}: let one commit of an untrusted pull request run, without secrets",
        f"- {code(f'{PREFIX} help')}: this list",
    ]
    if problems:
        lines += ["", "Workflow files that cannot be used:", *(f"- {code(problem, 300)}" for problem in problems[:20])]
    return "\n".join(lines)


# --- refusals: what is, and what to do next ---------------------------------------------------------------------------


def permission_refused(login: str, permission: str) -> str:
    """The commenter may not give commands here."""
    has = "no permission" if permission == "none" else f"{line(permission, 20)} permission"
    return f"{code(login)} has {has} on this repository, but commands need write permission. Ask a user who has it to comment."


def rate_limited(login: str, per_hour: int, wait_s: float) -> str:
    """A person has given as many commands as one may. Sent once an hour."""
    return (
        f"{code(login)} has reached the limit of {count(per_hour, 'command')} an hour in this repository: try again in "
        f"{count(max(1, ceil(wait_s / 60)), 'minute')}. Further commands above the limit are not answered. The "
        "operator of this bot sets the limit with GIBIL_COMMANDS_PER_HOUR."
    )


def untrusted_refused(because: str, provider: str) -> str:
    """The operator does not let untrusted code onto these machines. `because` is a clause of trust_texts."""
    return (
        f"This commit is untrusted, because {because}. This bot doesn't run untrusted code on its {code(provider)} machines, "
        "because they share its kernel. Its operator can set GIBIL_LOCAL_UNTRUSTED=approve, which lets users with write "
        "permission approve single commits."
    )


def command_unreadable(word: str, problem: str) -> str:
    """A line that is no command. `problem` is Command.problem."""
    return f"I cannot read {code(f'{PREFIX} {word}')}: {line(problem, 500)}. {code(f'{PREFIX} help')} lists the commands."


def pull_request_closed(number: int) -> str:
    """Commands work on open pull requests."""
    return f"Pull request {number} is closed; commands work on open pull requests. Reopen it and comment again."


def nothing_to_retest(workflow: str | None) -> str:
    """Nothing failed, or nothing ran."""
    which = f"{code(workflow)} has not run" if workflow else "Nothing has run"
    return f"{which} at the newest commit of this pull request yet: {code(f'{PREFIX} help')} lists what can be run."


def nothing_failed() -> str:
    """Everything that ran is green, or still runs."""
    return (
        f"No workflow of this pull request has failed: {code(f'{PREFIX} retest')} with a workflow's name runs that one again."
    )


def github_failed(problem: str) -> str:
    """GitHub did not answer what we have to know before we obey."""
    return f"Nothing was started, because GitHub did not answer the bot ({code(problem, 300)}): comment again later."


def failed_ourselves(reference: str) -> str:
    """We broke while handling the comment."""
    where = f"the operator finds it in the log as {code(reference)}"
    return f"An internal error of gibil prevented the handling of this comment; {where}. Comment again to retry."


def notice(installation_id: int, repository: Repository, number: int, topic: str, text: str) -> Notification:
    """One comment of a pull request about one topic, edited in place: what nobody asked for must not pile up."""
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
    """Workflow files that cannot be used, one line each: path, line, column, what is wrong."""
    lines = ["These workflow files cannot be used until they are corrected (`gibil check FILE` shows the same):", ""]
    lines += [f"- {code(problem, 400)}" for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"- … and {len(problems) - 20} more")
    return "\n".join(lines)
