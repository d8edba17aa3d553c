"""Send a new machine its environment and its code, and start the job that makes it ready."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from gibil_bot.errors import GibilError
from gibil_bot.machines.remote_layout import JOB_ID, as_given, bare_script, keep_script
from gibil_bot.model import Job
from gibil_bot.ports import Shell
from gibil_bot.ssh.answers import last_line

if TYPE_CHECKING:
    from gibil_bot.commits.identity import Identity
    from gibil_bot.machines.request import ResolvedRequest
    from gibil_bot.machines.source import CodeSource

OnPhase = Callable[[str, str, float | None], None]
"""Called with a machine's name (empty: all of them), a phase, and how long it took; None when it begins.

Phases: repository (reading it), prepare (a provider's first machine), forge, connect, code (sending it).
"""


async def start_provisioning(
    shell: Shell, name: str, terms: ResolvedRequest, origin: CodeSource | None, who: Identity | None, tell: OnPhase
) -> None:
    """Start what makes it ready. A local repository is sent first: only we have it. `who`: whose commits are made there."""
    names, env = tuple(terms.env), as_given(terms.env)
    if origin is None:
        await _must(shell, bare_script(names, who), env)
        return
    from gibil_bot.machines.provision_script import provision_script
    from gibil_bot.runs.sources import LocalBundle

    if names:
        await _must(shell, keep_script(names), env)
    if origin.checkout is not None:
        tell(name, "code", None)
        began = asyncio.get_running_loop().time()
        await LocalBundle(origin.checkout, origin.sha, origin.promisor).send(shell)
        tell(name, "code", asyncio.get_running_loop().time() - began)
    job = Job(id=JOB_ID, script=provision_script(origin, names, who), env=env, shell="bash {0}")  # noqa: S604 (a template)
    await shell.start(job)


async def _must(shell: Shell, script: str, env: dict[str, str]) -> None:
    result = await shell.run(script, env=env)
    if result.exit_status != 0:
        raise GibilError(f"the machine could not be prepared: {last_line(result.stderr)}", code="PROVISION")
