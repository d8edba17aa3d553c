"""Imports everything that a `gibil` command may need, and forks for each request: the server side of prefork.py.

    python -P forker.py CHANNEL LISTENER

Both are descriptors of sockets: one to the process that started it, with which it ends, and one that accepts connections.
A request is one packet of JSON with attached descriptors: a pipe for the wait status, the folder, and the standard streams
that are not closed. The response is the pid, with a descriptor of the process.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import time
from typing import Any

LATE = (
    *("asyncssh", "githubkit", "hcloud", "uvicorn", "uvloop", "httptools"),
    *("httpcore", "anyio._backends._asyncio", "anyio._core._sockets", "anyio._core._streams", "encodings.idna"),
)
"""Modules that libraries and commands import only when they need them."""
NOT_FOR_COMMANDS = ("gibil_bot.__main__", "gibil_bot.demo.project")


def import_everything() -> None:
    import gibil_bot

    for module in pkgutil.walk_packages(gibil_bot.__path__, "gibil_bot."):
        if not module.name.startswith(NOT_FOR_COMMANDS):
            importlib.import_module(module.name)
    for name in LATE:
        importlib.import_module(name)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: it is meant for the forked processes
    first, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    import_everything()
    import gibil_bot.__main__

    gc.collect()
    gc.freeze()
    living: dict[int, tuple[int, int]] = {}  # process descriptor → its pid, the pipe for its status
    channels = {first.fileno(): first}
    ready = select.poll()
    ready.register(first, select.POLLIN)
    ready.register(listener, select.POLLIN)
    while True:
        for fd, _ in ready.poll():
            if fd == listener.fileno():
                another, _address = listener.accept()
                channels[another.fileno()] = another
                ready.register(another, select.POLLIN)
            elif fd in living:
                pid, status = living.pop(fd)
                ready.unregister(fd)
                os.close(fd)
                status_code = os.waitpid(pid, 0)[1]
                with contextlib.suppress(BrokenPipeError):  # no process waits for it
                    os.write(status, str(status_code).encode())
                os.close(status)
            else:
                data, passed, _, _ = socket.recv_fds(channels[fd], 1 << 20, 5)
                if not data:
                    if channels[fd] is first:
                        os._exit(0)
                    ready.unregister(fd)
                    channels.pop(fd).close()
                    continue
                pid = os.fork()
                if pid == 0:
                    for each in (listener, *channels.values()):
                        each.detach()
                    become(json.loads(data), passed)
                    gibil_bot.__main__.main()
                    sys.exit()
                process = os.pidfd_open(pid)
                living[process] = (pid, passed[0])
                for each_fd in passed[1:]:
                    os.close(each_fd)
                ready.register(process, select.POLLIN)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [process]))]
                with contextlib.suppress(BrokenPipeError):
                    channels[fd].sendmsg([str(pid).encode()], rights)


def become(request: dict[str, Any], passed: list[int]) -> None:
    """Turn this process into the requested one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["group"] is not None:
        os.setpgid(0, request["group"])
    _status, folder, *streams = passed
    os.fchdir(folder)
    # Move them first: one of these may have the number of a standard stream.
    streams = [os.dup(fd) if fd > 2 else fd for fd in streams]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if request["streams"][number]:
            os.dup2(streams.pop(0), number)
        else:
            os.close(number)
            setattr(sys, name, None)  # as Python does at its start
    os.closerange(3, 1 << 20)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    sys.argv = ["gibil", *request["arguments"]]


if __name__ == "__main__":
    main()
