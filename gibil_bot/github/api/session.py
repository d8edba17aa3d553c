"""Session with GitHub's API for one App: tokens, rate limits and retries. `client` and `publisher` build the requests.

A request that GitHub may have carried out is repeated only if repeating it changes nothing. A rate limit pauses the whole
installation. A revoked token is replaced once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from gibil_bot.config import Secret
from gibil_bot.errors import GitHubError, NotAskedYet
from gibil_bot.github.api.http import APP, Answer, Request, Unanswered, mint_request
from gibil_bot.github.api.rate_limit import Spacing, server_time_s, wait_s
from gibil_bot.model import Priority
from gibil_bot.retry import RetryPolicy

if TYPE_CHECKING:
    from gibil_bot.github.api.transport import Transport

RETRIES = RetryPolicy(attempts=4, first_wait_s=0.5)
RETRY_AFTER_S = 5.0
"""Delay after a failure for which GitHub gives no time."""
SHORT_WAIT_S = 5.0
"""The longest pause for a rate limit that a request waits for itself."""
LONGEST_QUEUE_S = 30.0
"""A write that would wait longer for its turn raises NotAskedYet."""
WRITE_BURST, WRITES_PER_S = 100, 3.0
RESERVED = {Priority.RESULT: 0, Priority.PROGRESS: 20, Priority.COMMENT: 30, Priority.REACTION: 50}
"""How many writes of the burst each priority leaves to the priorities above it."""
_SOON_S = 0.001
TOKEN_MARGIN_S = 120.0
TOKEN_LIFE_S = 3000.0


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    good_until: float
    """On the monotonic clock, as `minted_at`."""
    minted_at: float = 0.0
    permissions: Mapping[str, str] = field(default_factory=dict)


class _TokenAnswer(msgspec.Struct):
    token: str
    expires_at: datetime | None = None
    permissions: dict[str, str] = msgspec.field(default_factory=dict)


class Session:
    """One App at one GitHub. `now`, `monotonic` and `sleep` are the clock, for tests."""

    def __init__(
        self,
        url: str,
        app_id: str,
        private_key: str,
        *,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 20.0,
        total_timeout_s: float = 60.0,
        now: Callable[[], datetime] | None = None,
        monotonic: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.url = url
        self.app_id = app_id
        self.requests: Counter[str] = Counter()
        """Number of requests per route, including retries."""
        self._private_key = Secret(private_key)
        self._timeouts = {
            "connect_timeout_s": connect_timeout_s,
            "read_timeout_s": read_timeout_s,
            "total_timeout_s": total_timeout_s,
        }
        self._now = now or (lambda: datetime.now(UTC))
        self.monotonic = monotonic or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._connection: Transport | None = None
        self._opening = asyncio.Lock()
        self._tokens: dict[int, _Token] = {}
        self._minting: dict[int, asyncio.Lock] = {}
        self._paused_until: dict[int, float] = {}
        self._strikes: Counter[int] = Counter()
        self._writes = Spacing(burst=WRITE_BURST, per_s=WRITES_PER_S)
        # Separate limits, so that progress or comments alone never use up the whole rate.
        self._progress = Spacing(burst=40, per_s=1.5)
        self._comments = Spacing(burst=20, per_s=1.0)

    def share_limits(self, bots: int) -> None:
        """Note how many bots use the App at present: GitHub counts their writes together."""
        for spacing in (self._writes, self._progress, self._comments):
            spacing.bots = max(1, bots)

    async def ask(self, request: Request, *, holds: Callable[[], bool] = lambda: True) -> Answer:
        """Return the answer if its status is below 400 or one that the request expects. Raises GitHubError.

        `holds`: called directly before the request is sent, each time. If it returns False, NotAskedYet is raised instead.
        """
        path = request.path
        minted_again = False
        failures = 0
        while True:
            await self._turn(request)
            authorization = await self._authorization(request.installation_id)
            try:
                answer = await self._send(request, path, authorization, holds)
            except Unanswered as error:
                failures += 1
                again_s = None if error.sent and not request.may_repeat else RETRIES.wait_s(failures)
                if again_s is None:
                    raise GitHubError(
                        f"{request.name}: GitHub at {self.url} didn't answer: {error.reason}",
                        retry_after_s=RETRY_AFTER_S,
                    ) from None
                await self._sleep(again_s)
                continue
            if answer.status < 400:
                self._strikes.pop(request.installation_id, None)
                return answer
            failures += 1
            again_s = RETRIES.wait_s(failures)
            if answer.status == 401 and request.installation_id != APP and not minted_again:
                self._forget(request.installation_id, authorization)
                minted_again = True
            elif (pause_s := self._pause(request, answer)) is not None:
                if again_s is None or pause_s > SHORT_WAIT_S:
                    raise GitHubError(
                        f"{request.name}: GitHub's limit is reached ({answer.message}); waiting {pause_s:.0f} s",
                        status=answer.status,
                        retry_after_s=pause_s,
                    )
            elif answer.status >= 500 and request.may_repeat and again_s is not None:
                await self._sleep(again_s)
            elif answer.status in request.answers:
                return answer
            else:
                raise _rejection(request, answer)

    async def ask_with(self, token: str, request: Request) -> Answer:
        """Send the request once, with that token, and return the answer with any status. Raises Unanswered."""
        return await self._send(request, request.path, f"token {token}")

    async def permissions(self, installation_id: int, *, within_s: float = TOKEN_LIFE_S) -> Mapping[str, str]:
        """Return the permissions that the installation's owner has accepted, as of at most `within_s` seconds ago.

        https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app
        """
        token = self._tokens.get(installation_id)
        if token is not None and self.monotonic() - token.minted_at > within_s:
            self._forget(installation_id, f"token {token.value}")
        await self._authorization(installation_id)
        return self._tokens[installation_id].permissions

    async def pause(self, seconds: float) -> None:
        """Wait, by the session's clock."""
        await self._sleep(seconds)

    async def clock_skew_s(self) -> float | None:
        """Return the seconds by which our clock is ahead of GitHub's; None if the answer has no date."""
        try:
            # Accepted or rejected, every answer has a date.
            answer = await self.ask_with("none", Request(method="GET", route="/meta"))
        except Unanswered:
            return None
        ours = self._now().timestamp()
        return ours - server_time_s(answer.headers, ours) if "date" in answer.headers else None

    async def close(self) -> None:
        """Close the connections. Requests in flight fail."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    # --- one request

    async def _send(self, request: Request, path: str, authorization: str, holds: Callable[[], bool] = lambda: True) -> Answer:
        connection = await self._open()
        if not holds():
            raise NotAskedYet(
                f"{request.name}: not sent, because this bot was stopped or cut off for so long that another one may send it",
                retry_after_s=1.0,
            )
        self.requests[request.name] += 1
        return await connection.send(
            request.method,
            path,
            authorization=authorization,
            query=request.query,
            body=request.body,
            accept=request.accept,
            at_most=request.at_most,
        )

    async def _open(self) -> Transport:
        """Import githubkit in a thread, at the first request: the import takes a third of a second."""
        if self._connection is None:
            async with self._opening:
                if self._connection is None:
                    self._connection = await asyncio.to_thread(self._connect)
        return self._connection

    def _connect(self) -> Transport:
        from gibil_bot.github.api.transport import Transport

        return Transport(self.url, self.app_id, self._private_key.reveal(), **self._timeouts)

    # --- rate limits

    async def _turn(self, request: Request) -> None:
        """Wait for a pause and for the spacing of writes. Raises GitHubError, NotAskedYet if the wait would be too long."""
        key, now_s = request.installation_id, self.monotonic()
        pause_s = self._paused_until.get(key, now_s) - now_s
        if pause_s > SHORT_WAIT_S:
            raise GitHubError(
                f"{request.name}: GitHub's limit is reached; no requests for {pause_s:.0f} s",
                status=429,
                retry_after_s=pause_s,
            )
        if pause_s > 0:
            await self._sleep(pause_s)
        if request.method != "GET" and key != APP:
            await self._space(request, key)

    async def _space(self, request: Request, key: int) -> None:
        """Wait for a write's turn.

        A result reserves the next slot. Other writes use only a slot that is free now, so results never wait behind them.
        Progress doesn't wait at all, because a newer state will replace it.
        """
        own = self._comments if request.is_comment else self._progress if request.priority is Priority.PROGRESS else None
        started_s = self.monotonic()
        while True:
            now_s = self.monotonic()
            delay_s = self._writes.delay_s(key, now_s, RESERVED[request.priority])
            if own is not None:
                delay_s = max(delay_s, own.delay_s(key, now_s))
            longest_s = _SOON_S if request.priority is Priority.PROGRESS else LONGEST_QUEUE_S
            if now_s - started_s + delay_s > longest_s:
                raise NotAskedYet(
                    f"{request.name}: too many writes at once; waiting for a turn", retry_after_s=max(1.0, delay_s)
                )
            if delay_s <= _SOON_S or request.priority is Priority.RESULT:
                break
            await self._sleep(delay_s)
        self._writes.take(key, now_s)
        if own is not None:
            own.take(key, now_s)
        if delay_s > 0:
            await self._sleep(delay_s)

    def _pause(self, request: Request, answer: Answer) -> float | None:
        """If the answer reports a rate limit, pause this installation and return the seconds."""
        key = request.installation_id
        pause_s = wait_s(
            answer.status, answer.headers, answer.message, now_s=self._now().timestamp(), strikes=self._strikes[key]
        )
        if pause_s is None:
            return None
        self._strikes[key] += 1
        until = self.monotonic() + pause_s
        self._paused_until[key] = max(self._paused_until.get(key, until), until)
        return pause_s

    # --- tokens

    async def _authorization(self, installation_id: int) -> str:
        if installation_id == APP:
            return await (await self._open()).app_authorization()
        lock = self._minting.setdefault(installation_id, asyncio.Lock())
        async with lock:
            token = self._tokens.get(installation_id)
            if token is None or token.good_until <= self.monotonic():
                token = await self._mint(installation_id)
                self._tokens[installation_id] = token
        return f"token {token.value}"

    async def _mint(self, installation_id: int) -> _Token:
        asked_at = self.monotonic()
        answer = await self.ask(mint_request(installation_id))
        found = answer.read(_TokenAnswer)
        life_s = TOKEN_LIFE_S
        if found.expires_at is not None and found.expires_at.tzinfo is not None:
            # Both times are GitHub's, so our clock doesn't matter.
            life_s = found.expires_at.timestamp() - server_time_s(answer.headers, self._now().timestamp())
        return _Token(found.token, asked_at + life_s - TOKEN_MARGIN_S, asked_at, found.permissions)

    def _forget(self, installation_id: int, authorization: str) -> None:
        """Drop the token, unless another task has minted a newer one."""
        token = self._tokens.get(installation_id)
        if token is not None and f"token {token.value}" == authorization:
            del self._tokens[installation_id]


def _rejection(request: Request, answer: Answer) -> GitHubError:
    """Return the error; `retry_after_s` is None if a retry wouldn't help. Whether it is retried is the caller's message."""
    message = f"{request.name}: GitHub answered {answer.status}: {answer.message}"
    if answer.status >= 500 or answer.status == 409:
        return GitHubError(message, status=answer.status, retry_after_s=RETRY_AFTER_S)
    if answer.status == 401:
        remedy = "check the App's id, its private key and this computer's clock with `gibil doctor`"
        return GitHubError(f"{message}; {remedy}", status=401, retry_after_s=60)
    if answer.status == 403 and "suspended" in answer.message.lower():
        return GitHubError(f"{message}; unsuspend the App at the account that installed it", status=403, retry_after_s=3600)
    if answer.status == 403 and "not accessible" in answer.message.lower():
        remedy = "compare the App's permissions with app.yml, and accept new ones at the installation"
        return GitHubError(f"{message}; {remedy}", status=403)
    return GitHubError(message, status=answer.status)
