"""Detached jobs in the daemon: PID 1 starts them, and their exit statuses are stored here as long as the machine exists."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os

from gibil_bot.errors import GibilError
from gibil_bot.providers.local.init_client import InitClient
from gibil_bot.scripts.commands import check_job_id

MOST_JOBS = 10_000
_REPLY_BYTES = 4096


class Jobs:
    """All detached jobs of one machine."""

    def __init__(self, init_client: InitClient) -> None:
        self._init_client = init_client
        self._jobs: dict[str, _DetachedJob] = {}

    def start(self, request: bytes) -> asyncio.Future[bytes]:
        """Start a job, unless it was started before. The result resolves to the line that reports the start."""
        reply: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            spec = json.loads(request)
            job_id = spec["folder"]
            check_job_id(job_id)
            merged = bool(spec["merged"])
        except (ValueError, KeyError, TypeError, GibilError):
            reply.set_result(b"gibil:failed invalid job request\n")
            return reply
        if job_id in self._jobs:
            reply.set_result(b"gibil:again\n")
        elif len(self._jobs) >= MOST_JOBS:
            reply.set_result(b"gibil:failed the machine has had too many jobs\n")
        else:
            job = self._jobs[job_id] = _DetachedJob(request, reply)
            reply.add_done_callback(lambda reply: self._forget_unless_started(job_id, reply.result()))
            try:
                self._init_client.start_job(job, merged=merged)
            except GibilError as error:
                job.fail(error.message)
        return reply

    def ended(self, job_id: str) -> asyncio.Future[int] | None:
        """Return a future of its exit status, 128 + N for signal N; None for a job that wasn't started."""
        job = self._jobs.get(job_id)
        return job.status if job is not None else None

    def _forget_unless_started(self, job_id: str, reply: bytes) -> None:
        if not reply.startswith((b"gibil:started", b"gibil:again")):
            del self._jobs[job_id]


class _DetachedJob:
    """Implements init_client.Command."""

    def __init__(self, spec: bytes, reply: asyncio.Future[bytes]) -> None:
        self._loop = asyncio.get_running_loop()
        self._spec = spec
        self._reply = reply
        self._received = bytearray()
        self._reply_pipe: int | None = None
        self.status: asyncio.Future[int] = self._loop.create_future()

    def descriptors(self) -> list[int]:
        self._close()  # of a request that could not be sent
        spec = os.memfd_create("gibil-job", os.MFD_CLOEXEC)
        try:
            os.write(spec, self._spec)
            self._reply_pipe, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            os.close(spec)
            raise
        self._loop.add_reader(self._reply_pipe, self._on_readable)
        return [spec, theirs]

    def on_terminal(self, master: int) -> None:
        os.close(master)

    def on_exit(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status if status >= 0 else 128 - status)

    def on_refused(self, reason: str) -> None:
        """As Command.on_refused."""
        self._close()
        self.fail(reason)
        self.on_exit(254)

    def fail(self, reason: str) -> None:
        if not self._reply.done():
            self._reply.set_result(f"gibil:failed {reason}\n".encode())

    def _on_readable(self) -> None:
        assert self._reply_pipe is not None
        try:
            data = os.read(self._reply_pipe, _REPLY_BYTES)
        except BlockingIOError:
            return
        self._received += data[: _REPLY_BYTES - len(self._received)]
        if not data:
            self._close()
            self._spec = b""
            if not self._reply.done():
                self._reply.set_result(bytes(self._received) or b"gibil:failed the process that starts it was killed\n")

    def _close(self) -> None:
        if self._reply_pipe is not None:
            self._loop.remove_reader(self._reply_pipe)
            with contextlib.suppress(OSError):
                os.close(self._reply_pipe)
            self._reply_pipe = None
