"""A host with neighbours: two network namespaces, a link between them, and an egress proxy on the host's side.

Run it as a program in a new network namespace (`unshare --net`, as an ordinary user with `--user --map-root-user`). It reads
commands from stdin, one JSON list per line, and answers each with one JSON value:
["ip", ARGUMENTS] and ["neighbour", ARGUMENTS] run the ip program on the host's and the other side; ["ask", ADDRESS, RULE…]
returns the status of `CONNECT ADDRESS` through a proxy with these rules, and whether the server at that address was reached.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from typing import Any

from gibil_bot.providers.local import syscalls as sc
from tests.doubles.gatekit import Streams, dial, egress_proxy

PORT = 8080


class Neighbourhood:
    def __init__(self, neighbour: int) -> None:
        self._neighbour = str(neighbour)
        self._ports: dict[tuple[str, ...], int] = {}
        self._serving: list[asyncio.Task[None]] = []

    async def do(self, what: str, *arguments: str) -> Any:
        if what == "ask":
            return await self.ask(*arguments)
        where = ["nsenter", "--net=/proc/" + self._neighbour + "/ns/net"] if what == "neighbour" else []
        subprocess.run([*where, "ip", *arguments[0].split()], check=True)
        return None

    async def ask(self, address: str, *rules: str) -> list[Any]:
        if rules not in self._ports:  # all queries share a proxy, like those of one machine
            listener = socket.create_server(("127.0.0.1", 0))
            self._ports[rules] = listener.getsockname()[1]
            self._serving.append(asyncio.create_task(egress_proxy(rules, connect_s=5.0).serve(listener)))
        async with dial(self._ports[rules]) as (reader, writer):
            writer.write(f"CONNECT {address}:{PORT} HTTP/1.1\r\n\r\n".encode())
            status = (await reader.readuntil(b"\r\n")).decode().split(" ", 2)
            reached = status[1] == "200" and b"the neighbour" in await reader.read()
            return [int(status[1]), status[2].strip(), reached]


async def _greet(reader: Streams, writer: asyncio.StreamWriter) -> None:
    writer.write(b"the neighbour's admin page")
    writer.close()


async def _serve_everywhere() -> None:
    await asyncio.start_server(_greet, "::", PORT)  # type: ignore[arg-type]
    await asyncio.start_server(_greet, "0.0.0.0", PORT)  # type: ignore[arg-type]


async def _neighbour(ready: int) -> None:
    await _serve_everywhere()
    os.write(ready, b"1")
    await asyncio.Event().wait()


async def _main(neighbour: int) -> None:
    await _serve_everywhere()  # services of the host itself, on its own addresses
    it = Neighbourhood(neighbour)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await it.do(*json.loads(line))), flush=True)


def main() -> None:
    sc.loopback_up()
    ready_read, ready_write = os.pipe()
    child = os.fork()
    if child == 0:
        sc.prctl(sc.PR_SET_PDEATHSIG, 9)
        sc.unshare(sc.CLONE_NEWNET)
        sc.loopback_up()
        asyncio.run(_neighbour(ready_write))
    os.read(ready_read, 1)
    for arguments in (
        f"link add lan type veth peer name lan netns {child}",
        "link set lan up",
        "address add 9.9.9.1/24 dev lan",
        "address add 2a02:8109:1:1::1/64 dev lan nodad",
    ):
        subprocess.run(["ip", *arguments.split()], check=True)
    for arguments in ("link set lan up", "address add 9.9.9.2/24 dev lan", "address add 2a02:8109:1:1::2/64 dev lan nodad"):
        subprocess.run(["nsenter", f"--net=/proc/{child}/ns/net", "ip", *arguments.split()], check=True)
    try:
        asyncio.run(_main(child))
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
