"""A machine is idle if no requested command is running and PID 1 is the only process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

from gibil_bot.providers.local.init_client import InitClient
from gibil_bot.providers.local.usage_poller import has_processes
from tests.doubles.patience import patient


class Command:
    def __init__(self) -> None:
        self.ended = asyncio.Event()

    def descriptors(self) -> list[int]:
        return []

    def on_terminal(self, master: int) -> None:
        raise AssertionError

    def on_exit(self, status: int) -> None:
        self.ended.set()

    def on_refused(self, reason: str) -> None:
        raise AssertionError(reason)


async def test_a_command_counts_as_activity_until_its_end_is_reported() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid1 = InitClient(ours, lambda: None)
    with theirs:
        assert not pid1.has_commands
        assert not pid1.spawned.is_set()
        command = Command()
        number = pid1.spawn(command, ["true"], {})
        assert pid1.spawned.is_set()
        assert pid1.has_commands
        theirs.send(json.dumps({"exit": number, "status": 0}).encode())
        async with asyncio.timeout(patient(10)):
            await command.ended.wait()
        assert not pid1.has_commands
        pid1.close()


def test_a_process_with_and_without_children() -> None:
    with subprocess.Popen(["sh", "-c", "read line; sleep 600 & echo started; wait"], stdin=-1, stdout=-1) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        try:
            assert not has_processes(parent.pid)
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == b"started\n"
            assert has_processes(parent.pid)
            (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)
        finally:
            parent.kill()
    assert not has_processes(parent.pid)
