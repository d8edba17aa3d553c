"""Control protocol between providers and the daemon: one request and one answer per connection, each a line of JSON.

Every request can be repeated safely. A client that created a tethered machine keeps its connection open: the machine is
destroyed when the connection closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from datetime import datetime

import msgspec

from gibil_bot.errors import ConfigurationError, GibilError, MachineNotFound, NameTaken, ProviderError, Unavailable, UsageError
from gibil_bot.model import Capabilities, LayerInfo, Machine, MachineSpec, Refusals, Usage

LINE_BYTES = 1024 * 1024


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A request. `verb`: `create get list extend destroy sweep probe usage refusals restrict_egress lift_egress cause
    layers save_layer delete_layer branch_layer kept_layers delete_template ping quit`.
    """

    verb: str
    spec: MachineSpec | None = None
    name: str = ""
    owner: str | None = None
    expires_at: datetime | None = None
    allow: tuple[str, ...] | None = None
    """For `restrict_egress`: see egress_policy.parse_rules."""
    layer: str = ""
    template: str = ""
    """Its name; for `branch_layer` empty if the layer is for forks."""
    stop: bool = False
    """For `branch_layer`: end the machine's processes."""
    since: float = 0.0
    """For `refusals`: a moment of time.monotonic()."""


class Cause(msgspec.Struct, kw_only=True, frozen=True):
    """Why the daemon or the kernel ended a machine or processes on it."""

    text: str
    """For people, without the machine's name."""
    at: datetime


class Problem(msgspec.Struct, kw_only=True):
    """A GibilError on the wire. `kind`: the name of its class."""

    kind: str
    message: str
    remedies: tuple[str, ...] = ()
    code: str | None = None
    """Set if it differs from the code of the kind."""


class Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer to any request; each verb sets its own fields, or `problem`."""

    problem: Problem | None = None
    machine: Machine | None = None
    machines: list[Machine] = msgspec.field(default_factory=list)
    names: list[str] = msgspec.field(default_factory=list)
    capabilities: Capabilities | None = None
    usage: Usage | None = None
    refusals: Refusals | None = None
    cause: Cause | None = None
    """The last one"""
    causes: list[Cause] = msgspec.field(default_factory=list)
    """All of them, the last first; empty from a daemon of an earlier version."""
    layers: list[LayerInfo] = msgspec.field(default_factory=list)
    done: bool = False
    """`destroy`, `delete_layer`, `delete_template`: it existed; `create`: it was created by this request; `quit`: the daemon
    ends.
    """
    count: int = 0


_KINDS: dict[str, type[GibilError]] = {
    kind.__name__: kind for kind in (ProviderError, Unavailable, MachineNotFound, NameTaken, UsageError)
}


def problem_of(error: GibilError) -> Problem:
    kind = type(error).__name__
    if isinstance(error, ConfigurationError):
        kind = "ProviderError"  # a rule of the egress list: the client has checked its settings itself
    return Problem(
        kind=kind if kind in _KINDS else "ProviderError",
        message=error.message,
        remedies=error.remedies if isinstance(error, Unavailable) else (),
        code=error.code if kind in _KINDS and error.code != type(error).code else None,
    )


def error_of(problem: Problem) -> GibilError:
    if problem.kind == "Unavailable":
        return Unavailable(problem.message, problem.remedies)
    error = _KINDS.get(problem.kind, ProviderError)(problem.message)
    error.code = problem.code or error.code
    return error


def peer_uid(connection: socket.socket) -> int:
    """Return the user id of the process at the other end when it connected or listened (SO_PEERCRED, unix(7))."""
    record = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", record)[1])


class Unanswered(Exception):
    """The daemon isn't running, or ended before it answered. The caller may start one and ask again."""


class ControlConnection:
    """An open connection to the daemon."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, path: str) -> ControlConnection:
        """Connect to the daemon's socket. Raises Unanswered, and ProviderError if another user's process listens there."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            await asyncio.get_running_loop().sock_connect(connection, path)
            if peer_uid(connection) != os.geteuid():
                raise ProviderError(f"the socket {path} belongs to another user's process; delete its folder")
            return cls(*await asyncio.open_unix_connection(sock=connection, limit=LINE_BYTES))
        except OSError as error:
            connection.close()
            raise Unanswered(str(error)) from error
        except BaseException:
            connection.close()
            raise

    async def ask(self, request: Request) -> Answer:
        """Send a request and return the answer. Raises Unanswered, and the error that the daemon answers with."""
        try:
            self._writer.write(msgspec.json.encode(request) + b"\n")
            await self._writer.drain()
            line = await self._reader.readline()
        except OSError as error:
            raise Unanswered(str(error)) from error
        if not line.endswith(b"\n"):
            raise Unanswered("it closed the connection")
        answer = msgspec.json.decode(line, type=Answer)
        if answer.problem:
            raise error_of(answer.problem)
        return answer

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
