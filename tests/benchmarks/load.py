"""The load generator: many clients that each post a signed delivery, wait for the response, and post the next one.

    python -m tests.benchmarks.load --port 8080 --path /webhook --secret-env SECRET --clients 50 --deliveries 5000

It is a separate process with prebuilt requests and no HTTP library, so that only the server is measured. The same for
every server. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import time
import uuid

import uvloop

from tests.benchmarks.payload import EVENT, payload

ANSWER_WITHIN_S = 60.0


class Client(asyncio.Protocol):
    """One keep-alive connection, which sends heads from `heads` until none is left."""

    def __init__(self, heads: list[bytes], body: bytes, took: list[float], statuses: dict[int, int]) -> None:
        self._heads = heads
        self._body = body
        self._took = took
        self._statuses = statuses
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def post(self) -> None:
        assert self._transport is not None
        if not self._heads:
            self._transport.close()
            return
        self._received = b""
        self._sent_at = time.perf_counter()
        self._transport.writelines((self._heads.pop(), self._body))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not _is_whole(self._received):
            return
        self._took.append(time.perf_counter() - self._sent_at)
        status = int(self._received[9:12])
        self._statuses[status] = self._statuses.get(status, 0) + 1
        self.post()

    def connection_lost(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is not None or self._heads:
            self.done.set_exception(ConnectionError(f"the server closed a connection: {error or 'end of file'}"))
        else:
            self.done.set_result(None)


def _is_whole(response: bytes) -> bool:
    head, found, body = response.partition(b"\r\n\r\n")
    if not found:
        return False
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
        if line.startswith(b"transfer-encoding:"):
            return body.endswith(b"0\r\n\r\n")
    return True


def request_heads(path: str, secret: str, body: bytes, count: int) -> list[bytes]:
    """Return the headers of `count` deliveries of this body, as GitHub sends them, each with a different GUID."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return [
        (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\nUser-Agent: GitHub-Hookshot/abcdef0\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nX-GitHub-Delivery: {uuid.uuid4()}\r\n"
            f"X-GitHub-Event: {EVENT}\r\nX-GitHub-Hook-ID: 292430182\r\nX-GitHub-Hook-Installation-Target-ID: 79929171\r\n"
            "X-GitHub-Hook-Installation-Target-Type: integration\r\n"
            f"X-Hub-Signature-256: sha256={signature}\r\n\r\n"
        ).encode()
        for _ in range(count)
    ]


async def post_all(port: int, path: str, secret: str, clients: int, deliveries: int) -> dict[str, object]:
    body = payload()
    heads = request_heads(path, secret, body, deliveries)
    took: list[float] = []
    statuses: dict[int, int] = {}
    loop = asyncio.get_running_loop()
    connections = [
        (await loop.create_connection(lambda: Client(heads, body, took, statuses), "127.0.0.1", port))[1]
        for _ in range(clients)
    ]
    cpu, start = time.process_time(), time.perf_counter()
    for connection in connections:
        connection.post()
    async with asyncio.timeout(ANSWER_WITHIN_S):
        await asyncio.gather(*(connection.done for connection in connections))
    elapsed = time.perf_counter() - start
    took.sort()
    return {
        "per_s": deliveries / elapsed,
        "median_ms": took[len(took) // 2] * 1000,
        "p99_ms": took[len(took) * 99 // 100] * 1000,
        "statuses": {str(status): count for status, count in statuses.items()},
        "client_busy": (time.process_time() - cpu) / elapsed,
        "body_bytes": len(body),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--secret-env", required=True, help="name of the variable that holds the webhook's secret")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--deliveries", type=int, default=5000)
    it = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer = runner.run(post_all(it.port, it.path, os.environ[it.secret_env], it.clients, it.deliveries))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
