"""First contact: a machine gets its lasting host key over SSH, because others can read the one that it booted with.

A cloud's user-data stays with the provider for as long as the machine lives, and at the metadata address it can be read until
that is closed. So it holds a host key that is good for one connection: over that, before anything else happens on the
machine, the key that it shows from then on is sent. The public half of that one is what a provider's list tells, and nobody
but a creation ever accepts the other.

Whoever reads the user-data *and* stands in our way to the machine at its first contact can still pass for it; nobody can later.
A creation that was killed on the way is taken up again from any step: until sshd has taken the lasting key it shows the first
one, and is given the lasting one again. Without a creation that takes it up nobody enters, and the machine burns at its hour.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from msgspec.structs import replace

from gibil_bot.errors import AnotherHost, SSHError
from gibil_bot.model import Endpoint
from gibil_bot.ports import Shell
from gibil_bot.scripts.templates import script
from gibil_bot.ssh.answers import last_line
from gibil_bot.ssh.host_keys import public_line

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
MARK = "/etc/gibil/host-key-lasts"
"""Until it exists, the only command that comes is the one that makes it: it waits for nothing (cloudinit.py, sshrc)."""

_SEND_S = 30.0
_TAKEN_S = 10.0
"""How long sshd may take from the signal until it shows the new key."""
_LOOK_EVERY_S = 0.05


async def enter(endpoint: Endpoint, host_key: str, connect: Callable[[Endpoint], Awaitable[Shell]]) -> Shell:
    """Log in to a machine that was just created: the connection to one that shows its lasting host key, and has proved it.

    `host_key`: the private half of `endpoint.host_key`, OpenSSH PEM. Raises what `connect` raises, and SSHError when the
    machine does not take it. The connection that comes back is a second one: to see the new key shown, one has to be made
    anyway, and what is done on it was never under the key that others can read.
    """
    lasting = replace(endpoint, first_host_key=None)
    if endpoint.first_host_key is None:
        return await connect(lasting)
    try:
        shell = await connect(replace(lasting, host_key=endpoint.first_host_key))
    except AnotherHost:
        return await connect(lasting)  # this creation came that far before
    try:
        await _send(shell, host_key)
        deadline = time.monotonic() + _TAKEN_S
        while True:
            try:
                return await connect(lasting)
            except AnotherHost:  # sshd is about to take it
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_LOOK_EVERY_S)
    finally:
        await shell.close()


def replace_script(host_key: str) -> str:
    """POSIX sh that makes the key on its stdin the machine's. It holds the public half only, to know it by."""
    mark_folder = MARK.rpartition("/")[0]
    return script("host_key_replace", HOST_KEY=HOST_KEY, MARK=MARK, MARK_FOLDER=mark_folder, PUBLIC=public_line(host_key))


async def _send(shell: Shell, host_key: str) -> None:
    try:
        done = await shell.run(replace_script(host_key), stdin=f"{host_key.strip()}\n".encode(), timeout_s=_SEND_S)
    except TimeoutError:
        raise SSHError(f"the new machine did not take its host key within {_SEND_S:.0f} s") from None
    if done.exit_status != 0:
        said = last_line(done.stderr, f"exit status {done.exit_status}")
        raise SSHError(f"the new machine does not take its host key: {said}")
