"""What agent tasks need is opened by the first run that asks, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import pytest

from gibil_bot.wiring import _opened_once

if TYPE_CHECKING:
    from gibil_bot.runs.agent_tools import AgentTools

TOOLS = cast("AgentTools", object())


async def test_runs_at_the_same_time_share_what_one_of_them_opened() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def opening() -> AsyncIterator[AgentTools]:
        events.append("open")
        await asyncio.sleep(0)
        yield TOOLS
        events.append("close")

    async with _opened_once(opening) as tools:
        assert events == []
        assert tuple(await asyncio.gather(tools(), tools())) == (TOOLS, TOOLS)
        assert events == ["open"]
    assert events == ["open", "close"]


async def test_a_failure_to_open_is_tried_again_by_the_next_run() -> None:
    failures = [OSError("no port")]

    @asynccontextmanager
    async def opening() -> AsyncIterator[AgentTools]:
        if failures:
            raise failures.pop()
        yield TOOLS

    async with _opened_once(opening) as tools:
        with pytest.raises(OSError, match="no port"):
            await tools()
        assert await tools() is TOOLS
