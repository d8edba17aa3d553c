"""Reads a project's files on its machine for detection: the paths of its commit, and the contents of a few of them.

Reads git's objects instead of the working tree, so no filter runs and no link is followed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from gibil_bot.errors import MachineLost, SSHError
from gibil_bot.ports import Shell
from gibil_bot.runs.sources import SourceError
from gibil_bot.scripts import project as scripts
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.ssh.answers import last_line

READ_TIMEOUT_S = 60.0
_ROOM = 4096
"""For what git prints to stderr."""


async def read_project(
    shell: Shell, wanted: Callable[[Iterable[str]], Sequence[str]], *, workspace: str = WORKSPACE
) -> tuple[frozenset[str], dict[str, bytes]]:
    """Return all paths, and path → content of those that `wanted` selects from them, as far as the limits allow.

    Raises MachineLost, TimeoutError, SourceError.
    """
    listing = await _output(shell, scripts.list_script(workspace), most_bytes=scripts.LISTING_BYTES)
    files = {file.path: file for file in scripts.parse_listing(listing)}
    paths = frozenset(files)
    chosen = scripts.affordable([files[path] for path in wanted(paths) if path in files])
    if not chosen:
        return paths, {}
    ids = "".join(f"{file.object_id}\n" for file in chosen).encode()
    objects = await _output(shell, scripts.read_script(workspace), stdin=ids, most_bytes=2 * scripts.CONTENT_BYTES)
    try:
        return paths, scripts.parse_objects(objects, chosen)
    except ValueError as error:
        raise SourceError(f"The project's files can't be read: {error}") from None


async def _output(shell: Shell, script: str, *, most_bytes: int, stdin: bytes = b"") -> bytes:
    try:
        result = await shell.run(script, stdin=stdin, timeout_s=READ_TIMEOUT_S, most_bytes=most_bytes + _ROOM)
    except MachineLost:
        raise
    except SSHError as error:
        raise SourceError(f"The project's files can't be read: {error.message}") from None
    if result.exit_status != 0:
        raise SourceError(f"The project's files can't be read: {last_line(result.stderr) or 'git has no commit'}")
    return result.stdout
