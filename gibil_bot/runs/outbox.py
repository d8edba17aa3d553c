"""Publishes pending notifications to GitHub and retries until GitHub has them.

The store holds the newest desired state of each object ("this check run looks like that"). A crash, a 502 or an hour without
network only delays publishing: a notification stays pending until it is published.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from gibil_bot.clock import passed_s
from gibil_bot.errors import GitHubError, NotAskedYet, StoreError
from gibil_bot.model import DueNotification, Priority
from gibil_bot.ports import Outbox, Publisher

log = logging.getLogger("gibil.outbox")

MOST_CONCURRENT = {Priority.PROGRESS: 16, Priority.COMMENT: 8, Priority.REACTION: 4}
"""Maximum number of concurrent requests of that priority and all lower ones (results count as progress). Comments wait for
GitHub's rate limit, and must not delay check runs.
"""
LEASE_S = 180.0
HELD = 5 / 6
"""The part of a lease after which nothing more is sent, so that nothing older follows what another process publishes."""
POLL_S = 5.0
LONGEST_WAIT_S = 300.0


class OutboxPublisher:
    """Call `run()` while the bot is running. Cancelling it also cancels the requests in progress; their leases expire."""

    def __init__(
        self, outbox: Outbox, publisher: Publisher, owner: str, *, is_present: Callable[[], bool] = lambda: True
    ) -> None:
        """`is_present`: whether other bots can't have ended the leases of this one, by its own clock (runs.presence)."""
        self._outbox = outbox
        self._is_present = is_present
        self._publisher = publisher
        self._owner = owner
        self._tasks: set[asyncio.Task[None]] = set()
        self._in_progress: Counter[Priority] = Counter()
        """Requests in progress, by priority. Each is counted until its outcome is stored, which wakes this loop."""

    async def run(self) -> None:
        signal = self._outbox.changed()
        try:
            while True:
                more = False
                for up_to in MOST_CONCURRENT:
                    room = self._room(up_to) if self._is_present() else 0
                    claimed_at = passed_s()
                    due = await self._claim(room, up_to) if room > 0 else []
                    more |= 0 < room == len(due)
                    for notification in due:
                        self._in_progress[notification.priority] += 1
                        task = asyncio.create_task(self._publish(notification, claimed_at))
                        self._tasks.add(task)
                        task.add_done_callback(self._tasks.discard)
                if not more:
                    await signal.wait(POLL_S)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def stop_all(self) -> None:
        """Stop the requests in progress, because other processes may have claimed their notifications."""
        for task in self._tasks:
            task.cancel()

    def _room(self, up_to: Priority) -> int:
        """Return how many more requests down to that priority may be started now."""
        return min(
            most - sum(n for priority, n in self._in_progress.items() if priority >= lowest or lowest is Priority.PROGRESS)
            for lowest, most in MOST_CONCURRENT.items()
            if lowest <= up_to
        )

    async def _claim(self, limit: int, up_to: Priority) -> list[DueNotification]:
        try:
            return await self._outbox.claim(self._owner, limit=limit, lease_s=LEASE_S, up_to=up_to)
        except StoreError as error:
            log.error("could not claim pending notifications: %s", error.message)
            await asyncio.sleep(POLL_S)
            return []

    def _holds(self, claimed_at: float) -> bool:
        return self._is_present() and passed_s() < claimed_at + HELD * LEASE_S

    async def _publish(self, due: DueNotification, claimed_at: float) -> None:
        key = due.notification.key
        try:
            try:
                remote_id = await self._publisher.publish(due, holds=partial(self._holds, claimed_at))
            finally:
                self._in_progress[due.priority] -= 1
        except GitHubError as error:
            await self._failed(due, error)
        except Exception:
            # An internal error in one notification must not stop the others.
            log.exception("publishing %s: internal error", key)
            await self._failed(due, GitHubError("internal error in gibil", retry_after_s=60.0))
        else:
            with contextlib.suppress(StoreError):  # then it is published again, which changes nothing
                await asyncio.shield(self._outbox.published(self._owner, due, remote_id))

    async def _failed(self, due: DueNotification, error: GitHubError) -> None:
        retry_s: float | None = None
        if isinstance(error, NotAskedYet):
            retry_s = error.retry_after_s
            log.debug("%s waits for %.0f s: %s", due.notification.key, retry_s or 0.0, error.message)
        elif error.retry_after_s is not None:
            backoff = min(LONGEST_WAIT_S, 2.0 ** min(due.failures, 9)) * random.uniform(0.75, 1.25)
            retry_s = max(error.retry_after_s, backoff if due.failures else 0.0)
            log.warning("%s could not be published, next try in %.0f s: %s", due.notification.key, retry_s, error.message)
        else:
            log.error("%s will never be published: %s", due.notification.key, error.message)
        with contextlib.suppress(StoreError):
            await self._outbox.not_published(
                self._owner, due, error.message, retry_s=retry_s, failed=not isinstance(error, NotAskedYet)
            )
