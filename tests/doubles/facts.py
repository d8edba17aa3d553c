"""Common values of an event, for tests that check something else."""

from __future__ import annotations

from gibil_bot.model import Person, PullRequest, Repository, Trust
from gibil_bot.planning.plan import EventContext

SHA = "5f3a" * 10


def facts(*, trust: Trust = Trust.TRUSTED, max_ttl_s: int = 86400, event_name: str = "issue_comment") -> EventContext:
    """Return the context of a command by ada in pull request 7 of ada/engine."""
    return EventContext(
        repository=Repository(
            id=1, full_name="ada/engine", clone_url="https://github.com/ada/engine.git", default_branch="main"
        ),
        pull_request=PullRequest(
            number=7,
            title='Faster: `rm -rf /` "$(id)"',
            author=Person(login="grace"),
            head_sha=SHA,
            head_ref="faster",
            head_repository="grace/engine",
            base_ref="main",
            base_sha="b" * 40,
        ),
        sha=SHA,
        actor="Ada",
        trust=trust,
        event_name=event_name,
        max_ttl_s=max_ttl_s,
    )
