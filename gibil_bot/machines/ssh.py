"""The way onto a machine: one SSH connection with a pinned host key, short commands, detached jobs, files.

OpenSSH's server kills nothing when a channel is closed (measured: not on close, not on a signal request), so every command
carries a tag in its environment and is killed by a second command that looks for the tag. What happens on the far side is
the text in remote_scripts.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import asyncssh

from gibil_bot.errors import JobNotStarted, MachineLost, SSHError, UsageError
from gibil_bot.machines import remote_scripts
from gibil_bot.machines.channel import Channel, OnData
from gibil_bot.machines.follow import Follow
from gibil_bot.model import Chunk, Endpoint, Exit, Job, Result

_WINDOW = 16 * 1024 * 1024
_PACKET = 128 * 1024
_UPLOAD_BLOCK = 256 * 1024
_CLEANUP_S = 15.0
_START_S = 60.0
_UNATTACHED_S = 5.0
"""How long the output of a job that was just started is kept flowing for an attach that is about to come."""
_REATTACHES = 5
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


async def connect(endpoint: Endpoint, client_key: str, *, timeout_s: float = 30.0) -> SSHShell:
    """Log in with a private key (OpenSSH PEM text); the host has to show `endpoint.host_key`, checked before we log in.

    While nothing answers, it is tried again until the time is up: machines boot. Raises SSHError when it is another host
    or does not let us in, MachineLost when it does not answer.
    """
    where = endpoint.unix_path or f"{endpoint.host}:{endpoint.port}"
    try:
        options = _options(endpoint, client_key)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise SSHError(f"cannot connect to {where}: a key is unreadable: {error}") from None
    deadline = time.monotonic() + timeout_s
    # A machine's socket file is there as soon as the machine is: if not, waiting longer brings nothing.
    patience = deadline if endpoint.unix_path is None else min(deadline, time.monotonic() + 2.0)
    while True:
        try:
            async with asyncio.timeout(max(0.01, deadline - time.monotonic())):
                return SSHShell(await _connect_once(endpoint, options), where)
        except asyncssh.HostKeyNotVerifiable:
            raise SSHError(f"{where} does not show the host key that its machine was given: it is another host") from None
        except asyncssh.PermissionDenied:
            raise SSHError(f"{where} does not accept our key for user {endpoint.username}") from None
        except asyncssh.KeyExchangeFailed as error:
            raise SSHError(f"{where}: no common way to encrypt: {error.reason}") from None
        except (OSError, asyncssh.Error) as error:
            if time.monotonic() + 0.2 > patience:
                raise MachineLost(f"{where} does not answer SSH: {_reason(error)}") from None
        await asyncio.sleep(0.1)


class SSHShell:
    """ports.Shell over asyncssh."""

    def __init__(self, connection: asyncssh.SSHClientConnection, where: str) -> None:
        self._connection = connection
        self._where = where
        self._background: set[asyncio.Task[None]] = set()
        self._channels = 0
        """Open, or about to be."""
        self._channel_freed = asyncio.Event()
        self._kept: dict[str, Follow] = {}
        sock = connection.get_extra_info("socket")
        self._nagle_socket = sock if _QUICKACK is not None and sock is not None and sock.family != socket.AF_UNIX else None
        """Until the first command has started, and on TCP only."""

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], None] | None = None,
    ) -> Result:
        """See ports.Shell. An exception of `on_output` is raised at the end, it does not disturb the connection."""
        tag = f"run-{secrets.token_hex(8)}"
        command = remote_scripts.run_command(tag, script, with_env=bool(env))
        if env:
            stdin = remote_scripts.export_line(env) + stdin
        try:
            async with asyncio.timeout(timeout_s):
                return await self._execute(command, stdin, on_output)
        except (TimeoutError, asyncio.CancelledError):
            await self._see_through(self._kill_run(tag))
            raise

    async def start(self, job: Job) -> None:
        """See ports.Shell. The same command goes on to send the output, for the attach that usually follows."""
        command, stdin = remote_scripts.start_command(job)
        follow = Follow("stdout", 0)
        follow.separate = not job.merged
        try:
            async with asyncio.timeout(_START_S):
                follow.channel = await self._open(command, follow.on_data)
                for block in _blocks(stdin):
                    await follow.channel.send(block)
                follow.channel.end_input()
                follow.channel.ended.add_done_callback(lambda _: follow.wake.set())
                while follow.started is None and not follow.failed and not follow.channel.ended.done():
                    await follow.wake.wait()
                    follow.wake.clear()
        except TimeoutError:
            follow.close()
            raise MachineLost(f"{self._where} did not start job {job.id} within {_START_S:g} s") from None
        except BaseException:
            follow.close()
            raise
        if follow.started:
            follow.wake.set()  # what came together with the handshake
            self._keep(job.id, follow)
            return
        follow.close()
        if follow.started is None and follow.failed:
            raise JobNotStarted(f"The machine could not start job {job.id}: {follow.failed}")
        if follow.started is None:
            raise MachineLost(f"{self._where} could not start job {job.id}: the connection ended")

    async def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[Chunk | Exit]:
        """See ports.Shell."""
        remote_scripts.check_job_id(job_id)
        kept = self._kept.pop(job_id, None)
        if kept is not None and (stdout_from > 0 or kept.broken_off):
            kept.close()
            kept = None
        wake = asyncio.Event()
        follows = [kept or await self._follow(job_id, "stdout", stdout_from)]
        reattaches = 0
        try:
            while True:
                for index, follow in enumerate(follows):
                    if follow.wake is not wake:
                        follow.wake = wake
                        assert follow.channel is not None
                        follow.channel.ended.add_done_callback(lambda _: wake.set())
                        wake.set()
                    if data := follow.take():
                        reattaches = 0
                        yield Chunk(data, follow.offset, follow.stream)
                    if follow.broken_off and not follow.complete:
                        self._raise_if_gone(job_id, follow)
                        reattaches += 1
                        if reattaches > _REATTACHES:
                            raise MachineLost(f"the output of job {job_id} on {self._where} breaks off again and again")
                        follows[index] = await self._follow(job_id, follow.stream, follow.offset)
                        wake.set()
                if follows[0].separate and len(follows) == 1:
                    follows.append(await self._follow(job_id, "stderr", stderr_from))
                    wake.set()
                if all(follow.complete for follow in follows):
                    assert follows[0].exit_status is not None
                    yield Exit(follows[0].exit_status)
                    return
                await wake.wait()
                wake.clear()
        finally:
            for follow in follows:
                follow.close()

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        """See ports.Shell. An unknown job is not a failure. Raises SSHError when something of it does not die."""
        try:
            async with asyncio.timeout(grace_s + _CLEANUP_S):
                result = await self._execute(remote_scripts.kill_job_command(job_id, grace_s))
        except TimeoutError:
            raise SSHError(f"job {job_id} on {self._where} could not be killed in time") from None
        if result.exit_status != 0:
            raise SSHError(f"something of job {job_id} on {self._where} does not die; burn the machine")

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        """See ports.Shell. The folder has to exist. Raises SSHError when the machine cannot store it (no folder, disk full)."""
        if not path or "\0" in path:
            raise UsageError(f"{path!r} is not a path on a machine")
        tag = f"gibil-{secrets.token_hex(8)}"
        try:
            if isinstance(content, bytes):
                result = await self._upload(remote_scripts.put_command(path, mode, tag, len(content)), _slices(content))
                self._check_stored(path, result)
                return
            sent = 0

            async def counted() -> AsyncIterator[bytes]:
                nonlocal sent
                async for block in content:
                    sent += len(block)
                    yield block

            # Only we know that all was sent, so the file is moved into place by a command of its own.
            result = await self._upload(remote_scripts.put_command(path, mode, tag, None), counted())
            self._check_stored(path, result)
            if int(result.stdout) != sent:
                raise MachineLost(f"not all of {path} arrived on {self._where}: the connection ended")
            result = await self._execute(remote_scripts.put_commit_command(path, mode, tag))
            self._check_stored(path, result)
        except SSHError:
            raise  # the command has cleaned up itself
        except BaseException:
            await self._see_through(self._try_execute(remote_scripts.put_abandon_command(path, tag)))
            raise

    async def close(self) -> None:
        """See ports.Shell."""
        for job_id in list(self._kept):
            self._kept.pop(job_id).close()
        if self._background:
            await asyncio.wait(self._background, timeout=_CLEANUP_S)
        self._connection.close()
        try:
            async with asyncio.timeout(2):
                await self._connection.wait_closed()
        except (TimeoutError, OSError, asyncssh.Error):
            self._connection.abort()

    # --- channels -----------------------------------------------------------------------------------------------

    async def _open(self, command: str, on_data: OnData) -> Channel:
        """Open a channel. When the server has as many as it allows (sshd: MaxSessions), wait until one of ours ends."""
        while True:
            self._channel_freed.clear()
            acknowledging = asyncio.create_task(self._acknowledge()) if self._nagle_socket is not None else None
            self._channels += 1
            opening = asyncio.ensure_future(
                self._connection.create_session(
                    lambda: Channel(on_data), command, encoding=None, window=_WINDOW, max_pktsize=_PACKET
                )
            )
            try:
                _, session = await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(self._close_late)
                raise
            except asyncssh.ChannelOpenError as error:
                self._channels -= 1
                if self._connection.is_closed():
                    raise self._gone() from None
                if self._channels == 0:
                    self._channel_freed.set()  # nobody else's end will wake those who wait
                    raise SSHError(f"{self._where} refuses to run a command: {error.reason}") from None
                await self._channel_freed.wait()
                continue
            except (asyncssh.Error, OSError) as error:
                self._channels -= 1
                raise MachineLost(f"the connection to {self._where} is lost: {_reason(error)}") from None
            finally:
                if acknowledging is not None:
                    acknowledging.cancel()
            self._nagle_socket = None
            assert isinstance(session, Channel)
            session.ended.add_done_callback(self._channel_ended)
            return session

    def _channel_ended(self, _: object) -> None:
        self._channels -= 1
        self._channel_freed.set()

    def _close_late(self, opening: asyncio.Future[Any]) -> None:
        """A channel that opened after its caller was cancelled."""
        if opening.cancelled() or opening.exception() is not None:
            self._channel_ended(opening)
            return
        session = opening.result()[1]
        session.ended.add_done_callback(self._channel_ended)
        session.close()

    async def _acknowledge(self) -> None:
        """Acknowledge what comes at once, until cancelled: sshd leaves Nagle's algorithm on until its first command.

        What it says after the login then waits for our delayed acknowledgement, 40 ms. The kernel forgets the option by
        itself, hence again and again, for as long as the first command needs to start: some milliseconds.
        """
        assert self._nagle_socket is not None
        assert _QUICKACK is not None
        for _ in range(50):
            with contextlib.suppress(OSError):
                self._nagle_socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            await asyncio.sleep(0.001)

    async def _execute(self, command: str, stdin: bytes = b"", on_output: Callable[[str, bytes], None] | None = None) -> Result:
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        problems: list[Exception] = []

        def on_data(stream: str, data: bytes) -> None:
            output[stream].append(data)
            if on_output is not None and not problems:
                try:
                    on_output(stream, data)
                except Exception as error:  # it would take down the whole connection
                    problems.append(error)

        channel = await self._open(command, on_data)
        try:
            for block in _blocks(stdin):
                if not await channel.send(block):
                    break
            channel.end_input()
            await asyncio.shield(channel.ended)
        finally:
            if not channel.ended.done():
                channel.close()
        if problems:
            raise problems[0]
        if channel.exit_status is None:
            raise self._gone()
        return Result(exit_status=channel.exit_status, stdout=b"".join(output["stdout"]), stderr=b"".join(output["stderr"]))

    async def _upload(self, command: str, blocks: AsyncIterator[bytes]) -> Result:
        output: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        channel = await self._open(command, lambda stream, data: output[stream].append(data))
        try:
            async for block in blocks:
                if not await channel.send(block):
                    break
            channel.end_input()
            await asyncio.shield(channel.ended)
        finally:
            if not channel.ended.done():
                channel.close()
        if channel.exit_status is None:
            raise self._gone()
        return Result(exit_status=channel.exit_status, stdout=b"".join(output["stdout"]), stderr=b"".join(output["stderr"]))

    def _check_stored(self, path: str, result: Result) -> None:
        if result.exit_status != 0:
            reason = result.stderr.decode("utf-8", "replace").strip().replace("\n", "; ") or "not all of it arrived"
            raise SSHError(f"cannot write {path} on {self._where}: {reason}")

    # --- jobs ---------------------------------------------------------------------------------------------------

    async def _follow(self, job_id: str, stream: str, offset: int) -> Follow:
        follow = Follow(stream, offset)
        follow.channel = await self._open(remote_scripts.attach_command(job_id, stream, offset), follow.on_data)
        return follow

    def _keep(self, job_id: str, follow: Follow) -> None:
        self._kept[job_id] = follow

        def drop() -> None:
            if self._kept.get(job_id) is follow:
                self._kept.pop(job_id).close()

        asyncio.get_running_loop().call_later(_UNATTACHED_S, drop)

    def _raise_if_gone(self, job_id: str, follow: Follow) -> None:
        if follow.lost:
            raise MachineLost(f"job {job_id} on {self._where} vanished without an exit status: its supervisor was killed")
        if follow.unknown:
            raise MachineLost(f"there is no job {job_id} on {self._where}")
        if self._connection.is_closed():
            raise self._gone()

    # --- ends ---------------------------------------------------------------------------------------------------

    def _gone(self) -> MachineLost:
        return MachineLost(f"the connection to {self._where} ended before the command did")

    async def _kill_run(self, tag: str) -> None:
        await self._try_execute(remote_scripts.kill_run_command(tag))

    async def _try_execute(self, command: str) -> None:
        with contextlib.suppress(TimeoutError, MachineLost, SSHError):
            async with asyncio.timeout(_CLEANUP_S):
                await self._execute(command)

    async def _see_through(self, cleanup: Coroutine[Any, Any, None]) -> None:
        """Await a cleanup that goes on when we are cancelled (again); `close` waits for it."""
        task = asyncio.create_task(cleanup)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        await asyncio.shield(task)


def _options(endpoint: Endpoint, client_key: str) -> dict[str, Any]:
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.setdefault("LOGNAME", "gibil")  # a uid without a name: asyncssh insists on one, and sends it nowhere
    host_key = asyncssh.import_public_key(endpoint.host_key)
    return {
        "username": endpoint.username,
        "client_keys": [asyncssh.import_private_key(client_key)],
        "known_hosts": ([host_key], [], []),
        "preferred_auth": "publickey",
        "agent_path": None,
        "config": None,
        "gss_host": None,
        "keepalive_interval": 5,
        "keepalive_count_max": 3,
        "compression_algs": None,
        "kex_algs": ["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
        "encryption_algs": ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"],
    }


async def _connect_once(endpoint: Endpoint, options: dict[str, Any]) -> asyncssh.SSHClientConnection:
    sock = await _open_socket(endpoint)
    try:
        return await asyncssh.connect(endpoint.host or "machine", endpoint.port, sock=sock, **options)
    except BaseException:
        sock.close()
        raise


async def _open_socket(endpoint: Endpoint) -> socket.socket:
    loop = asyncio.get_running_loop()
    if endpoint.unix_path is not None:
        candidates: list[tuple[int, Any]] = [(socket.AF_UNIX, endpoint.unix_path)]
    else:
        infos = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        candidates = [(info[0], info[4]) for info in infos]
    problem: OSError = OSError("no address")
    for family, address in candidates:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            problem = error
            continue
        except BaseException:
            sock.close()
            raise
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if _QUICKACK is not None:
                sock.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return sock
    raise problem


def _blocks(data: bytes) -> list[bytes]:
    return [data[start : start + _UPLOAD_BLOCK] for start in range(0, len(data), _UPLOAD_BLOCK)]


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for block in _blocks(data):
        yield block


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return getattr(error, "reason", None) or str(error) or type(error).__name__
