"""`python -m tests.benchmarks.proxy_process URL TASKS`: a model proxy before the vendor at URL, whose key is in VENDOR_KEY.

Its database is in the current directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from decimal import Decimal
from pathlib import Path

import uvloop

from gibil_bot.agent_task import Account, AgentPlan
from gibil_bot.agents.budget import open_budget
from gibil_bot.agents.prices import Prices
from gibil_bot.agents.proxy.server import ModelProxy
from gibil_bot.agents.proxy.upstream import Upstream
from gibil_bot.model_settings import Budgets, ModelSettings
from gibil_bot.operator_secrets import Secret
from gibil_bot.runs.sqlite.store import open_store

_AGENT = AgentPlan(engine="claude", prompt="", budget_usd=Decimal(1000), max_tokens=10**9)
_MODELS = ModelSettings(
    budgets=Budgets(task_usd=None, run_usd=Decimal(1000), person_usd=Decimal(1000), day_usd=Decimal(1000), run_tokens=10**9)
)
"""As many limits as tasks usually have, which no call exceeds."""


async def main(url: str, tasks: int) -> None:
    upstream = Upstream(name="anthropic", key=Secret(os.environ.pop("VENDOR_KEY")), url=url)
    store = await open_store(f"sqlite:///{Path.cwd() / 'gibil.db'}")
    prices = Prices()

    async with ModelProxy([upstream]) as proxy:
        opened = [
            proxy.open(
                run_id=f"r{number}",
                task=0,
                protocol="anthropic",
                provider="anthropic",
                models=["claude-*"],
                budget=open_budget(store.ledger, _MODELS, prices, _account(number), _AGENT, "anthropic"),
            )
            for number in range(tasks)
        ]
        tokens = [access.token.reveal() for access in opened]
        print(json.dumps({"url": f"http://127.0.0.1:{proxy.port}", "tokens": tokens}), flush=True)
        await asyncio.Event().wait()


def _account(number: int) -> Account:
    return Account(run_id=f"r{number}", task=0, person="ada", repository_id=1, repository="ada/engine")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], int(sys.argv[2])))
