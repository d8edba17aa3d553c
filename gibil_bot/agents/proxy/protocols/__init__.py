"""The APIs of models that the proxy speaks: one module for each protocol, pure.

What a request may contain is an allow-list: fields that a module doesn't know aren't passed on, and tools, items and sources
that a vendor would run or fetch itself are rejected, because they cost extra and are a way out of the machine.
"""

from __future__ import annotations

from gibil_bot.agents.proxy.protocols import anthropic, chat, gemini, responses
from gibil_bot.agents.proxy.protocols.base import ModelProtocol

PROTOCOLS: dict[str, ModelProtocol] = {
    protocol.name: protocol for protocol in (anthropic.Anthropic(), responses.Responses(), chat.Chat(), gemini.Gemini())
}
