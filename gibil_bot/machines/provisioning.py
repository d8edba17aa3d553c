"""Send a new machine its environment and its code, and start the job that prepares it."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Callable
from typing import TYPE_CHECKING

from gibil_bot.errors import GibilError
from gibil_bot.machines.remote_layout import (
    JOB_ID,
    bare_script,
    clear_records_script,
    save_env_script,
    with_prefix,
)
from gibil_bot.model import Job
from gibil_bot.ports import Shell
from gibil_bot.scripts.commands import ENVIRONMENT
from gibil_bot.ssh.answers import last_line

if TYPE_CHECKING:
    from gibil_bot.commits.identity import Identity
    from gibil_bot.machines.request import ResolvedRequest
    from gibil_bot.machines.source import CodeSource

OnPhase = Callable[[str, str, float | None], None]
"""Called with a machine's name (empty: all machines), a phase, and the phase's duration in seconds; None when it begins.

Phases: repository (read it), prepare (a provider's first machine), `forge` (create the machine), connect, code (send it).
"""


async def start_provisioning(
    shell: Shell, name: str, request: ResolvedRequest, source: CodeSource | None, author: Identity | None, on_phase: OnPhase
) -> None:
    """Start the provisioning job, after sending the code of a local repository. `author`: author of commits on the machine."""
    names, env = tuple(request.env), with_prefix(request.env)
    if request.start.kind == "fork":
        if request.start.environment:
            await restore_environment(shell, request.start.environment)
        return
    if request.start.kind == "template":
        await _run_checked(shell, clear_records_script(), {})
    if source is None:
        await _run_checked(shell, bare_script(names, author), env)
        return
    from gibil_bot.machines.provision_script import provision_script
    from gibil_bot.runs.sources import LocalBundle

    if names:
        await _run_checked(shell, save_env_script(names), env)
    if source.checkout is not None:
        on_phase(name, "code", None)
        began = asyncio.get_running_loop().time()
        bundle = LocalBundle(source.checkout, source.sha, source.promisor, source.surroundings)
        await bundle.send(shell, source.options)
        on_phase(name, "code", asyncio.get_running_loop().time() - began)
    job = Job(id=JOB_ID, script=provision_script(source, names, author), env=env, shell="bash {0}")  # noqa: S604 (a template)
    await shell.start(job)


async def read_environment(shell: Shell) -> bytes:
    """Return the file with the environment of a machine's commands, empty if there is none. Raises SSHError, MachineLost."""
    return (await shell.run(f"if [ -r {ENVIRONMENT} ]; then cat {ENVIRONMENT}; fi")).stdout


async def restore_environment(shell: Shell, environment: bytes) -> None:
    """Write that file again, or on another machine. It is passed in the input, because it may contain secrets."""
    folder = posixpath.dirname(ENVIRONMENT)
    result = await shell.run(f"mkdir -p {folder} && umask 077 && cat >{ENVIRONMENT}", stdin=environment)
    if result.exit_status != 0:
        raise GibilError(f"the machine's environment couldn't be restored: {last_line(result.stderr)}", code="PROVISION")


async def _run_checked(shell: Shell, script: str, env: dict[str, str]) -> None:
    result = await shell.run(script, env=env)
    if result.exit_status != 0:
        raise GibilError(f"the machine couldn't be prepared: {last_line(result.stderr)}", code="PROVISION")
