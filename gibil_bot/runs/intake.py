"""Turns stored deliveries into their outcomes (queued runs, cancelled runs, replies), each in one transaction.

Deliveries of one repository are handled one after another, in order of arrival. Repositories don't wait for each other, so a
slow answer from GitHub delays only one of them.

A comment that only cancels overtakes other deliveries, because runs cost money until they stop. It is claimed first and handled
alongside its repository's queue, but has the effect that it would have had in order: it stops the runs that earlier deliveries
queued or will queue, and never those of a later delivery (CancelRequest).

While the database doesn't answer, each repository's queue waits at the delivery that it couldn't complete. Deliveries that this
process has claimed but doesn't hold are claimed again, in order: the result of a claim may be lost with its connection.
"""

from __future__ import annotations

import asyncio
import logging

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
RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
"""Limits of the wait before a delivery that the database didn't take is tried again; it doubles each time."""
MOST_CLAIMED = 64
"""Deliveries claimed at a time, not counting those that cancel."""
MOST_CLAIMED_CANCELS = 16
GITHUB_TRIES = 8
INTERNAL_ERROR_TRIES = 3


_QueueKey = tuple[int, bool]
"""A repository's id (0: of none), and whether the queue holds its deliveries that cancel (True) or all others."""


class Intake:
    """Handles stored deliveries. Call `run()` while the bot is running."""

    def __init__(
        self,
        store: Store,
        github: GitHub,
        policy: Policy,
        process: str,
    ) -> None:
        self._inbox = store.inbox
        self._handlers = EventHandlers(store, github, policy)
        self._policy = policy
        self._process = process
        self._queues: dict[_QueueKey, asyncio.Queue[tuple[Delivery, Event | DeliveryOutcome]]] = {}
        self._workers: dict[_QueueKey, asyncio.Task[None]] = {}
        self._held: dict[str, bool] = {}
        """Maps the GUIDs of the deliveries in the queues, and in progress, to whether they cancel."""
        self._given_up: set[_QueueKey] = set()
        """Queues that were dropped since the last claim began, which may return their later deliveries."""

    async def run(self) -> None:
        signal = self._inbox.changed()
        try:
            while True:
                cancels = sum(self._held.values())
                room, for_cancels = MOST_CLAIMED - (len(self._held) - cancels), MOST_CLAIMED_CANCELS - cancels
                self._given_up.clear()
                try:
                    deliveries = await self._inbox.claim(
                        self._process, limit=room, cancels=for_cancels, lease_s=LEASE_S, held=tuple(self._held)
                    )
                except StoreError as error:
                    log.error("database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                    continue
                answers = True
                for delivery in deliveries:
                    answers = await self._enqueue(delivery, answers=answers)
                if not deliveries or len(deliveries) < room:
                    await signal.wait(POLL_S if room > 0 and for_cancels > 0 else 0.05)
        finally:
            for worker in self._workers.values():
                worker.cancel()
            await asyncio.gather(*self._workers.values(), return_exceptions=True)

    async def _enqueue(self, delivery: Delivery, *, answers: bool) -> bool:
        """Complete a delivery without consequences at once; put others into their repository's queue.

        `answers`: whether the database does; return whether it still does. While it doesn't, every delivery is queued.
        """
        allowed = self._policy.allowed_accounts
        repository_id = 0
        work: Event | DeliveryOutcome
        try:
            # A delivery without an event couldn't be read on arrival, or was stored by an older version.
            delivery = events.decoded(delivery, allowed) if delivery.event is None else delivery
        except InvalidDelivery as error:
            log.warning("delivery %s: %s", delivery.guid, error.message)
            work = DeliveryOutcome(error=error.message)
        except Exception as error:
            log.exception("delivery %s: internal error while reading its payload", delivery.guid)
            work = DeliveryOutcome(error=repr(error))
        else:
            assert delivery.event is not None
            work = events.relevant(delivery.event, allowed)  # the operator may have changed the allowed accounts
            if not isinstance(work, Ignored):
                repository_id = work.repository.id
            if isinstance(work, Ignored | BranchPushed):
                work = DeliveryOutcome(observed=observed_in(work, delivery.received_at))
        if isinstance(work, DeliveryOutcome) and answers:
            try:
                await self._inbox.complete(self._process, delivery.guid, work)
            except ClaimLost as error:
                log.warning("delivery %s: %s", delivery.guid, error.message)
                return True
            except StoreError as error:
                log.error("database: %s", error.message)
                answers = False
            else:
                return True
        key = repository_id, delivery.cancels
        if key in self._given_up:
            return answers  # this one is claimed again, after those that were dropped
        self._held[delivery.guid] = delivery.cancels
        self._queues.setdefault(key, asyncio.Queue()).put_nowait((delivery, work))
        if key not in self._workers:
            self._workers[key] = asyncio.create_task(self._work(key), name=f"intake of repository {key[0]}")
        return answers

    async def _work(self, key: _QueueKey) -> None:
        queue = self._queues[key]
        try:
            while not queue.empty():
                delivery, work = queue.get_nowait()
                try:
                    await self._handle_until_stored(delivery, work)
                finally:
                    del self._held[delivery.guid]
        except ClaimLost:
            # Its lease has expired, so those of the later ones may have too.
            log.warning("delivery %s: another process handles it, and maybe those after it", delivery.guid)
            self._given_up.add(key)
        except Exception:
            log.exception("delivery %s: internal error", delivery.guid)
            self._given_up.add(key)
        finally:
            while not queue.empty():
                del self._held[queue.get_nowait()[0].guid]
            del self._workers[key], self._queues[key]

    async def _handle_until_stored(self, delivery: Delivery, work: Event | DeliveryOutcome) -> None:
        """Repeat a delivery until the database takes its outcome. Raises ClaimLost."""
        wait_s = RETRY_S
        while True:
            try:
                if isinstance(work, DeliveryOutcome):
                    await self._inbox.complete(self._process, delivery.guid, work)
                else:
                    await self._handle(delivery, work)
            except StoreError as error:
                log.error("delivery %s: next try in %.0f s: %s", delivery.guid, wait_s, error.message)
            else:
                return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)

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
            await self._inbox.complete(
                self._process, delivery.guid, self._failed(delivery, event, replies.github_failed(error.message))
            )
        except StoreError:
            raise
        except Exception as error:
            log.exception("delivery %s: internal error", delivery.guid)
            if delivery.attempts < INTERNAL_ERROR_TRIES:
                await self._inbox.postpone(self._process, delivery.guid, repr(error), delay_s=10.0)
                return
            await self._inbox.complete(
                self._process, delivery.guid, self._failed(delivery, event, replies.internal_error(delivery.guid))
            )
        else:
            await self._inbox.complete(self._process, delivery.guid, outcome)

    def _failed(self, delivery: Delivery, event: Event, text: str) -> DeliveryOutcome:
        if not isinstance(event, CommentCreated):
            return DeliveryOutcome(error=text, observed=observed_in(event, delivery.received_at))
        answer = replies.reply(event, self._handlers.reply_key(delivery), text)
        return DeliveryOutcome(error=text, notifications=[answer, *replies.reactions(event, "confused")])
