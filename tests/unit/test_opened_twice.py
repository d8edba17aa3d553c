"""A process that lost a run and claims it again opens the token of its agent while the earlier access still ends."""

from __future__ import annotations

from gibil_bot.agents.proxy.server import ModelProxy
from gibil_bot.agents.proxy.tokens import new_token
from gibil_bot.agents.proxy.upstream import Upstream
from gibil_bot.operator_secrets import Secret
from tests.doubles.models import CountingBudget


async def test_the_end_of_an_earlier_access_leaves_the_later_one_of_the_same_token_open() -> None:
    proxy = ModelProxy([Upstream(name="anthropic", key=Secret("key"), url="https://vendor.example")])
    token = new_token()
    for attempt in (1, 2):
        proxy.open(
            run_id="r1", task=0, attempt=attempt, protocol="anthropic", provider="anthropic", models=["m"],
            budget=CountingBudget(), token=token,
        )  # fmt: skip
    await proxy.close(token)
    found = proxy._tokens.find([token.reveal()])
    assert found is not None
    assert found.attempt == 2
    await proxy.close(token)
    assert proxy._tokens.find([token.reveal()]) is None
    assert proxy._tokens.all() == ()
