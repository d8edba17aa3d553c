"""The model proxy over real HTTP, before a double of the vendors: protocols, faults of both sides, the end of a task."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from gibil_bot.agent_task import Account, Limit, Price, Rates, Usage
from gibil_bot.agents.budget import LedgerBudget
from gibil_bot.agents.proxy.app import Patience
from gibil_bot.agents.proxy.server import ModelProxy
from gibil_bot.agents.proxy.upstream import Upstream
from gibil_bot.demo.model_script import Say, Script
from gibil_bot.errors import UsageError
from gibil_bot.operator_secrets import Secret
from tests.doubles.ledger import MemoryLedger
from tests.doubles.models import MODELS, PATHS, CountingBudget, Machine, key_headers, proxied, request
from tests.doubles.patience import patient

PROTOCOLS = ("anthropic", "responses", "chat", "gemini")
COUNTED = Usage(input=800, cache_read=200, output=50)
REFUSED = {"anthropic": 402, "responses": 400, "chat": 402, "gemini": 403}
WITHIN_S = 20.0

each_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def message_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


async def until_recorded(machine: Machine, calls: int = 1) -> None:
    async with asyncio.timeout(patient(WITHIN_S)):
        while len(machine.budget.billed) + len(machine.budget.released) < calls:
            await asyncio.sleep(0.005)  # the budget's own state: there is no event to wait for


async def receive(machine: Machine, received: bytearray) -> None:
    """Add what arrives of a stream until its end or its cut."""
    async with machine.stream() as answer:
        async for chunk in answer.aiter_raw():
            received += chunk


# --- what passes


@each_protocol
async def test_a_stream_passes_byte_for_byte_and_its_tokens_are_counted(protocol: str) -> None:
    async with proxied(protocol) as machine:
        answer = await machine.post()
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        (call,) = machine.double.calls
        assert answer.content == call.sent
        assert b"cat README.md" in answer.content
        await until_recorded(machine)
        (record,) = machine.budget.billed
        assert record.usage == COUNTED
        assert (record.run_id, record.task, record.protocol, record.status) == ("r1", 2, protocol, 200)
        assert record.request_id == "req_double"
        assert record.first_byte_s is not None
        assert machine.budget.reserved == {}


@each_protocol
async def test_a_whole_answer_passes_and_its_tokens_are_counted(protocol: str) -> None:
    async with proxied(protocol, Script(steps=(Say("Done."),))) as machine:
        body = request(protocol)
        body.pop("stream", None)
        path = PATHS[protocol].replace("streamGenerateContent?alt=sse", "generateContent")
        answer = await machine.post(body, path=path)
        assert answer.status_code == 200
        assert answer.content == machine.double.calls[0].sent
        assert int(answer.headers["content-length"]) == len(answer.content)
        await until_recorded(machine)
        assert machine.budget.billed[0].usage == COUNTED


@each_protocol
async def test_the_vendor_gets_the_key_and_nothing_else_of_the_machine(protocol: str) -> None:
    async with proxied(protocol) as machine:
        extra = {"cookie": "a=b", "openai-organization": "org-1", "x-stainless-os": "Linux", "forwarded": "for=1.2.3.4"}
        await machine.post(headers=extra)
        (call,) = machine.double.calls
        assert call.has_key
        assert not set(extra) & set(call.headers)
        assert call.headers["accept-encoding"] == "identity"
        assert machine.access.token.reveal() not in json.dumps(call.headers) + call.query + json.dumps(call.body)


async def test_headers_of_anthropic_pass_without_those_for_features_of_its_servers() -> None:
    async with proxied("anthropic") as machine:
        betas = "interleaved-thinking-2025-05-14, mcp-client-2025-04-04,files-api-2025-04-14,context-1m-2025-08-07"
        await machine.post(headers={"anthropic-beta": betas}, path="/v1/messages?beta=true&key=abc")
        (call,) = machine.double.calls
        assert call.headers["anthropic-beta"] == "interleaved-thinking-2025-05-14,context-1m-2025-08-07"
        assert call.query == "beta=true"


async def test_rate_limit_headers_and_request_ids_come_back_and_other_headers_do_not() -> None:
    async with proxied("anthropic") as machine:
        headers = {
            "anthropic-ratelimit-requests-remaining": "3",
            "set-cookie": "a=b",
            "x-secret": "1",
            "x-should-retry": "false",
        }
        machine.double.fault("status", status=429, headers=headers)
        answer = await machine.post()
        assert (answer.status_code, answer.headers["anthropic-ratelimit-requests-remaining"]) == (429, "3")
        assert not {"set-cookie", "x-secret", "server", "date"} & set(answer.headers)


async def test_some_paths_are_answered_without_the_vendor() -> None:
    async with proxied("anthropic") as machine:
        assert (await machine.client.head("/api/hello")).status_code == 200
        assert (await machine.client.get("/v1/models")).status_code == 403
        listed = await machine.client.get("/v1/models", headers=machine.headers)
        assert [each["id"] for each in listed.json()["data"]] == ["claude-sonnet-4-5"]
        assert machine.double.requests == []


@pytest.mark.parametrize("protocol", ["anthropic", "gemini"])
async def test_counting_tokens_costs_nothing_and_needs_no_budget(protocol: str) -> None:
    async with proxied(protocol, budget=CountingBudget(calls=0)) as machine:
        path = {"anthropic": "/v1/messages/count_tokens", "gemini": "/v1beta/models/gemini-2.5-flash:countTokens"}[protocol]
        body = request(protocol)
        body.pop("stream", None)
        body.pop("max_tokens", None)
        answer = await machine.post(body, path=path)
        assert answer.json() == {"input_tokens": 1000, "totalTokens": 1000}
        assert (machine.budget.billed, machine.budget.refusals) == ([], [])


async def test_pings_pass_while_the_model_thinks() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("pings", pings=3)
        answer = await machine.post()
        assert answer.content.count(b"event: ping") == 3
        assert answer.content == machine.double.calls[0].sent


async def test_the_first_event_arrives_while_the_vendor_is_still_writing() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("silence")
        async with machine.stream() as answer:
            chunks = answer.aiter_raw()
            assert b"message_start" in await anext(chunks)
            machine.double.released.set()
            rest = b"".join([chunk async for chunk in chunks])
        assert rest.endswith(b'"message_stop"}\n\n')


# --- budgets


@each_protocol
async def test_a_used_up_budget_is_rejected_with_its_numbers_and_the_status_at_which_programs_end(protocol: str) -> None:
    async with proxied(protocol, budget=CountingBudget(calls=1)) as machine:
        assert (await machine.post()).status_code == 200
        answer = await machine.post()
        assert answer.status_code == REFUSED[protocol]
        assert answer.headers["x-should-retry"] == "false"
        assert "2.00 USD, spent 1.00 USD" in message_of(answer)
        assert protocol not in ("responses", "chat") or answer.json()["error"]["code"] == "budget_exceeded"
        assert len(machine.double.calls) == 1
        (refusal,) = machine.budget.refusals
        assert (refusal.status, refusal.refused) == (REFUSED[protocol], message_of(answer).removeprefix("gibil: "))
        summary = await machine.proxy.close(machine.access.token)
        assert (summary.answered, summary.refused, summary.limit) == (1, 1, refusal.refused)


async def test_the_reservation_covers_the_most_that_the_call_can_cost() -> None:
    async with proxied("anthropic", max_output_tokens=5000) as machine:
        machine.double.fault("silence")
        async with machine.stream(request("anthropic", "x" * 40_000)):
            ((model, input_tokens, output_tokens),) = machine.budget.reserved.values()
            assert (model, output_tokens) == ("claude-sonnet-4-5", 5000)
            assert 13_000 < input_tokens < 15_000
            machine.double.released.set()


@each_protocol
async def test_a_call_may_write_only_what_the_budget_still_allows(protocol: str) -> None:
    async with proxied(protocol, budget=CountingBudget(most_output=2000)) as machine:
        more: dict[str, Any] = {"thinking": {"type": "enabled", "budget_tokens": 31_999}} if protocol == "anthropic" else {}
        assert (await machine.post(request(protocol, **more))).status_code == 200
        (call,) = machine.double.calls
        sent = call.body.get("generationConfig", call.body)
        names = {"max_tokens", "max_output_tokens", "max_completion_tokens", "maxOutputTokens"}
        assert [sent[name] for name in names & set(sent)] == [2000]
        assert not more or call.body["thinking"]["budget_tokens"] == 1999


async def test_a_call_whose_shorter_form_is_rejected_keeps_no_reservation() -> None:
    async with proxied("anthropic", budget=CountingBudget(most_output=2000)) as machine:
        escaped = json.dumps(request("anthropic", text="@")).replace("@", "\\u007b" * 700_000)  # counts as structure afterwards
        assert (await machine.post(escaped.encode())).status_code == 413
        assert (machine.budget.reserved, len(machine.budget.released), machine.double.calls) == ({}, 1, [])


async def test_a_call_isnt_cut_shorter_than_its_api_accepts() -> None:
    async with proxied("responses", budget=CountingBudget(most_output=5)) as machine:
        assert (await machine.post(request("responses"))).status_code == 200
        assert [call.body["max_output_tokens"] for call in machine.double.calls] == [16]


async def test_a_model_without_a_price_is_rejected() -> None:
    async with proxied("anthropic", budget=CountingBudget(unknown_models=["claude-haiku-9"])) as machine:
        answer = await machine.post(request("anthropic", model="claude-haiku-9"))
        assert (answer.status_code, "has no price" in message_of(answer)) == (400, True)
        assert machine.double.calls == []


async def test_a_model_that_the_task_may_not_use_is_rejected() -> None:
    async with proxied("anthropic") as machine:
        assert (await machine.post(request("anthropic", model="claude-haiku-4-5"))).status_code == 200
        answer = await machine.post(request("anthropic", model="claude-opus-4-1"))
        assert answer.status_code == 400
        assert "'claude-opus-4-1' isn't allowed in this task; allowed: claude-sonnet-4-5, claude-haiku-*" in message_of(answer)
        assert machine.budget.refusals[0].model == "claude-opus-4-1"
        assert len(machine.double.calls) == 1


async def test_a_model_is_allowed_by_its_exact_name_even_with_a_suffix_in_brackets() -> None:
    async with proxied("anthropic", models=["claude-sonnet-4-5[1m]"]) as machine:
        assert (await machine.post()).status_code == 200
        assert (await machine.post(request("anthropic", model="claude-sonnet-4-5[1m]"))).status_code == 200
        assert (await machine.post(request("anthropic", model="claude-sonnet-4-51"))).status_code == 400


async def test_money_is_reserved_and_spent_in_the_ledger_until_the_limit() -> None:
    ledger = MemoryLedger()
    rates = Rates(
        input=Decimal(3), output=Decimal(15), cache_read=Decimal("0.3"), cache_write_5m=Decimal(0), cache_write_1h=Decimal(0)
    )
    account = Account(run_id="r1", task=2, attempt=0, person="ada", repository_id=1, repository="ada/engine")
    limit = Limit(scope="task", measure="usd", most=Decimal("0.005"), remedy="raise `budget:`")

    async def price_of(model: str) -> Price:
        return Price(base=rates)

    budget = LedgerBudget(ledger, account, [limit], price_of)
    async with proxied("anthropic", budget=budget) as machine:
        assert (await machine.post()).status_code == 200
        assert 0 < machine.double.calls[0].body["max_tokens"] < 333  # 0.005 USD of output, less the input
        async with asyncio.timeout(patient(WITHIN_S)):
            while (await budget.spent()).calls == 0:
                await asyncio.sleep(0.005)  # the ledger's own state: there is no event to wait for
        assert (await budget.spent()).usd == Decimal("0.00321")  # 800 × 3 + 200 × 0.3 + 50 × 15, a million
        statuses = [(await machine.post(request("anthropic", "x" * 3000))).status_code for _ in range(2)]
        assert statuses[-1] == 402
        summary = await machine.proxy.close(machine.access.token)
        assert summary.limit.startswith("the budget of this task is 0.005 USD, 0.0032 USD are spent, and the next call may")
        spent = await budget.close()
        assert (spent.refused, spent.usd <= Decimal("0.005")) == (summary.refused, True)


async def test_only_the_first_rejections_of_a_task_are_stored() -> None:
    async with proxied("anthropic", budget=CountingBudget(calls=0)) as machine:
        for _ in range(60):
            assert (await machine.post()).status_code == 402
        assert len(machine.budget.refusals) == 50
        assert (await machine.proxy.close(machine.access.token)).refused == 60


# --- the vendor fails


@each_protocol
async def test_an_overloaded_vendor_is_asked_again_before_the_first_byte(protocol: str) -> None:
    async with proxied(protocol) as machine:
        machine.double.fault("status", status=429, headers={"retry-after": "0"})
        machine.double.fault("status", status=529)
        machine.double.fault("refuse")
        answer = await machine.post()
        assert answer.status_code == 200
        assert len(machine.double.calls) == 4
        await until_recorded(machine)
        assert [(record.retries, record.usage) for record in machine.budget.billed] == [(3, COUNTED)]


async def test_a_lasting_overload_is_passed_on_and_costs_nothing() -> None:
    async with proxied("anthropic", patience=Patience(retry_s=0.2, first_retry_s=0.05)) as machine:
        machine.double.fault("status", status=529, times=100, message="Overloaded")
        answer = await machine.post()
        assert (answer.status_code, answer.json()["error"]) == (529, {"type": "overloaded_error", "message": "Overloaded"})
        await until_recorded(machine)
        (record,) = machine.budget.released
        assert (record.status, record.usage) == (529, Usage())
        assert record.retries >= 1
        summary = await machine.proxy.close(machine.access.token)
        assert (summary.answered, summary.failed) == (0, 1)
        assert summary.problem == "anthropic answered 529: 'Overloaded'"


async def test_a_wait_that_the_vendor_asks_for_is_not_begun_if_it_is_too_long() -> None:
    async with proxied("chat") as machine:
        machine.double.fault("status", status=429, headers={"retry-after": "3600"})
        answer = await machine.post()
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3600")
        assert len(machine.double.calls) == 1


@pytest.mark.parametrize("status", [400, 404, 413])
async def test_other_errors_of_the_vendor_are_passed_on_at_once(status: int) -> None:
    async with proxied("responses") as machine:
        machine.double.fault("status", status=status, message="No such thing.")
        answer = await machine.post()
        assert (answer.status_code, message_of(answer)) == (status, "No such thing.")
        assert len(machine.double.calls) == 1
        await until_recorded(machine)
        assert [record.status for record in machine.budget.released] == [status]


@each_protocol
@pytest.mark.parametrize("status", [401, 403, 402])
async def test_a_rejected_key_ends_the_program_and_is_not_shown_to_it(protocol: str, status: int) -> None:
    async with proxied(protocol) as machine:
        machine.double.fault("status", status=status, message=f"Incorrect API key: {machine.double.key}", times=3)
        answer = await machine.post()
        assert answer.status_code == REFUSED[protocol]
        assert message_of(answer).startswith("gibil: the operator's key for ")
        assert machine.double.key[-8:] not in answer.text
        assert len(machine.double.calls) == 1
        assert "operator's key" in (await machine.proxy.close(machine.access.token)).problem


async def test_an_account_without_credit_is_not_asked_again() -> None:
    async with proxied("responses") as machine:
        machine.double.fault("status", status=429, code="insufficient_quota")
        answer = await machine.post()
        assert (answer.status_code, message_of(answer)) == (400, "gibil: the operator's key for openai has no credit")
        assert len(machine.double.calls) == 1


async def test_the_key_is_removed_from_errors_that_repeat_it() -> None:
    async with proxied("chat") as machine:
        machine.double.fault("status", status=400, message=f"headers: Bearer {machine.double.key}")
        assert message_of(await machine.post()) == "headers: Bearer ***"


async def test_a_vendor_that_cannot_be_reached_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with proxied("anthropic", patience=Patience(retry_s=0.05, first_retry_s=0.02), url="http://127.0.0.1:9") as machine:
        answer = await machine.post()
        assert answer.status_code == 502
        assert message_of(answer) == "gibil: 127.0.0.1 can't be reached (ConnectError)"
        await until_recorded(machine)
        assert machine.budget.released[0].usage == Usage()
        assert machine.double.key not in caplog.text


async def test_a_redirect_is_not_followed_since_it_would_carry_the_key() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("status", status=307, headers={"location": f"{machine.double.url}/v1/responses"})
        answer = await machine.post()
        assert (answer.status_code, "redirect" in message_of(answer)) == (502, True)
        assert len(machine.double.requests) == 1


@each_protocol
async def test_an_answer_that_the_vendor_cuts_is_cut_for_the_client_and_estimated(protocol: str) -> None:
    async with proxied(protocol, Script(steps=(Say("word " * 400),))) as machine:
        machine.double.fault("cut")
        received = bytearray()
        with pytest.raises(httpx.RemoteProtocolError):
            await receive(machine, received)
        assert received == machine.double.calls[0].sent != b""
        await until_recorded(machine)
        (record,) = machine.budget.billed
        assert record.usage.is_estimated
        if protocol == "anthropic":  # its first event has the counts of the input
            assert (record.usage.input, record.usage.cache_read) == (800, 200)
        else:
            assert record.usage.input > 50
        if protocol in ("chat", "gemini"):  # whose first event has all of the text
            assert 450 < record.usage.output < 600
        summary = await machine.proxy.close(machine.access.token)
        assert (summary.answered, summary.failed) == (0, 1)
        assert "closed the connection in the middle" in summary.problem


@each_protocol
async def test_a_silent_stream_ends_with_an_error_that_programs_show(protocol: str) -> None:
    async with proxied(protocol, patience=Patience(idle_s=0.3)) as machine:
        machine.double.fault("silence")
        received = bytearray()
        if protocol in ("anthropic", "responses"):
            await receive(machine, received)
        else:  # whose programs would read a clean end as the end of the answer
            with pytest.raises(httpx.RemoteProtocolError):
                await receive(machine, received)
        first, last = bytes(received).strip().split(b"\n\n")
        data = json.loads(last.split(b"data: ")[1])
        error = data["response"]["error"] if protocol == "responses" else data["error"]
        assert error["message"] == "gibil: the model's vendor sent nothing for 0.3 s in the middle of an answer"
        assert machine.double.calls[0].sent.strip() == first
        await machine.double.wait_for(lambda: machine.double.calls[0].was_left)
        await until_recorded(machine)
        assert machine.budget.billed[0].usage.is_estimated


async def test_a_vendor_that_is_silent_again_ends_the_program() -> None:
    async with proxied("anthropic", patience=Patience(idle_s=0.1)) as machine:
        machine.double.fault("silence", times=2)
        await receive(machine, bytearray())
        await receive(machine, bytearray())
        answer = await machine.post()
        assert (answer.status_code, message_of(answer)) == (402, "gibil: the model's vendor was silent 2 times")
        assert len(machine.double.calls) == 2
        assert "sent nothing for 0.1 s" in machine.proxy.summary(machine.access.token).problem


async def test_why_the_last_call_failed_is_known_until_one_is_answered() -> None:
    async with proxied("chat") as machine:

        def last() -> tuple[str, int | None, str]:
            summary = machine.proxy.summary(machine.access.token)
            return summary.problem, summary.vendor_status, summary.rejection

        machine.double.fault("status", status=404, message="no such model")
        await machine.post()
        assert last() == ("openai answered 404: 'no such model'", 404, "")
        await machine.post(request("chat", model="gpt-1"))
        assert last() == ("", None, "the model 'gpt-1' isn't allowed in this task; allowed: gpt-5.5, claude-haiku-*")
        assert (await machine.post()).status_code == 200
        assert last() == ("", None, "")
        assert machine.proxy.summary(Secret("gibil-x")).failed == 0


async def test_a_vendor_that_says_nothing_at_all_is_reported() -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, proxied("anthropic", patience=Patience(idle_s=0.2), url=url) as machine:
        answer = await machine.post()
        assert (answer.status_code, message_of(answer)) == (504, "gibil: 127.0.0.1 didn't answer within 0.2 s")
        await until_recorded(machine)
        assert machine.budget.billed[0].usage.is_estimated  # the vendor may have worked on it


async def test_an_error_in_a_stream_passes_and_is_estimated() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("error", message="Overloaded")
        answer = await machine.post()
        assert answer.content == machine.double.calls[0].sent
        assert b"overloaded_error" in answer.content
        await until_recorded(machine)
        assert machine.budget.billed[0].usage == Usage(input=800, cache_read=200, output=1, is_estimated=True)


# --- the client leaves


async def test_the_counts_of_an_answer_whose_client_left_are_still_read() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("silence")
        async with machine.stream() as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(patient(WITHIN_S)):
            while machine.proxy.connections:
                await asyncio.sleep(0.005)  # the proxy's own state: there is no event to wait for
        machine.double.released.set()
        await until_recorded(machine)
        assert machine.budget.billed[0].usage == COUNTED
        assert not machine.double.calls[0].was_left


async def test_a_call_whose_client_left_is_cancelled_after_a_while() -> None:
    async with proxied("anthropic", patience=Patience(drain_s=0.1)) as machine:
        machine.double.fault("silence")
        async with machine.stream() as answer:
            await anext(answer.aiter_raw())
        await machine.double.wait_for(lambda: machine.double.calls[0].was_left)
        await until_recorded(machine)
        (record,) = machine.budget.billed
        assert record.usage.output > 1  # what it may have written since
        assert replace(record.usage, output=1) == Usage(input=800, cache_read=200, output=1, is_estimated=True)


async def test_a_client_that_leaves_while_the_vendor_is_overloaded_pays_nothing() -> None:
    async with proxied("anthropic", patience=Patience(drain_s=0.05)) as machine:
        machine.double.fault("status", status=529, headers={"retry-after": "30"})
        calling = asyncio.create_task(machine.post())
        await machine.double.wait_for(lambda: len(machine.double.calls) == 1)
        calling.cancel()
        await until_recorded(machine)
        assert [record.usage for record in machine.budget.released] == [Usage()]


@pytest.mark.parametrize("reserves_nevertheless", [False, True])
async def test_a_client_that_leaves_while_its_call_waits_for_the_budget_pays_nothing(reserves_nevertheless: bool) -> None:
    budget = CountingBudget()
    budget.is_open.clear()
    budget.reserves_nevertheless = reserves_nevertheless
    async with proxied("anthropic", budget=budget) as machine:
        calling = asyncio.create_task(machine.post())
        await asyncio.wait_for(budget.is_asked.wait(), patient(WITHIN_S))
        calling.cancel()
        await asyncio.wait_for(budget.is_cancelled.wait(), patient(WITHIN_S))
        summary = await machine.proxy.close(machine.access.token)
        assert (machine.double.calls, budget.billed, budget.reserved) == ([], [], {})
        assert [record.usage for record in budget.released] == [Usage()] * reserves_nevertheless
        assert summary.usage == Usage()


# --- tasks


async def test_five_calls_of_one_task_are_four_at_a_time() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("silence", times=4)
        calls = [asyncio.create_task(machine.post()) for _ in range(5)]
        await machine.double.wait_for(lambda: len(machine.double.calls) == 4)
        assert len(machine.budget.reserved) == 4
        machine.double.released.set()
        assert [(await call).status_code for call in calls] == [200] * 5


async def test_a_task_cannot_queue_calls_without_end() -> None:
    async with proxied("anthropic") as machine:
        machine.double.fault("silence", times=4)
        calls = {asyncio.create_task(machine.post()) for _ in range(25)}
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED, timeout=patient(WITHIN_S))
        assert {call.result().status_code for call in done} == {429}
        machine.double.released.set()
        statuses = sorted([(await call).status_code for call in calls])
        assert statuses == [200] * 20 + [429] * 5


async def test_the_token_of_another_task_uses_that_tasks_budget_and_protocol_only() -> None:
    async with proxied("anthropic") as machine:
        other = CountingBudget()
        access = machine.proxy.open(run_id="r2", task=0, protocol="chat", provider="openai", models=["gpt-5.5"], budget=other)
        crossed = await machine.post(headers=key_headers("anthropic", access.token.reveal()))
        assert (crossed.status_code, message_of(crossed)) == (404, "gibil: this task may use the protocol 'chat' only")
        both = await machine.post(headers={"authorization": f"Bearer {access.token.reveal()}"})
        assert both.status_code == 403
        assert (machine.double.calls, machine.budget.billed, other.billed) == ([], [], [])


async def test_the_port_of_a_task_takes_no_token_of_another_task_in_progress() -> None:
    async with proxied("anthropic") as machine:
        others = CountingBudget()
        other = machine.proxy.open(
            run_id="r2", task=0, protocol="anthropic", provider="anthropic", models=[MODELS["anthropic"]], budget=others
        )
        base = f"http://127.0.0.1:{await machine.proxy.listen(other.token)}"
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30.0) as client:
            body = json.dumps(request("anthropic")).encode()

            async def ask(token: Secret) -> httpx.Response:
                headers = {**key_headers("anthropic", token.reveal()), "content-type": "application/json"}
                return await client.post(PATHS["anthropic"], content=body, headers=headers)

            stolen = await ask(machine.access.token)
            assert (stolen.status_code, message_of(stolen)) == (403, "gibil: not the token of this task")
            assert [(record.run_id, record.refused) for record in others.refusals] == [("r2", "not the token of this task")]
            assert (await ask(other.token)).status_code == 200
            assert (len(machine.double.calls), len(others.billed), machine.budget.billed) == (1, 1, [])
            assert (await machine.proxy.close(other.token)).refused == 1
            with pytest.raises(httpx.TransportError):
                await ask(other.token)
        assert (await machine.post()).status_code == 200


@each_protocol
async def test_unknown_and_dead_tokens_are_rejected(protocol: str) -> None:
    async with proxied(protocol) as machine:
        token = machine.access.token.reveal()
        for wrong in ("x", token[:-1], token + "x", token.upper(), "gibil-" + "A" * 43, machine.double.key):
            answer = await machine.client.post(PATHS[protocol], json={}, headers=key_headers(protocol, wrong))
            assert (answer.status_code, message_of(answer)) == (403, "gibil: not the token of a task in progress")
        assert (await machine.post()).status_code == 200
        await machine.proxy.close(machine.access.token)
        assert (await machine.post()).status_code == 403
        assert len(machine.double.calls) == 1


async def test_the_end_of_a_task_cuts_its_calls_and_records_them() -> None:
    async with proxied("anthropic", patience=Patience(drain_s=0.1)) as machine:
        machine.double.fault("silence")
        calling = asyncio.create_task(receive(machine, bytearray()))
        await machine.double.wait_for(lambda: bool(machine.double.calls) and machine.double.calls[0].sent != b"")
        summary = await machine.proxy.close(machine.access.token)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            await calling
        assert [record.usage.is_estimated for record in machine.budget.billed] == [True]
        assert machine.budget.reserved == {}
        assert summary.usage == machine.budget.billed[0].usage
        assert machine.double.calls[0].was_left


async def test_the_proxy_ends_with_calls_in_progress() -> None:
    budget = CountingBudget()
    async with proxied("anthropic", budget=budget, patience=Patience(drain_s=0.05)) as machine:
        machine.double.fault("silence")
        calling = asyncio.create_task(machine.post())
        await machine.double.wait_for(lambda: len(machine.double.calls) == 1)
        await machine.proxy.__aexit__(None, None, None)
        with pytest.raises(httpx.HTTPError):
            await calling
        assert (len(budget.billed), budget.reserved) == (1, {})
        await machine.proxy.__aenter__()


async def test_a_missing_key_is_reported_before_anything_is_created() -> None:
    async with ModelProxy([Upstream(name="anthropic", key=Secret("k"), url="https://api.anthropic.com")]) as proxy:
        assert (proxy.has_key("anthropic"), proxy.has_key("openai"), proxy.has_key("gemini")) == (True, False, False)
        with pytest.raises(UsageError, match="GIBIL_MODEL_KEY_OPENAI"):
            proxy.open(run_id="r", task=0, protocol="chat", provider="openai", models=["m"], budget=CountingBudget())


async def test_nothing_of_a_body_or_a_key_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with proxied("anthropic") as machine:
        machine.double.fault("cut")
        with pytest.raises(httpx.RemoteProtocolError):
            await machine.post(request("anthropic", "the private code"))
        machine.double.fault("status", status=401)
        await machine.post(request("anthropic", "the private code"))
        await machine.post(request("anthropic", "the private code", tools=[{"type": "web_search_20250305", "name": "w"}]))
        await until_recorded(machine, 2)
        token, key = machine.access.token.reveal(), machine.double.key
    ours = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx"))
    for secret in ("private code", token, key, "cat README"):
        assert secret not in caplog.text
    assert "rejected" in ours


@pytest.fixture(autouse=True)
async def nothing_is_logged_as_an_error_of_the_server(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Cut answers are the proxy's own decision, not errors of its server."""
    yield
    logged: list[Any] = [record for record in caplog.records if record.name.startswith("uvicorn")]
    assert logged == []
