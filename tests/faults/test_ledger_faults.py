"""Bots that share a database, or are killed, while agents spend: no limit is exceeded, and no call is forgotten."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

from gibil_bot.agent_task import Account, Limit
from tests.doubles.databases import open_store
from tests.doubles.patience import patient

PROGRAM = """
import asyncio, sys
from decimal import Decimal
from gibil_bot.agent_task import Account, Limit
from tests.doubles.databases import open_store

async def main():
    name = sys.argv[1]
    store = await open_store(sys.stdin.readline().strip())
    print("opened", flush=True)
    sys.stdin.readline()
    account = Account(run_id=name, task=0, person=name, repository_id=1, repository="ada/engine")
    limits = [Limit(scope="repository", measure="usd", most=Decimal(1), remedy="")]

    async def one(number):
        return await store.ledger.reserve(
            f"{name}-{number}", account, limits, usd=Decimal("0.09"), input_tokens=1, output_tokens=1
        )

    exceeded = await asyncio.gather(*(one(number) for number in range(25)))
    print(sum(not each for each in exceeded), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""
ROOT = Path(__file__).parents[2]


async def answer(bot: subprocess.Popen[str], line: str) -> str:
    """Send a line to the bot and return the next one that it prints."""
    assert bot.stdin is not None
    assert bot.stdout is not None
    bot.stdin.write(f"{line}\n")
    bot.stdin.flush()
    return (await asyncio.wait_for(asyncio.to_thread(bot.stdout.readline), patient(30))).strip()


async def test_two_bots_exceed_no_limit_together_and_their_open_calls_count_after_a_kill(database_url: str) -> None:
    bots = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in ("run-1", "run-2")
    ]
    try:
        assert [await answer(bot, database_url) for bot in bots] == ["opened", "opened"]
        reserved = [int(each) for each in await asyncio.gather(*(answer(bot, "go") for bot in bots))]
    finally:
        for bot in bots:
            bot.send_signal(signal.SIGKILL)
            bot.communicate()
    assert sum(reserved) == 11

    store = await open_store(database_url)
    account = Account(run_id="run-3", task=0, person="eve", repository_id=1, repository="ada/engine")
    limits = [Limit(scope="repository", measure="usd", most=Decimal(1), remedy="")]
    (balance,) = await store.ledger.balances(account, limits)
    assert (balance.spent, balance.reserved) == (Decimal(0), Decimal("0.99"))
    assert await store.ledger.book_estimates("run-1") == reserved[0]
    if database_url.startswith("postgresql:"):  # where no bot is ever alone, a run's next process books them
        assert await store.ledger.book_estimates("run-2") == reserved[1]
    await store.close()

    alone = await open_store(database_url, exclusive=True)
    (balance,) = await alone.ledger.balances(account, limits)
    assert (balance.spent, balance.reserved) == (Decimal("0.99"), Decimal(0))
    await alone.close()
