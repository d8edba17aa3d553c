"""The model proxy in front of a double of the models' vendors, and a machine's program that calls it over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

import httpx

from gibil_bot.agent_task import ModelCall
from gibil_bot.agents.budget import Reservation, TaskBudget
from gibil_bot.agents.proxy.app import Patience
from gibil_bot.agents.proxy.server import ModelProxy
from gibil_bot.agents.proxy.tokens import Access
from gibil_bot.agents.proxy.upstream import Upstream
from gibil_bot.demo.model_double import ModelDouble, model_double
from gibil_bot.demo.model_script import Run, Say, Script
from gibil_bot.errors import BudgetExceeded, UnknownModelPrice
from gibil_bot.http_protocol import ServerLimits
from gibil_bot.operator_secrets import Secret

QUICK = Patience(idle_s=20.0, whole_s=20.0, retry_s=2.0, first_retry_s=0.01, drain_s=5.0)
SCRIPT = Script(steps=(Run("cat README.md"), Say("Done: the tests pass.")))
PROVIDERS = {"anthropic": "anthropic", "responses": "openai", "chat": "openai", "gemini": "gemini"}
MODELS = {"anthropic": "claude-sonnet-4-5", "responses": "gpt-5.5", "chat": "gpt-5.5", "gemini": "gemini-2.5-flash"}
PATHS = {
    "anthropic": "/v1/messages",
    "responses": "/v1/responses",
    "chat": "/v1/chat/completions",
    "gemini": "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
}
COMMAND = {"type": "object", "properties": {"command": {"type": "string"}}}


class CountingBudget:
    """A budget in memory that allows a number of calls, and keeps the records."""

    def __init__(self, calls: int = 1000, unknown_models: Sequence[str] = (), most_output: int = 10**9) -> None:
        self.calls, self.unknown_models, self.most_output = calls, unknown_models, most_output
        self.reserved: dict[Reservation, tuple[str, int, int]] = {}
        self.billed: list[ModelCall] = []
        self.released: list[ModelCall] = []
        self.refusals: list[ModelCall] = []
        self.is_asked, self.is_open, self.is_cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        """Reservations wait until it is open."""
        self.is_open.set()
        self.reserves_nevertheless = False
        """A reservation that is cancelled takes place, as if it had been written already."""
        self._begun = 0

    async def reserve(
        self, model: str, *, input_tokens: int, max_output_tokens: int, least_output_tokens: int = 1
    ) -> Reservation:
        if model in self.unknown_models:
            raise UnknownModelPrice(f"the model {model!r} has no price; the operator can set one")
        self.is_asked.set()
        try:
            await self.is_open.wait()
        except asyncio.CancelledError:
            self.is_cancelled.set()
            if not self.reserves_nevertheless:
                raise
        if self._begun >= self.calls:
            raise BudgetExceeded(f"the budget of this task is used up: 2.00 USD, spent {self._begun}.00 USD", limit="task: USD")
        self._begun += 1
        output = min(max_output_tokens, max(least_output_tokens, self.most_output))
        reservation = Reservation(str(self._begun), output)
        self.reserved[reservation] = (model, input_tokens, output)
        return reservation

    async def book(self, reservation: Reservation, call: ModelCall) -> Decimal:
        del self.reserved[reservation]
        self.billed.append(call)
        return Decimal(1)

    async def release(self, reservation: Reservation, call: ModelCall) -> None:
        del self.reserved[reservation]
        self.released.append(call)

    async def refused(self, call: ModelCall) -> None:
        self.refusals.append(call)


def request(protocol: str, text: str = "Make the tests pass.", **more: Any) -> dict[str, Any]:
    """Return a streamed request with a shell tool, as an agent's program sends it."""
    model = MODELS[protocol]
    match protocol:
        case "anthropic":
            tools: list[Any] = [{"name": "Bash", "description": "Run", "input_schema": COMMAND}]
            messages = [{"role": "user", "content": text}]
            body: dict[str, Any] = {"model": model, "max_tokens": 64_000, "stream": True, "messages": messages, "tools": tools}
        case "responses":
            tools = [{"type": "function", "name": "exec_command", "parameters": COMMAND}]
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
            body = {"model": model, "stream": True, "input": [item], "tools": tools, "instructions": "Be brief.", "store": True}
        case "chat":
            tools = [{"type": "function", "function": {"name": "bash", "parameters": COMMAND}}]
            body = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}], "tools": tools}
        case _:
            tools = [{"functionDeclarations": [{"name": "run_shell_command", "parameters": COMMAND}]}]
            body = {"contents": [{"role": "user", "parts": [{"text": text}]}], "tools": tools}
    return body | more


def key_headers(protocol: str, token: str) -> dict[str, str]:
    match protocol:
        case "anthropic":
            return {"x-api-key": token, "anthropic-version": "2023-06-01"}
        case "gemini":
            return {"x-goog-api-key": token}
        case _:
            return {"authorization": f"Bearer {token}"}


@dataclass(kw_only=True)
class Machine:
    """A task's machine: it knows the proxy's port and its token."""

    protocol: str
    double: ModelDouble
    proxy: ModelProxy
    access: Access
    budget: CountingBudget
    client: httpx.AsyncClient

    @property
    def headers(self) -> dict[str, str]:
        return key_headers(self.protocol, self.access.token.reveal())

    async def post(self, body: object = None, *, path: str = "", headers: dict[str, str] | None = None) -> httpx.Response:
        """Call the model; a body that isn't bytes is sent as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(request(self.protocol) if body is None else body).encode()
        sent = {**self.headers, "content-type": "application/json", **(headers or {})}
        return await self.client.post(path or PATHS[self.protocol], content=content, headers=sent)

    def stream(self, body: object = None) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        sent = {**self.headers, "content-type": "application/json"}
        content = json.dumps(request(self.protocol) if body is None else body).encode()
        return self.client.stream("POST", PATHS[self.protocol], content=content, headers=sent)


@contextlib.asynccontextmanager
async def proxied(
    protocol: str = "anthropic",
    *scripts: Script,
    budget: TaskBudget | None = None,
    patience: Patience = QUICK,
    limits: ServerLimits | None = None,
    url: str | None = None,
    **options: Any,
) -> AsyncIterator[Machine]:
    """Yield a machine whose task may call the double through the proxy."""
    budget = CountingBudget() if budget is None else budget
    async with model_double(*(scripts or (SCRIPT,))) as double:
        upstreams = [
            Upstream(name=name, key=Secret(double.key), url=double.url if url is None else url)
            for name in ("anthropic", "openai", "gemini")
        ]
        arguments: dict[str, Any] = {} if limits is None else {"limits": limits}
        async with ModelProxy(upstreams, patience=patience, **arguments) as proxy:
            opened = {"protocol": protocol, "provider": PROVIDERS[protocol], "models": [MODELS[protocol], "claude-haiku-*"]}
            access = proxy.open(run_id="r1", task=2, budget=budget, **(opened | options))
            base = f"http://127.0.0.1:{proxy.port}"
            async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30.0) as client:
                counting = cast(CountingBudget, budget)  # tests that pass another one don't look at this
                yield Machine(protocol=protocol, double=double, proxy=proxy, access=access, budget=counting, client=client)
            double.released.set()
