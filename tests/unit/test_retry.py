"""Retry policies: attempts, waits, and which exceptions are retried."""

from __future__ import annotations

import asyncio

import pytest

from gibil_bot.errors import GitHubError
from gibil_bot.retry import RetryPolicy

EXACT = (1.0, 1.0)


def test_the_wait_doubles_up_to_the_longest_wait() -> None:
    policy = RetryPolicy(attempts=None, first_wait_s=0.5, longest_wait_s=3.0, jitter=EXACT)
    assert [policy.wait_s(failures) for failures in range(1, 6)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_factor_of_one_always_waits_the_same_time() -> None:
    policy = RetryPolicy(attempts=4, first_wait_s=0.1, factor=1.0, jitter=EXACT)
    assert [policy.wait_s(failures) for failures in range(1, 5)] == [0.1, 0.1, 0.1, None]


def test_the_jitter_stays_in_its_range() -> None:
    policy = RetryPolicy(attempts=None, first_wait_s=1.0, jitter=(0.5, 1.5))
    waits = [policy.wait_s(1) for _ in range(200)]
    assert all(wait is not None and 0.5 <= wait <= 1.5 for wait in waits)
    assert len(set(waits)) > 1


def test_a_server_can_request_a_longer_wait_but_not_a_shorter_one() -> None:
    policy = RetryPolicy(attempts=2, first_wait_s=1.0, jitter=EXACT)
    assert policy.wait_s(1, at_least_s=7.0) == 7.0
    assert policy.wait_s(1, at_least_s=0.1) == 1.0


def test_no_attempt_starts_after_the_time_limit() -> None:
    policy = RetryPolicy(attempts=None, first_wait_s=1.0, factor=1.0, jitter=EXACT, within_s=10.0)
    assert policy.wait_s(5, elapsed_s=9.0) == 1.0
    assert policy.wait_s(5, elapsed_s=9.1) is None
    assert policy.wait_s(1, elapsed_s=0.0, at_least_s=11.0) is None


def test_many_failures_do_not_overflow() -> None:
    assert RetryPolicy(attempts=None, first_wait_s=1.0, longest_wait_s=60.0, jitter=EXACT).wait_s(100_000) == 60.0


class _Service:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return "done"


def _transient(error: Exception) -> float | None:
    return error.retry_after_s if isinstance(error, GitHubError) else None


async def _retried(policy: RetryPolicy, service: _Service) -> tuple[str, list[float]]:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return await policy.call(service, retry_after_s=_transient, sleep=sleep), waits


async def test_a_call_is_retried_until_it_succeeds() -> None:
    service = _Service(GitHubError("busy", retry_after_s=0.0), GitHubError("limited", retry_after_s=9.0))
    policy = RetryPolicy(attempts=3, first_wait_s=1.0, jitter=EXACT)
    assert await _retried(policy, service) == ("done", [1.0, 9.0])
    assert service.calls == 3


async def test_the_last_exception_is_raised_when_no_attempt_is_left() -> None:
    service = _Service(GitHubError("first", retry_after_s=0.0), GitHubError("second", retry_after_s=0.0))
    with pytest.raises(GitHubError, match="second"):
        await _retried(RetryPolicy(attempts=2, first_wait_s=1.0), service)
    assert service.calls == 2


async def test_an_exception_that_is_not_transient_is_raised_at_once() -> None:
    service = _Service(ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        await _retried(RetryPolicy(attempts=5, first_wait_s=1.0), service)
    assert service.calls == 1


async def test_each_retry_is_reported_with_its_number() -> None:
    reported: list[tuple[str, int]] = []
    service = _Service(GitHubError("a", retry_after_s=0.0), GitHubError("b", retry_after_s=0.0))
    policy = RetryPolicy(attempts=None, first_wait_s=0.0)
    await policy.call(
        service, retry_after_s=_transient, before_retry=lambda error, failures: reported.append((str(error), failures))
    )
    assert reported == [("a", 1), ("b", 2)]


async def test_cancellation_is_not_retried() -> None:
    calls = 0

    async def action() -> None:
        nonlocal calls
        calls += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(RetryPolicy(attempts=5, first_wait_s=0.0).call(action, retry_after_s=lambda _: 0.0))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert calls == 1
