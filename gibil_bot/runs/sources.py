"""How the code gets onto a machine: a clone of the pull request at its exact commit, or a copy of a local checkout."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from gibil_bot import git
from gibil_bot.commits.local_repository import explained
from gibil_bot.commits.pack import packed
from gibil_bot.commits.submodules import Submodule, Surroundings, collect
from gibil_bot.errors import GitHubError
from gibil_bot.git import GitError
from gibil_bot.lfs.pointers import basic_authorization, server_of
from gibil_bot.model import Checkout, Result, Run, Trust
from gibil_bot.operator_secrets import without_secrets
from gibil_bot.ports import GitHub, Shell
from gibil_bot.runs.lfs import LfsFailed, ObjectSources, fetch_lfs
from gibil_bot.scripts import clone
from gibil_bot.scripts.lfs import LfsRepository
from gibil_bot.scripts.prepared import known_script, parse_known
from gibil_bot.ssh.answers import last_line

_ORIGIN = "refs/remotes/origin/"
CLONE_TIMEOUT_S = 900.0
TRIES = 3
INCOMPLETE_HISTORY = "The checkout lacks objects of its history, so only the commit was sent, without history and tags."
_MODULES = "/root/.gibil/modules.tar"
REVOKE_WITHIN_S = 10.0
"""A token that can't be revoked in that time expires within the hour."""


class SourceTransfer(Protocol):
    """Copies a run's commit onto its machine."""

    def begin(self, run: Run) -> None:
        """Start what doesn't need the machine, while the machine is being created. Returns at once."""

    async def copy_to(self, shell: Shell, run: Run) -> tuple[str, ...]:
        """Copy the commit to WORKSPACE, as `run.plan.checkout` describes it; return notes for people. Safe to repeat.

        Raises SourceError, GitHubError, MachineLost.
        """

    async def copy_rest(self, shell: Shell, run: Run) -> tuple[str, ...]:
        """Copy what `run.plan.checkout` names and `copy_to`, for an earlier plan, hasn't copied. Raises as `copy_to` does."""

    async def end(self, run: Run) -> None:
        """Release everything that was acquired for the run, such as tokens. Never raises."""


class SourceError(GitError):
    """The commit couldn't be copied onto the machine, and a new machine wouldn't help."""


