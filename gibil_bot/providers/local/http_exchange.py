"""One HTTP request and its response through the egress proxy: read strictly, forwarded exactly, and nothing after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gibil_bot.providers.local.egress_policy import endpoint
from gibil_bot.providers.local.error_response import http_error, send_last
from gibil_bot.providers.local.outbound import Rejected
from gibil_bot.providers.local.proxy_request import MAX_HEAD, BadRequest, ProxyRequest, close_after
from gibil_bot.providers.local.relay import BLOCK, Streams, pump, reset


async def read_request(reader: asyncio.StreamReader, head_s: float, parse: Callable[[bytes], ProxyRequest]) -> ProxyRequest:
    """Read the head of a request and parse it. Raises Rejected."""
    try:
        async with asyncio.timeout(head_s):
            return parse(await reader.readuntil(b"\r\n\r\n"))
    except TimeoutError:
        raise Rejected(408, f"no complete request within {head_s:g} s") from None
    except asyncio.LimitOverrunError:
        raise Rejected(431, f"the request's head is longer than {MAX_HEAD // 1024} KiB") from None
    except asyncio.IncompleteReadError:
        raise Rejected(400, "the request ended too early") from None
    except BadRequest as error:
        raise Rejected(400, str(error)) from None


async def exchange(request: ProxyRequest, client: Streams, server: Streams, idle_s: float) -> None:
    """Forward one request with its body and one response. What the client sends after that isn't read."""
    loop = asyncio.get_running_loop()
    server[1].write(request.head)
    answered = False
    try:
        async with asyncio.timeout(idle_s) as idle, asyncio.TaskGroup() as tasks:

            def alive() -> None:
                idle.reschedule(loop.time() + idle_s)

            # A server may answer before it has read the body (413): the response ends the exchange, not the request.
            sending = tasks.create_task(_send_body(request.length, client[0], server[1], alive))
            while True:
                status, head = close_after(await server[0].readuntil(b"\r\n\r\n"))
                client[1].write(head)
                answered = True
                if status >= 200:
                    break
            await pump(server[0], client[1], alive)
            sending.cancel()
    except* (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, BadRequest):
        if answered:
            reset(client[1])  # an incomplete response must not look complete
        else:
            refused = Rejected(502, f"{endpoint(request.host, request.port)} sent an invalid response")
            await send_last(client, http_error(refused))


async def _send_body(
    length: int | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: Callable[[], None]
) -> None:
    """Forward exactly the body: `length` bytes, or the chunks and their trailer (RFC 9112 section 7.1)."""
    if length is not None:
        await _send(length, reader, writer, alive)
        return
    while True:
        line = await reader.readuntil(b"\r\n")
        size_text = line[:-2].partition(b";")[0].rstrip(b" \t")
        if not size_text or len(size_text) > 16 or size_text.strip(b"0123456789abcdefABCDEF"):
            raise BadRequest("a malformed chunk")
        writer.write(b"%s\r\n" % size_text)
        size = int(size_text, 16)
        if size == 0:
            break
        await _send(size, reader, writer, alive)
        if await reader.readexactly(2) != b"\r\n":
            raise BadRequest("a malformed chunk")
        writer.write(b"\r\n")
    trailer_size = 0
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        trailer_size += len(line)
        if trailer_size > MAX_HEAD:
            raise BadRequest("a trailer without end")
    writer.write(b"\r\n")  # the trailer itself is dropped, since nothing depends on it
    await writer.drain()


async def _send(size: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: Callable[[], None]) -> None:
    while size:
        data = await reader.read(min(size, BLOCK))
        if not data:
            raise BadRequest("the body ended too early")
        size -= len(data)
        alive()
        writer.write(data)
        await writer.drain()
