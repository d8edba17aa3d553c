"""What happens to checked commits if the branch has newer ones: one rebase on the machine, or a patch.

The machine has no credentials, so the newer commits are sent to it as a bundle. What it returns is collected and checked again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

from gibil_bot import git
from gibil_bot.commits import objects
from gibil_bot.commits.checks import Checked
from gibil_bot.commits.collected import NotCollected
from gibil_bot.git import FOREIGN, GitError, TooMuchOutput
from gibil_bot.ports import Shell
from gibil_bot.scripts import commits as scripts
from gibil_bot.ssh.answers import last_line, printable

MOST_PATCH_BYTES = 16 * 1024 * 1024
"""Limit for a patch: binary files take up to 1.4 times their size."""

_REBASE_S = 300.0
_PATCH_S = 120.0
_MOST_DROPPED = 20_000
# mailinfo.c: patchbreak, is_scissors_line, header; mailsplit.c: is_from_line. https://github.com/git/git
_READ_BY_AM = re.compile(
    r"^(?=diff -|Index: |---|>*From |(?:From|Date|Subject|Content-[\w-]+|MIME-Version):|[ \t]*-.*[<>%]8|[ \t]*[<>%]?8[<>%])",
    re.MULTILINE | re.IGNORECASE,
)
_NAMES = 300
"""Maximum length of the conflicting paths in a message."""


class Conflict(NotCollected):
    """The commits don't apply to the newer ones."""

    code = "CONFLICT"


async def rebase(shell: Shell, repository: Path, checked: Checked, target: str, *, name: str) -> None:
    """Rebase the commits onto `target` on the machine; the result is the source `collected.REBASED`, with `target` as its base.

    `repository` has `target` and its history since the base. Raises Conflict if the commits don't apply, or if `target` doesn't
    descend from their base; NotCollected if the machine can't rebase.
    """
    try:
        await git.run("merge-base", "--is-ancestor", checked.base, target, git_dir=repository, extra=objects.environment())
    except GitError as error:
        raise Conflict(f"{target[:7]}, the branch's head, doesn't descend from {checked.base[:7]}, the run's commit") from error
    await git.run("update-ref", objects.OUTGOING, target, git_dir=repository, extra=objects.environment())
    script = scripts.rebase_script(checked.base, checked.collected, target)
    result = await shell.run(script, timeout_s=_REBASE_S, stdin=_bundle(repository, checked.base))
    if result.exit_status == scripts.CONFLICT:
        names = printable(result.stdout.decode("utf-8", "replace"), _NAMES)
        raise Conflict(
            f"the commits don't apply to {target[:7]}, the branch's head" + (f"; conflicts: {names}" if names else "")
        )
    if result.exit_status != 0:
        raise NotCollected(f"{name} could not rebase its commits: {last_line(result.stderr)}")


async def _bundle(repository: Path, base: str) -> AsyncIterator[bytes]:
    arguments = ("bundle", "create", "-q", "-", objects.OUTGOING, f"^{base}")
    async for data in git.stream(*arguments, git_dir=repository, extra=objects.environment()):
        yield data


async def patch(repository: Path, checked: Checked, *, most_bytes: int = MOST_PATCH_BYTES) -> bytes | None:
    """Return the checked commits as a mailbox for `git am`, without dropped changes; None above `most_bytes`.

    Authors are as the machine named them, unless changes were dropped. A line of a message that `git am` reads as the
    beginning of a diff, of a mail or of its header becomes a quotation, because it would add unchecked changes. Raises
    GitError.
    """
    head = checked.head
    if any(_READ_BY_AM.search(commit.message) for commit in checked.commits):
        head = await _with_quotations(repository, checked)
    arguments = (
        "format-patch", "--stdout", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv",
        "--no-signature", "--no-attach", "--no-thread", "--no-cover-letter", "--no-notes", "--topo-order", "--encoding=UTF-8",
        f"{checked.base}..{head}", "--",
    )  # fmt: skip
    try:
        return await git.run(
            *arguments, git_dir=repository, limits=FOREIGN, within_s=_PATCH_S, most_bytes=most_bytes,
            extra=objects.environment(),
        )  # fmt: skip
    except TooMuchOutput:
        return None


async def _with_quotations(repository: Path, checked: Checked) -> str:
    """Create the commits again, with messages that `git am` reads as text; return the head."""
    every = await objects.commits(
        repository, checked.head, checked.base, most=len(checked.commits) + _MOST_DROPPED, too_many=""
    )
    sizes = await objects.sizes(repository, [commit.sha for commit in every])
    headers = {
        sha: data.partition(b"\n\n")[0].split(b"\n") async for sha, data in objects.contents(repository, list(sizes.items()))
    }
    created: dict[str, str] = {}
    for commit in every:
        lines = [f"tree {commit.tree}", *(f"parent {created.get(parent, parent)}" for parent in commit.parents)]
        people = [line for line in headers[commit.sha] if line.startswith((b"author ", b"committer "))]
        message = _READ_BY_AM.sub(r"> \g<0>", commit.message)
        content = b"\n".join([*(line.encode() for line in lines), *people, b"", f"{message}\n".encode()])
        created[commit.sha] = await git.text(
            "hash-object", "-t", "commit", "-w", "--stdin", git_dir=repository, stdin=content, limits=FOREIGN,
            extra=objects.environment(),
        )  # fmt: skip
    return created[checked.head]
