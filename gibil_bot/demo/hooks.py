"""Webhooks: signed, sent once over real HTTP, logged. Failed deliveries stay in the log until they are redelivered."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import ssl
import time
import uuid
from datetime import timedelta

import httpx

from gibil_bot.demo import payloads
from gibil_bot.demo.records import HookDelivery, Repository, User
from gibil_bot.demo.state import State

ANSWER_WITHIN_S = 10.0
"""https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks#respond-within-10-seconds"""

LARGEST_PAYLOAD = 25 * 1024 * 1024
"""Larger payloads aren't sent at all: https://docs.github.com/en/webhooks/webhook-events-and-payloads#payload-cap"""

STORED_FOR = timedelta(days=3)
"""https://docs.github.com/en/webhooks/testing-and-troubleshooting-webhooks/redelivering-webhooks"""


class Hooks:
    """Sends the App's webhooks. Each delivery is its own task, so a slow receiver delays nothing else."""

    def __init__(self, state: State, *, url: str | None, secret: str) -> None:
        self.url = url
        self.secret = secret
        self.content_type = "json"
        """As shown by the API; payloads are always sent as JSON."""
        self.failing: list[int] = []
        """Statuses with which the next deliveries fail before they reach the receiver, as if it were down."""
        self._state = state
        # The receiver is local and uses HTTP: loading the certificates of all authorities would take longer than the rest of a
        # double's start.
        no_authorities = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.AsyncClient(timeout=ANSWER_WITHIN_S, trust_env=False, verify=no_authorities)
        self._sending: set[asyncio.Task[None]] = set()

    def send(self, event: str, action: str | None, repository: Repository, sender: User, body: payloads.Json) -> str | None:
        """Send one event of one repository, if the App is installed there and subscribed. Returns the GUID.

        Common fields: https://docs.github.com/en/webhooks/webhook-events-and-payloads
        """
        state = self._state
        installation = state.installations.get(repository.installation_id or 0)
        if installation is None or event not in installation.events:
            return None
        payload: payloads.Json = {} if action is None else {"action": action}
        payload |= body
        payload["repository"] = payloads.repository(state, repository)
        payload["sender"] = payloads.user(state, sender)
        payload["installation"] = {"id": installation.id, "node_id": payloads.node_id("Installation", installation.id)}
        if installation.account.type == "Organization":
            payload["organization"] = {"id": installation.account.id, "login": installation.account.login}
        return self.deliver(event, payload, installation_id=installation.id, repository_id=repository.id)

    def deliver(
        self,
        event: str,
        payload: payloads.Json | bytes,
        *,
        guid: str | None = None,
        installation_id: int | None = None,
        repository_id: int | None = None,
        redelivery: bool = False,
    ) -> str | None:
        """Start one attempt with any payload. Returns None if there is no receiver, or the payload is too large."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        if self.url is None or len(body) > LARGEST_PAYLOAD:
            return None
        delivery = HookDelivery(
            id=self._state.new_id(),
            guid=guid or str(uuid.uuid4()),
            event=event,
            action=_action_of(payload),
            installation_id=installation_id,
            repository_id=repository_id,
            delivered_at=self._state.now(),
            redelivery=redelivery,
            body=body,
        )
        # https://docs.github.com/en/webhooks/webhook-events-and-payloads#delivery-headers
        delivery.headers = {
            "Accept": "*/*",
            "Content-Type": "application/json",
            "User-Agent": "GitHub-Hookshot/0d0b1e5",
            "X-GitHub-Delivery": delivery.guid,
            "X-GitHub-Event": event,
            "X-GitHub-Hook-ID": "1",
            "X-GitHub-Hook-Installation-Target-ID": str(self._state.app_id),
            "X-GitHub-Hook-Installation-Target-Type": "integration",
            "X-Hub-Signature-256": signature(self.secret, body),
        }
        self._state.deliveries.append(delivery)
        task = asyncio.create_task(self._attempt(delivery, self.url), name=f"delivery {delivery.guid}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return delivery.guid

    def redeliver(self, delivery_id: int) -> bool:
        """Start another attempt with the same GUID. https://docs.github.com/en/rest/apps/webhooks#redeliver-a-delivery-for-an-app-webhook"""
        found = next((each for each in self.log() if each.id == delivery_id), None)
        if found is None:
            return False
        self.deliver(
            found.event,
            found.body,
            guid=found.guid,
            installation_id=found.installation_id,
            repository_id=found.repository_id,
            redelivery=True,
        )
        return True

    def log(self) -> list[HookDelivery]:
        """Return the deliveries that GitHub still stores, newest first."""
        oldest = self._state.now() - STORED_FOR
        return [each for each in reversed(self._state.deliveries) if each.delivered_at >= oldest and each.status != "pending"]

    async def webhooks_sent(self) -> None:
        """Wait until no webhook is being sent."""
        while self._sending:
            await asyncio.wait(self._sending)

    async def close(self) -> None:
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        await self._client.aclose()

    async def _attempt(self, delivery: HookDelivery, url: str) -> None:
        started = time.perf_counter()
        try:
            if self.failing:
                status, outcome, answer = self.failing.pop(0), "failed to connect to host", ""
            else:
                async with asyncio.timeout(ANSWER_WITHIN_S):
                    response = await self._client.post(url, content=delivery.body, headers=delivery.headers)
                status, answer = response.status_code, response.text
                outcome = "OK" if status < 400 else f"Invalid HTTP Response: {status}"
        except (TimeoutError, httpx.TimeoutException):
            # The documentation has no statuses for these two failures: those of a gateway are used.
            status, outcome, answer = 504, "timed out", ""
        except httpx.HTTPError:
            status, outcome, answer = 502, "failed to connect to host", ""
        delivery.duration_s = time.perf_counter() - started
        delivery.status, delivery.status_code, delivery.response = outcome, status, answer
        self._state.touch()


def signature(secret: str, body: bytes) -> str:
    """https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries"""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _action_of(payload: payloads.Json | bytes) -> str | None:
    """Return the payload's action for the log. Bytes may be anything, even intentionally invalid."""
    if isinstance(payload, bytes):
        try:
            payload = json.loads(payload)
        except (ValueError, RecursionError):
            return None
    action = payload.get("action") if isinstance(payload, dict) else None
    return action if isinstance(action, str) else None
