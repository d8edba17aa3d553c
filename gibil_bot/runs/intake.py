"""From a stored delivery to what follows from it: runs queued, runs cancelled, answers given, all in one transaction.

Deliveries of one repository are handled one after another, in the order in which they came; different repositories do not
wait for each other, so one that GitHub is slow to answer for holds up nobody else.
"""

from __future__ import annotations

import asyncio
import logging

from gibil_bot.errors import ClaimLost, GitHubError, InvalidDelivery, StoreError
from gibil_bot.github import replies
from gibil_bot.model import BranchPushed, CommentCreated, Delivery, Event, Ignored
from gibil_bot.ports import GitHub, Settlement, Store
from gibil_bot.runs import events
from gibil_bot.runs.context import Policy
from gibil_bot.runs.handlers import EventHandlers
from gibil_bot.runs.heads import observed_in

log = logging.getLogger("gibil.intake")

LEASE_S = 600.0
POLL_S = 5.0
AT_ONCE = 64
"""Deliveries in hand at one time."""
GITHUB_TRIES = 8
FAULT_TRIES = 3


class Intake:
    """`run()` for as long as the bot lives."""

    def __init__(self, store: Store, github: GitHub, policy: Policy, process: str) -> None:
        self._store = store
        self._decisions = EventHandlers(store, github, policy)
        self._policy = policy
        self._process = process
        self._lanes: dict[int, asyncio.Queue[tuple[Delivery, Event]]] = {}
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._in_hand = 0

    async def run(self) -> None:
        signal = self._store.changed("deliveries")
        try:
            while True:
                room = AT_ONCE - self._in_hand
                deliveries: list[Delivery] = []
                try:
                    if room > 0:
                        deliveries = await self._store.claim_deliveries(self._process, limit=room, lease_s=LEASE_S)
                    for delivery in deliveries:
                        await self._sort(delivery)
                except StoreError as error:
                    log.error("the database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                if len(deliveries) < room or room <= 0:
                    await signal.wait(POLL_S if room > 0 else 0.05)
        finally:
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*self._workers.values(), return_exceptions=True)

    async def _sort(self, delivery: Delivery) -> None:
        """Complete at once what nothing follows from; put the rest into its repository's queue."""
        allowed = self._policy.allowed_accounts
        try:
            # Without an event: it could not be read when it came, or an older version stored it.
            delivery = events.decoded(delivery, allowed) if delivery.event is None else delivery
        except InvalidDelivery as error:
            log.warning("delivery %s: %s", delivery.guid, error.message)
            await self._settle(delivery, Settlement(error=error.message))
            return
        except Exception as error:
            log.exception("delivery %s: internal error while reading its payload", delivery.guid)
            await self._settle(delivery, Settlement(error=repr(error)))
            return
        assert delivery.event is not None
        event = events.relevant(delivery.event, allowed)  # the operator may have changed who is served
        if isinstance(event, Ignored | BranchPushed):
            await self._settle(delivery, Settlement(observed=observed_in(event, delivery.received_at)))
            return
        lane = event.repository.id
        self._in_hand += 1
        self._lanes.setdefault(lane, asyncio.Queue()).put_nowait((delivery, event))
        if lane not in self._workers:
            self._workers[lane] = asyncio.create_task(self._work(lane), name=f"intake of repository {lane}")

    async def _work(self, lane: int) -> None:
        queue = self._lanes[lane]
        try:
            while not queue.empty():
                delivery, event = queue.get_nowait()
                try:
                    await self._handle(delivery, event)
                finally:
                    self._in_hand -= 1
        finally:
            self._in_hand -= queue.qsize()
            del self._workers[lane], self._lanes[lane]

    async def _settle(self, delivery: Delivery, settlement: Settlement) -> None:
        try:
            await self._store.settle(self._process, delivery.guid, settlement)
        except ClaimLost:
            log.warning("delivery %s: another process handled it", delivery.guid)

    async def _handle(self, delivery: Delivery, event: Event) -> None:
        try:
            settlement = await self._decisions.settle(delivery, event)
        except GitHubError as error:
            if error.retry_after_s is not None and delivery.attempts < GITHUB_TRIES:
                delay = max(error.retry_after_s, 2.0**delivery.attempts)
                log.warning("delivery %s: again in %.0f s: %s", delivery.guid, delay, error.message)
                await self._store.postpone(self._process, delivery.guid, error.message, delay_s=delay)
                return
            log.error("delivery %s: %s", delivery.guid, error.message)
            await self._settle(delivery, self._failed(delivery, event, replies.github_failed(error.message)))
        except StoreError as error:
            log.error("delivery %s stays to be handled: %s", delivery.guid, error.message)
        except Exception as error:
            log.exception("delivery %s: a fault of ours", delivery.guid)
            if delivery.attempts < FAULT_TRIES:
                await self._store.postpone(self._process, delivery.guid, repr(error), delay_s=10.0)
                return
            await self._settle(delivery, self._failed(delivery, event, replies.failed_ourselves(delivery.guid)))
        else:
            await self._settle(delivery, settlement)

    def _failed(self, delivery: Delivery, event: Event, text: str) -> Settlement:
        if not isinstance(event, CommentCreated):
            return Settlement(error=text, observed=observed_in(event, delivery.received_at))
        answer = replies.reply(event, self._decisions.origin(delivery), text)
        return Settlement(error=text, tellings=[answer, *replies.reactions(event, "confused")])