class PullRequestClone:
    """Clones a public repository without credentials, and a private one with a token that can read only this repository and is
    revoked after the clone.

    If the anonymous clone is rejected, the token is used too: GitHub limits anonymous clones by address, and an Enterprise
    Server may not allow them.
    """

    def __init__(self, github: GitHub) -> None:
        self._github = github
        self._minting: dict[str, asyncio.Task[str]] = {}
        self._revoking: dict[str, set[asyncio.Task[None]]] = {}

    def begin(self, run: Run) -> None:
        if run.source.repository.private:
            self._begin_minting(run)

    def _begin_minting(self, run: Run) -> None:
        if run.id not in self._minting:
            self._minting[run.id] = asyncio.create_task(self._mint(run))

    async def _mint(self, run: Run, submodules: tuple[str, ...] = ()) -> str:
        return await self._github.clone_token(run.source.installation_id, run.source.repository, submodules)

    async def copy_to(self, shell: Shell, run: Run) -> tuple[str, ...]:
        notes = await self._clone_commit(shell, run)
        if run.plan.checkout.lfs:
            await self._fetch_lfs(shell, run)
        return notes

    copy_rest = copy_to
    """The script fetches nothing again."""

    async def _fetch_lfs(self, shell: Shell, run: Run) -> None:
        """Fetch the files of Git LFS with tokens that never leave this computer."""
        source = run.source
        tokens: list[str] = []

        def sources(found: LfsRepository) -> ObjectSources:
            names: tuple[str, ...] = ()
            if found.folder != ".":
                names = clone.submodule_names(f"gibil-submodule: {found.url}".encode(), source.repository.clone_url)
                if not clone.same_server(found.url, source.repository.clone_url):
                    where = f"the submodule '{found.folder}'"
                    raise LfsFailed(f"The files of Git LFS in {where} can't be fetched: it is on another server.")
                if not names or source.trust is not Trust.TRUSTED:
                    return ObjectSources(remote=found.url)

            async def authorize() -> str | None:
                try:
                    token = await self._mint(run, names)
                except GitHubError as error:
                    if names and error.status == 422:
                        return None  # the App isn't installed there
                    raise
                tokens.append(token)
                return basic_authorization("x-access-token", token)

            remote = source.repository.clone_url if found.folder == "." else found.url
            is_private = found.folder == "." and source.repository.private
            return ObjectSources(remote=remote, authorize=authorize, is_private=is_private)

        try:
            await fetch_lfs(shell, sources, submodules=run.plan.checkout.has_submodules)
        except LfsFailed as error:
            raise SourceError(error.message) from error
        finally:
            for token in tokens:
                self._revoke(run, token)

    async def _clone_commit(self, shell: Shell, run: Run) -> tuple[str, ...]:
        source = run.source
        text = clone.clone_script(
            clone_url=source.repository.clone_url,
            number=source.pull_request.number,
            sha=source.sha,
            base=source.pull_request.base_ref,
            checkout=run.plan.checkout,
        )
        if not source.repository.private:
            notes, problem = await self._clone_with(shell, run, text, token="")
            if problem is None:
                return notes
            if not problem.token_may_help:
                raise _failed(run, problem)
        asked: dict[str, None] = {}
        for attempt in range(1, TRIES + 1):
            try:
                notes, problem = await self._clone(shell, run, text)
            except GitHubError as error:
                if asked and error.status == 422:
                    raise _failed(
                        run, _Problem("the App isn't installed on the repository of one of its submodules")
                    ) from error
                if error.retry_after_s is None or attempt == TRIES:
                    raise
                await asyncio.sleep(min(error.retry_after_s, 60.0))
                continue
            if problem is None:
                return notes
            # An untrusted head could name any repository of its owner as a submodule, and read it.
            if not asked.keys() >= set(problem.submodules) and source.trust is Trust.TRUSTED and attempt < TRIES:
                asked |= dict.fromkeys(problem.submodules)  # the next try may show the submodules of these
                self._minting[run.id] = asyncio.create_task(self._mint(run, tuple(asked)))
                continue
            if attempt == TRIES or not problem.worth_retrying:
                raise _failed(run, problem)
            await asyncio.sleep(2.0 * attempt)
        raise AssertionError("the last try returns or raises")

    async def end(self, run: Run) -> None:
        minting = self._minting.pop(run.id, None)
        with contextlib.suppress(GitHubError, TimeoutError):
            async with asyncio.timeout(REVOKE_WITHIN_S):
                if minting is not None:
                    self._revoke(run, await minting)
                for revoking in self._revoking.pop(run.id, set()):
                    await revoking

    def _revoke(self, run: Run, token: str) -> None:
        """Revoke a token in the background; only the end of the run waits for it."""
        self._revoking.setdefault(run.id, set()).add(asyncio.create_task(self._github.revoke_token(token)))

    async def _clone(self, shell: Shell, run: Run, text: str) -> tuple[tuple[str, ...], _Problem | None]:
        self._begin_minting(run)
        try:
            token = await asyncio.shield(self._minting[run.id])
        except GitHubError:
            del self._minting[run.id]  # so that the next try mints again
            raise
        del self._minting[run.id]
        try:
            return await self._clone_with(shell, run, text, token)
        finally:
            self._revoke(run, token)

    async def _clone_with(self, shell: Shell, run: Run, text: str, token: str) -> tuple[tuple[str, ...], _Problem | None]:
        """Return the notes of a clone, or the problem if it failed. An empty token means no credentials."""
        try:
            result = await shell.run(text, timeout_s=CLONE_TIMEOUT_S, env={"GIBIL_CLONE_TOKEN": token})
        except TimeoutError:
            return (), _Problem(f"it took longer than {CLONE_TIMEOUT_S:.0f} s")
        if result.exit_status == 0:
            return clone.notes_of_clone(result.stdout), None
        message = result.stderr.replace(token.encode(), b"***") if token else result.stderr
        return (), _Problem(
            last_line(message, f"exit status {result.exit_status}"),
            worth_retrying=result.exit_status == clone.CLONE_UNREACHABLE,
            submodules=clone.submodule_names(result.stdout, run.source.repository.clone_url)
            if result.exit_status == clone.CLONE_REFUSED
            else (),
            token_may_help=result.exit_status in (clone.CLONE_UNREACHABLE, clone.CLONE_REFUSED),
        )


class _Problem:
    def __init__(
        self, text: str, *, worth_retrying: bool = False, token_may_help: bool = False, submodules: tuple[str, ...] = ()
    ) -> None:
        self.text = text
        self.worth_retrying = worth_retrying
        self.token_may_help = token_may_help
        self.submodules = submodules
        """Repositories that a token for them too may show."""


def _failed(run: Run, problem: _Problem) -> SourceError:
    source = run.source
    return SourceError(f"The clone of {source.repository.full_name} at {source.sha[:7]} failed: {problem.text}")


