"""Turns stored deliveries into their outcomes (queued runs, cancelled runs, replies), each in one transaction.

Deliveries of one repository are handled one after another, in order of arrival. Repositories don't wait for each other, so a
slow answer from GitHub delays only one of them.

A comment that only cancels overtakes other deliveries, because runs cost money until they stop. It is claimed first and handled
alongside its repository's queue, but has the effect that it would have had in order: it stops the runs that earlier deliveries
queued or will queue, and never those of a later delivery (CancelRequest).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from gibil_bot.errors import ClaimLost, GitHubError, InvalidDelivery, StoreError
from gibil_bot.github import replies
from gibil_bot.model import BranchPushed, CommentCreated, Delivery, Event, Ignored
from gibil_bot.ports import DeliveryOutcome, GitHub, Store
from gibil_bot.runs import events
from gibil_bot.runs.context import Policy
from gibil_bot.runs.handlers import EventHandlers
from gibil_bot.runs.heads import observed_in

log = logging.getLogger("gibil.intake")

LEASE_S = 600.0
POLL_S = 5.0
MOST_CLAIMED = 64
"""Deliveries claimed at a time, not counting those that cancel."""
MOST_CLAIMED_CANCELS = 16
GITHUB_TRIES = 8
INTERNAL_ERROR_TRIES = 3


_QueueKey = tuple[int, bool]
"""A repository's id, and whether the queue holds its deliveries that cancel (True) or all others."""


class Intake:
    """Handles stored deliveries. Call `run()` while the bot is running."""

    def __init__(self, store: Store, github: GitHub, policy: Policy, process: str) -> None:
        self._inbox = store.inbox
        self._handlers = EventHandlers(store, github, policy)
        self._policy = policy
        self._process = process
        self._queues: dict[_QueueKey, asyncio.Queue[tuple[Delivery, Event]]] = {}
        self._workers: dict[_QueueKey, asyncio.Task[None]] = {}
        self._claimed: Counter[bool] = Counter()
        """Number of claimed deliveries that cancel (True), and of others."""

    async def run(self) -> None:
        signal = self._inbox.changed()
        try:
            while True:
                room, for_cancels = MOST_CLAIMED - self._claimed[False], MOST_CLAIMED_CANCELS - self._claimed[True]
                deliveries: list[Delivery] = []
                try:
                    deliveries = await self._inbox.claim(self._process, limit=room, cancels=for_cancels, lease_s=LEASE_S)
                    for delivery in deliveries:
                        await self._enqueue(delivery)
                except StoreError as error:
                    log.error("database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                if not deliveries or len(deliveries) < room:
                    await signal.wait(POLL_S if room > 0 and for_cancels > 0 else 0.05)
        finally:
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*self._workers.values(), return_exceptions=True)

    async def _enqueue(self, delivery: Delivery) -> None:
        """Complete a delivery without consequences at once; put others into their repository's queue."""
        allowed = self._policy.allowed_accounts
        try:
            # A delivery without an event couldn't be read on arrival, or was stored by an older version.
            delivery = events.decoded(delivery, allowed) if delivery.event is None else delivery
        except InvalidDelivery as error:
            log.warning("delivery %s: %s", delivery.guid, error.message)
            await self._complete(delivery, DeliveryOutcome(error=error.message))
            return
        except Exception as error:
            log.exception("delivery %s: internal error while reading its payload", delivery.guid)
            await self._complete(delivery, DeliveryOutcome(error=repr(error)))
            return
        assert delivery.event is not None
        event = events.relevant(delivery.event, allowed)  # the operator may have changed the allowed accounts
        if isinstance(event, Ignored | BranchPushed):
            await self._complete(delivery, DeliveryOutcome(observed=observed_in(event, delivery.received_at)))
            return
        key = event.repository.id, delivery.cancels
        self._claimed[delivery.cancels] += 1
        self._queues.setdefault(key, asyncio.Queue()).put_nowait((delivery, event))
        if key not in self._workers:
            self._workers[key] = asyncio.create_task(self._work(key), name=f"intake of repository {key[0]}")

    async def _work(self, key: _QueueKey) -> None:
        queue = self._queues[key]
        try:
            while not queue.empty():
                delivery, event = queue.get_nowait()
                try:
                    await self._handle(delivery, event)
                finally:
                    self._claimed[delivery.cancels] -= 1
        finally:
            self._claimed[key[1]] -= queue.qsize()
            del self._workers[key], self._queues[key]

    async def _complete(self, delivery: Delivery, outcome: DeliveryOutcome) -> None:
        try:
            await self._inbox.complete(self._process, delivery.guid, outcome)
        except ClaimLost:
            log.warning("delivery %s: another process handled it", delivery.guid)

    async def _handle(self, delivery: Delivery, event: Event) -> None:
        try:
            outcome = await self._handlers.decide(delivery, event)
        except GitHubError as error:
            if error.retry_after_s is not None and delivery.attempts < GITHUB_TRIES:
                delay = max(error.retry_after_s, 2.0**delivery.attempts)
                log.warning("delivery %s: next try in %.0f s: %s", delivery.guid, delay, error.message)
                await self._inbox.postpone(self._process, delivery.guid, error.message, delay_s=delay)
                return
            log.error("delivery %s: %s", delivery.guid, error.message)
            await self._complete(delivery, self._failed(delivery, event, replies.github_failed(error.message)))
        except StoreError as error:
            log.error("delivery %s could not be handled: %s", delivery.guid, error.message)
        except Exception as error:
            log.exception("delivery %s: internal error", delivery.guid)
            if delivery.attempts < INTERNAL_ERROR_TRIES:
                await self._inbox.postpone(self._process, delivery.guid, repr(error), delay_s=10.0)
                return
            await self._complete(delivery, self._failed(delivery, event, replies.internal_error(delivery.guid)))
        else:
            await self._complete(delivery, outcome)

    def _failed(self, delivery: Delivery, event: Event, text: str) -> DeliveryOutcome:
        if not isinstance(event, CommentCreated):
            return DeliveryOutcome(error=text, observed=observed_in(event, delivery.received_at))
        answer = replies.reply(event, self._handlers.reply_key(delivery), text)
        return DeliveryOutcome(error=text, notifications=[answer, *replies.reactions(event, "confused")])
