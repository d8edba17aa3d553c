"""Programs that want more of a model than their budget pays for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from gibil_bot.agent_task import ModelCall
from gibil_bot.agents.proxy import app
from gibil_bot.agents.proxy.app import Patience
from tests.doubles.models import Machine, proxied, request
from tests.doubles.patience import patient

WITHIN_S = 20.0
LEAVES = Patience(drain_s=0.05)


async def leave(machine: Machine, body: dict[str, Any]) -> None:
    """Call the model, and close the connection as soon as the vendor works on it."""
    number = len(machine.double.calls)
    machine.double.fault("silence")
    calling = asyncio.create_task(machine.post(body))
    await machine.double.wait_for(lambda: len(machine.double.calls) > number)
    calling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await calling


async def booked(machine: Machine, number: int = 1) -> list[ModelCall]:
    async with asyncio.timeout(patient(WITHIN_S)):
        while len(machine.budget.billed) < number:
            await asyncio.sleep(0.005)  # the budget is in this process: there is no event to wait for
    return machine.budget.billed


@pytest.mark.parametrize("protocol", ["anthropic", "responses", "chat"])
async def test_leaving_before_an_answer_that_is_no_stream_costs_all_that_it_may_have_become(protocol: str) -> None:
    """Vendors complete and bill it whether or not anyone waits for it."""
    async with proxied(protocol, patience=LEAVES, max_output_tokens=7000) as machine:
        await leave(machine, request(protocol, stream=False))
        (record,) = await booked(machine)
        assert (record.usage.output, record.usage.is_estimated) == (7000, True)


@pytest.mark.parametrize("protocol", ["anthropic", "responses", "chat", "gemini"])
async def test_leaving_a_stream_costs_what_the_model_may_have_thought_until_then(protocol: str) -> None:
    """Thoughts aren't part of the stream, so what was sent says little of what is billed."""
    async with proxied(protocol, patience=Patience(drain_s=0.5)) as machine:
        await leave(machine, request(protocol))
        (record,) = await booked(machine)
        assert record.usage.output >= 100
        assert record.usage.is_estimated


async def test_leaving_never_costs_more_than_was_reserved() -> None:
    async with proxied("chat", patience=Patience(drain_s=0.5), max_output_tokens=20) as machine:
        await leave(machine, request("chat"))
        (record,) = await booked(machine)
        assert record.usage.output <= 50  # the double's answer, which ignores the limit, is longer than 20


@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
async def test_calls_that_cost_nothing_are_limited(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would use up what the vendor allows the operator's key in a minute."""
    monkeypatch.setattr(app, "_MOST_COUNTED", 2)
    path = {"anthropic": "/v1/messages/count_tokens", "gemini": "/v1beta/models/gemini-2.5-flash:countTokens"}[protocol]
    async with proxied(protocol) as machine:
        statuses = [(await machine.post(path=path)).status_code for _ in range(4)]
        assert statuses[:2] == [200, 200]
        assert set(statuses[2:]) <= {402, 403}
        assert len(machine.double.requests) == 2
        assert (await machine.post()).status_code == 200
