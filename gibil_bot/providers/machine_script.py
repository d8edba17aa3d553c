"""A short script on a machine, over a connection that is opened for it: what a provider needs to reach into its machines."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gibil_bot.errors import ProviderError
from gibil_bot.model import Machine
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import ConnectShell
from gibil_bot.ssh.answers import last_line

RunOn = Callable[[Machine, str], Awaitable[None]]
"""Runs a short script as root on a machine; raises a GibilError when it cannot, or when the script fails."""


def script_runner(keyring: Keyring, connect_shell: ConnectShell, *, timeout_s: float = 30.0) -> RunOn:
    """Logs in with the machine's own key. The function raises ProviderError with the script's last line when it fails."""

    async def run_on(machine: Machine, script: str) -> None:
        key = await asyncio.to_thread(keyring.client_key, machine.name)
        shell = await connect_shell(machine.endpoint, key)
        try:
            done = await shell.run(script, timeout_s=timeout_s)
        except TimeoutError:
            raise ProviderError(f"machine {machine.name} did not do within {timeout_s:.0f} s what it was asked to") from None
        finally:
            await shell.close()
        if done.exit_status != 0:
            raise ProviderError(f"machine {machine.name}: {last_line(done.stderr, f'exit status {done.exit_status}')}")

    return run_on
