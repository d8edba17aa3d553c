"""Collects commits from a machine as a git bundle over SSH. The machine isn't trusted: what arrives is bounded, not checked.

Used by runs, `gibil push`, `gibil pr create` and MCP. checks.py checks the commits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.commits import outbox
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.ports import Shell
from gibil_bot.scripts import commits as scripts
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.outbox import OUTBOX
from gibil_bot.ssh.answers import last_line

MOST_BUNDLE_BYTES = 256 * 1024 * 1024
"""Limit for a bundle."""

_BUNDLE_S = 600.0
_CREATE_S = 300.0
_MOST_MESSAGE_BYTES = 64 * 1024
_SHA = re.compile(rb"([0-9a-f]{40})\n")


class NotCollected(GibilError):
    """The machine's commits can't be collected."""

    code = "NOT_PUSHED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where commits are on a machine: a repository and a revision in it."""

    folder: str
    revision: str


CHECKED_OUT = Source(folder=WORKSPACE, revision="HEAD")
REBASED = Source(folder=WORKSPACE, revision=scripts.REBASED)


def outbox_branch(branch: str) -> Source:
    """Return the source of a branch that was pushed on the machine."""
    return Source(folder=OUTBOX, revision=f"refs/heads/{branch}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """Commits from a machine, unchecked. `bundle` is a file on this host, in the caller's folder."""

    base: str
    head: str
    bundle: Path
    bytes: int


async def collect(
    shell: Shell,
    base: str,
    into: Path,
    *,
    name: str,
    source: Source = CHECKED_OUT,
    descends: bool = True,
    most_bytes: int = MOST_BUNDLE_BYTES,
) -> Collected | None:
    """Save a bundle of the commits since `base` as the new file `into`; return None if there are none.

    `name`: the machine, for messages. `descends`: reject history that was rewritten. Raises UsageError if the machine has no
    such revision, NotCollected for commits that are too large, rewritten or can't be packed. The transfer ends as soon as more
    than `most_bytes` arrive: the machine may never stop sending.
    """
    size = 0
    first = bytearray()
    messages = bytearray()
    head: str | None = None
    with into.open("xb") as file:

        def take_output(stream: str, data: bytes) -> None:
            nonlocal size, head
            if stream != "stdout":
                messages.extend(data[: _MOST_MESSAGE_BYTES - len(messages)])
                return
            if head is None:
                first.extend(data)
                if b"\n" not in first and len(first) <= 40:
                    return
                line = _SHA.match(first)
                if line is None:
                    raise NotCollected(f"{name} didn't name the commit that it packed")
                head = line[1].decode()
                data = bytes(first[line.end() :])
            size += len(data)
            if size > most_bytes:
                raise NotCollected(f"the commits of {name} are larger than {most_bytes // 1024**2} MiB")
            file.write(data)

        # Without the environment of tasks, whose PATH must not choose the git.
        script = scripts.pack_script(source.folder, source.revision, base, descends=descends)
        result = await shell.run(script, timeout_s=_BUNDLE_S, on_output=take_output, keep_output=False)
    why = last_line(bytes(messages), "is it still being cloned?")
    if result.exit_status == scripts.NOT_DESCENDED:
        raise NotCollected(f"the history of {name} was rewritten: its commits don't descend from {base[:7]}, where it began")
    if head is None:
        raise UsageError(f"there is no commit in {source.folder} on {name}: {why}")
    if result.exit_status != 0:
        raise NotCollected(f"{name} could not pack its commits: {why}")
    if head == base:
        return None
    return Collected(base=base, head=head, bundle=into, bytes=size)


async def choose(shell: Shell, base: str, message: str, *, name: str) -> tuple[Source, str]:
    """Return where the work since `base` is on a machine, and a remark about what isn't there, or "".

    A commit that was pushed on the machine (outbox.py) counts, unless HEAD contains it. Changed files are committed first if
    they are on top of all other work. Raises NotCollected, MachineLost.
    """
    pushed = await outbox.waiting(shell)
    if pushed is not None and pushed.head != base:
        result = await shell.run(scripts.pushed_script(base, pushed.head), timeout_s=_CREATE_S, most_bytes=_MOST_MESSAGE_BYTES)
        if result.exit_status != 0:
            remark = f"Only what was pushed to {pushed.branch} on the machine was collected; its other changes were left out."
            return outbox_branch(pushed.branch), "" if result.exit_status == scripts.PUSHED_ALL else remark
    await commit_changes(shell, message, name=name)
    return CHECKED_OUT, ""


async def commit_changes(shell: Shell, message: str, *, name: str) -> None:
    """Commit the workspace's changed files on the machine, if there are any. Raises NotCollected with git's reason."""
    result = await shell.run(scripts.create_script(), timeout_s=_CREATE_S, stdin=message.encode("utf-8", "replace"))
    if result.exit_status != 0:
        raise NotCollected(f"{name} could not commit its changed files: {last_line(result.stderr)}")
