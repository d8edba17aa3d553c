"""Files that steer agents, for untrusted heads: the base branch's while the agent works, the head's own afterwards.

The base branch's tip counts, not the merge base: the author of the head chose the merge base, and could choose one whose
instructions were corrected since. The files come from GitHub, never from the machine's repository, which earlier tasks of the
head could change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace as replace_values

from msgspec import Struct

from gibil_bot.agents import imports
from gibil_bot.agents.archive import archive_of
from gibil_bot.errors import GitHubError, SSHError
from gibil_bot.instruction_files import AGENT_SETTINGS, INSTRUCTION_FILES, as_globs
from gibil_bot.model import Source
from gibil_bot.path_globs import is_same_file
from gibil_bot.ports import FilesAt, GitHub, RepositoryFile, Shell
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.instructions import parse, put_back_script, replace_script
from gibil_bot.ssh.answers import last_line

MOST_FILES = 200
"""How many files come from the base branch; others are deleted while the agent works. Each costs a request to GitHub."""
MOST_BYTES = 2 * 1024 * 1024

_TIMEOUT_S = 180.0


class Replaced(Struct, frozen=True, kw_only=True):
    """What `replace` did. Paths are relative to the checkout, and come from the machine."""

    base: str
    """The commit of the base branch."""
    removed: tuple[str, ...] = ()
    """The head's files and folders that the agent doesn't see; the first hundreds."""
    restored: tuple[str, ...] = ()
    """The base branch's files that it sees instead."""
    omitted: tuple[str, ...] = ()
    """The base branch's files that it doesn't see either: too many, too large, or a link is in their path."""


class PutBack(Struct, frozen=True, kw_only=True):
    """What `put_back` did. Paths come from the machine."""

    dropped: tuple[str, ...] = ()
    """Files that the agent changed, created or deleted; these changes are lost."""
    rewritten: bool = False
    """Commits of the agent contained such changes, so that its commits became changes of the working tree."""
    lost: bool = False
    """The agent deleted what was stored, so that the files came from the commit; changes of earlier tasks are lost."""


def steering_globs(engine_files: Sequence[str] = ()) -> tuple[str, ...]:
    """Return globs of all files that steer an engine with these `instruction_files`."""
    return tuple(dict.fromkeys((*INSTRUCTION_FILES, *AGENT_SETTINGS, *as_globs(engine_files))))


async def base_files(github: GitHub, source: Source, steering: Sequence[str]) -> FilesAt:
    """Return the base branch's files that steer agents, with what they import. Raises GitHubError."""
    repository, branch = source.repository.full_name, source.pull_request.base_ref
    commit = await github.git_data(source.installation_id).ref(repository, branch)
    if commit is None:
        raise GitHubError(
            f"{repository} has no branch {branch!r} any more, so its instructions for agents are unknown", status=404
        )
    contents = github.pull_request_contents(source.installation_id)

    async def read(is_wanted: Callable[[str], bool]) -> FilesAt:
        return await contents.files(repository, commit, is_wanted, most_files=MOST_FILES, most_bytes=MOST_BYTES)

    found = await read(lambda path: is_same_file(path, steering))
    return await _with_imports(found, read)


async def _with_imports(found: FilesAt, read: Callable[[Callable[[str], bool]], Awaitable[FilesAt]]) -> FilesAt:
    """Return the files with what they import from the base branch: the checkout has the head's version of it."""
    texts = {path: _text(file) for path, file in found.files.items() if imports.is_instruction_text(path)}
    own = frozenset(texts)
    level = dict(texts)
    for _ in range(imports.MOST_LEVELS):
        wanted = {each for path, text in level.items() for each in imports.imported(path, text)} - texts.keys()
        if not wanted:
            break
        level = {path: _text(file) for path, file in (await read(wanted.__contains__)).files.items()}
        texts |= level
    files = {
        path: RepositoryFile(content=imports.included(path, texts).encode("utf-8", "surrogateescape")) if path in own else file
        for path, file in found.files.items()
    }
    return replace_values(found, files=files)


def _text(file: RepositoryFile) -> str:
    return file.content.decode("utf-8", "surrogateescape")


async def replace(
    shell: Shell, base: FilesAt, steering: Sequence[str], state: str, *, workspace: str = WORKSPACE, above: str = "/"
) -> Replaced:
    """Replace the files, just before the agent starts. `state`: a folder of this task on the machine, outside of the checkout.

    Safe to repeat. Raises SSHError if that isn't possible: then the agent must not start.
    """
    script = replace_script(steering, state, folder=workspace, above=above)
    archive = archive_of((path, each.content, 0o755 if each.is_executable else 0o644) for path, each in base.files.items())
    result = await shell.run(script, stdin=archive, timeout_s=_TIMEOUT_S)
    if result.exit_status != 0:
        raise SSHError(
            f"the instructions for agents in the checkout can't be replaced: {last_line(result.stderr)}", code="INSTRUCTIONS"
        )
    printed = parse(result.stdout)
    unwritten = set(printed.unwritten)
    return Replaced(
        base=base.commit,
        removed=printed.removed,
        restored=tuple(path for path in base.files if path not in unwritten),
        omitted=(*base.omitted, *printed.unwritten),
    )


async def put_back(shell: Shell, sha: str, steering: Sequence[str], state: str, *, workspace: str = WORKSPACE) -> PutBack:
    """Put the files of the head `sha` back, after the agent has ended, however it ended, and before its changes are committed.

    Safe to repeat. Raises SSHError if that isn't possible, for instance because the agent destroyed the repository.
    """
    result = await shell.run(put_back_script(steering, state, sha, folder=workspace), timeout_s=_TIMEOUT_S)
    if result.exit_status != 0:
        raise SSHError(f"the checkout's own files can't be put back: {last_line(result.stderr)}", code="INSTRUCTIONS")
    printed = parse(result.stdout)
    return PutBack(dropped=tuple(sorted({*printed.changed, *printed.deleted})), rewritten=printed.moved_head, lost=printed.lost)