class LocalBundle:
    """Sends one commit with its history over SSH, so the machine needs no network and gets no token.

    `repository`: a repository that we created, such as a LocalRepository's view; `promisor` as in LocalRepository.
    `surroundings`: where submodules and files of Git LFS come from, if a checkout asks for them.
    """

    def __init__(
        self, repository: Path, sha: str, promisor: str | None = None, surroundings: Surroundings | None = None
    ) -> None:
        self._repository = repository
        self._sha = sha
        self._promisor = promisor
        self._surroundings = surroundings or Surroundings()
        self._checkout = Checkout()

    def begin(self, run: Run) -> None:
        """Do nothing: what has to be sent depends on the machine."""

    async def copy_to(self, shell: Shell, run: Run) -> tuple[str, ...]:
        return await self.send(shell, run.plan.checkout)

    async def copy_rest(self, shell: Shell, run: Run) -> tuple[str, ...]:
        return await self._send_rest(shell, run.plan.checkout)

    async def end(self, run: Run) -> None:
        """Do nothing: no token was acquired."""

    async def send(self, shell: Shell, checkout: Checkout | None = None) -> tuple[str, ...]:
        """Copy the commit to WORKSPACE; return notes. A shallow checkout stays shallow. Raises SourceError."""
        self._checkout = checkout or Checkout()
        answer = await shell.run(known_script(), most_bytes=1024 * 1024)
        known = parse_known(answer.stdout)
        notes: tuple[str, ...] = ()
        try:
            depth = self._checkout.depth or 0
            if depth or await git.text("rev-parse", "--is-shallow-repository", git_dir=self._repository) == "true":
                refs = await self._refs(tags=not depth)
                result = await self._send_copy(shell, self._shallow_copy(list(refs), depth), _base(refs))
            else:
                refs = await self._refs()
                try:
                    result = await self._send_packs(shell, refs, known)
                    if result.exit_status != 0 and known:  # the machine didn't have all of these objects
                        result = await self._send_packs(shell, refs)
                except GitError as error:
                    if self._promisor is not None:
                        raise
                    result = await self._send_commit(shell, error)
                    notes = (INCOMPLETE_HISTORY,)
        except GitError as error:
            why = explained(error, self._promisor)
            raise SourceError(f"The checkout could not be packed: {why.message}", stderr=error.stderr) from error
        if result.exit_status != 0:
            raise SourceError(f"The checkout could not be unpacked on the machine: {last_line(result.stderr)}")
        rest = await self._send_rest(shell, self._checkout)
        if not self._checkout.has_submodules:
            rest = clone.notes_of_clone(result.stdout)
        return (*notes, *rest)

    async def _send_rest(self, shell: Shell, checkout: Checkout) -> tuple[str, ...]:
        """Copy the submodules and the files of Git LFS that the checkout names. Raises SourceError."""
        notes: tuple[str, ...] = ()
        modules: dict[str, Submodule] = {}
        try:
            with tempfile.TemporaryDirectory(prefix="gibil-modules-") as scratch:
                if checkout.has_submodules:
                    found = await collect(
                        self._repository, self._sha, self._surroundings.modules, Path(scratch),
                        recursive=checkout.submodules == "recursive", depth=checkout.submodule_depth,
                        environment=self._surroundings.environment,
                    )  # fmt: skip
                    modules = {each.folder: each for each in found}
                    notes = await self._send_modules(shell, checkout, found, scratch)
            if checkout.lfs:
                await fetch_lfs(shell, lambda found: self._lfs_sources(found, modules), submodules=checkout.has_submodules)
        except GitError as error:
            raise error if isinstance(error, SourceError) else SourceError(error.message, stderr=error.stderr) from error
        return notes

    async def _send_modules(
        self, shell: Shell, checkout: Checkout, found: Sequence[Submodule], scratch: str
    ) -> tuple[str, ...]:
        if found:
            names = [each.repository.name for each in found]
            await shell.put(_MODULES, _output("tar", "-C", scratch, "-cf", "-", *names))
        places = [(each.parent, each.path, each.name) for each in found]
        script = clone.modules_script(places, archive=_MODULES, sha=self._sha, checkout=checkout)
        result = await shell.run(script, timeout_s=CLONE_TIMEOUT_S)
        if result.exit_status != 0:
            raise SourceError(f"The submodules could not be unpacked on the machine: {last_line(result.stderr)}")
        return clone.notes_of_clone(result.stdout)

    def _lfs_sources(self, found: LfsRepository, modules: Mapping[str, Submodule]) -> ObjectSources:
        around = self._surroundings
        module = modules.get(found.folder)
        remote = around.remote if found.folder == "." else module.url if module is not None else ""
        stores = around.lfs_stores
        if found.folder != ".":
            stores = (module.store / "lfs" / "objects",) if module is not None and module.store is not None else ()

        async def authorize() -> str | None:
            return await around.authorization(server_of(remote, found.lfs_url))

        return ObjectSources(remote=remote, stores=stores, authorize=authorize)

    async def _send_packs(self, shell: Shell, refs: Mapping[str, str], known: Sequence[str] = ()) -> Result:
        script = clone.pack_script(
            sha=self._sha,
            base=_base(refs),
            remote=self._surroundings.remote,
            checkout=self._checkout,
            keeps_history=bool(known),
        )
        async with packed(self._repository, self._sha, refs, known) as archive:
            return await shell.run(script, stdin=archive, timeout_s=CLONE_TIMEOUT_S)

    async def _send_commit(self, shell: Shell, problem: GitError) -> Result:
        """Send the commit without its history, which can't be packed. Raises `problem` if the commit can't be packed either."""
        try:
            return await self._send_copy(shell, self._shallow_copy([], 1, alone=True))
        except GitError:
            raise problem from None

    async def _send_copy(self, shell: Shell, data: AsyncIterator[bytes], base: str = "") -> Result:
        """Send a bare repository, and check the commit out from it. Raises GitError."""
        await shell.put("/root/.gibil/source.git.tar", data)
        unpacked = await shell.run("cd /root/.gibil && tar -xf source.git.tar && rm source.git.tar && test -d source.git")
        if unpacked.exit_status != 0:
            raise SourceError(
                "The checkout could not be unpacked on the machine: check its free disk space and that it has tar"
            )
        script = clone.bundle_script(
            path="/root/.gibil/source.git", sha=self._sha, base=base, remote=self._surroundings.remote, checkout=self._checkout
        )
        return await shell.run(script, timeout_s=CLONE_TIMEOUT_S)

    async def _shallow_copy(self, names: Sequence[str], depth: int, *, alone: bool = False) -> AsyncIterator[bytes]:
        """Stream a tar of a bare repository with these refs.

        `depth`: the number of commits; 0 is all that the checkout has. `alone`: without the tags of these commits, too.
        """
        with tempfile.TemporaryDirectory(prefix="gibil-shallow-") as scratch:
            copy = Path(scratch) / "source.git"
            await git.create_repository(copy)
            ref = await self._create_ref()
            refs = "".join(f"+{name}:{name}\n" for name in names).encode("utf-8", "surrogateescape")
            # With a depth, git follows the tags of the commits that it copies.
            tags = ["--no-tags"] if alone or not depth or not self._checkout.tags else []
            await git.run(
                "fetch", "-q", *tags, *([f"--depth={depth}"] if depth else ["--update-shallow"]), "--stdin",
                self._repository.as_uri(), f"+{ref}:refs/heads/source",
                git_dir=copy, extra={"GIT_NO_LAZY_FETCH": "0"}, stdin=refs,
            )  # fmt: skip
            async for data in _output("tar", "-C", scratch, "-cf", "-", copy.name):
                yield data

    async def _refs(self, *, tags: bool = True) -> dict[str, str]:
        """Return the branch of `origin` that the repository has, and the tags that the commit can reach: ref → object."""
        found = await self._listed(_ORIGIN)
        if tags and self._checkout.tags:
            found |= await self._listed(f"--merged={self._sha}", "refs/tags")
        return found

    async def _listed(self, *arguments: str) -> dict[str, str]:
        listed = await git.text(
            "for-each-ref", "--format=%(objectname) %(refname)", *arguments, git_dir=self._repository, extra=git.NO_FETCH
        )
        lines = [line.partition(" ") for line in listed.split("\n") if line]
        return {ref: name for name, _, ref in lines}

    async def _create_ref(self) -> str:
        """Create a ref for the commit: git packs refs, and the commit may have none. Each transfer has its own ref."""
        ref = f"refs/heads/gibil-{self._sha}-{secrets.token_hex(4)}"
        await git.run("update-ref", ref, self._sha, git_dir=self._repository)
        return ref


def _base(refs: Mapping[str, str]) -> str:
    """Return the name of the branch of `origin`, if there is one."""
    return next((ref.removeprefix(_ORIGIN) for ref in refs if ref.startswith(_ORIGIN)), "")


async def _output(*command: str) -> AsyncIterator[bytes]:
    """Yield the command's output. Raises SourceError with the last line of its stderr if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=without_secrets(os.environ),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while data := await process.stdout.read(256 * 1024):
            yield data
        message = (await process.stderr.read()).decode("utf-8", "replace").strip()
        if await process.wait() != 0:
            raise SourceError(f"{command[0]} could not pack the checkout: {message.splitlines()[-1] if message else ''}")
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(git.ended(process))


def address_of(clone_url: str) -> tuple[str, ...]:
    """Return `host:port` that a machine clones from, for its egress list; () if the URL has no host."""
    url = urlsplit(clone_url)
    if not url.hostname:
        return ()
    return (f"{url.hostname}:{url.port or (443 if url.scheme == 'https' else 80)}",)
