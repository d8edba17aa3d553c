"""run_commits.CommitSteps: collects on the machine and checks in a repository of this run, for GitHub and for local checkouts.

`GitHubSteps` writes through the API. `LocalSteps` writes nowhere, so the changes of `gibil try` are a patch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from msgspec import structs

from gibil_bot import git
from gibil_bot.commits import collected as collecting
from gibil_bot.commits import conflicts
from gibil_bot.commits.checks import Checked, CommitPolicy, CommitRejected, check
from gibil_bot.commits.collected import Collected, NotCollected
from gibil_bot.commits.conflicts import Conflict
from gibil_bot.commits.scanner import NoScanner
from gibil_bot.commits.writing import NotWritten, git_data_for_head, write
from gibil_bot.errors import GitHubError, HostUnavailable, NotFastForward, NoWriteAccess, RefRejected, UsageError
from gibil_bot.git import GitError
from gibil_bot.github.markdown import sentence
from gibil_bot.lfs.pointers import basic_authorization
from gibil_bot.model import CommitPlan, CommitProgress, Plan, PullRequestRequest, Repository, Run, Trust
from gibil_bot.ports import GitData, GitHub, Shell
from gibil_bot.retry import RetryPolicy
from gibil_bot.runs.logs import check_free_space
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import BranchClosed, BranchMoved, Changes, ChangesRejected, PushNotAllowed, Target
from gibil_bot.runs.run_files import RunFiles

log = logging.getLogger("gibil.runner")

_NAME = "the machine"
_BUNDLE, _BUNDLE_FACTS = "changes.bundle", "changes.json"
_FOLDER = "commits"
"""Working files, in the run's folder. A process that is killed leaves them to the next one."""
_FETCH_S = 300.0
_FETCHES = RetryPolicy(attempts=5, first_wait_s=1.0, factor=3.0, within_s=_FETCH_S)
"""The machine waits with its changes, so one lost connection must not end the run."""
_MOST_BUNDLE_BYTES = 64 * 1024 * 1024
"""Or twice the operator's limit for new content: a bundle also has what is left out, and earlier versions."""


class _BundleFacts(msgspec.Struct):
    base: str
    head: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitTools:
    """Dependencies and settings that the commits of all runs share."""

    github: GitHub
    git_data: Callable[[int], GitData]
    """The API with the rights of one installation."""
    policy: CommitPolicy
    """The operator's rules; a workflow adds its paths."""
    logs: Path
    """The folder with one folder for each run."""
    public_url: str = ""
    files: RunFiles | None = None
    """If changes may be stored on other hosts."""
    find_run: Callable[[str], Awaitable[Run | None]] | None = None
    """Returns the run of that id, whose changes another one commits."""

    @contextlib.asynccontextmanager
    async def steps(self, run: Run, redactor: Redactor) -> AsyncIterator[GitHubSteps]:
        """Return the steps of one run, with a repository that is deleted afterwards."""
        async with _working_folder(self.logs, run) as folder:
            yield GitHubSteps(self, redactor, folder)


@contextlib.asynccontextmanager
async def _working_folder(logs: Path, run: Run) -> AsyncIterator[Path]:
    folder = logs / run.id / _FOLDER
    await asyncio.to_thread(_new_folder, folder)
    try:
        yield folder
    finally:
        await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


class _CheckedChanges(ABC):
    """The steps until the changes are checked. One object for each run."""

    def __init__(self, policy: CommitPolicy, redactor: Redactor, folder: Path, logs: Path, files: RunFiles) -> None:
        """`folder`: of these steps, deleted afterwards; `logs`, `files`: see CommitTools."""
        self._policy = policy
        self._most_bundle_bytes = max(_MOST_BUNDLE_BYTES, 2 * policy.most_bytes)
        self._files = files
        self._redactor = redactor
        self._folder = folder
        self._logs = logs
        self._checked: Checked | None = None
        self._is_rebased = False
        self._bundles = 0
        self._remark = ""

    async def _find_run(self, run_id: str) -> Run | None:
        """Return a run of which the store knows more than its id."""
        return None

    @abstractmethod
    async def _with_commit(self, run: Run, sha: str) -> Path:
        """Return a repository that we created, with that commit. Raises GitHubError, GitError."""

    async def collect(self, shell: Shell | None, run: Run, base: str) -> Changes | None:
        plan = run.plan.commit
        assert plan is not None
        try:
            found = await self._stored(run) if shell is None else await self._collected(shell, plan, base)
            if found is None:
                return None
            if shell is not None:
                # Before GitHub is asked: the machine is destroyed whatever the answer is.
                await asyncio.to_thread(_keep, found, self._logs / run.id)
            repository = await self._with_commit(run, found.base)
            policy = policy_for(self._policy, plan, self._redactor)
            checked = await check(repository, found, policy, name=_NAME)
            patch = await conflicts.patch(repository, checked) if checked.commits else b""
        except CommitRejected as error:
            raise ChangesRejected("\n".join(problem.message for problem in error.problems)) from error
        except (NotCollected, UsageError, NoScanner) as error:
            raise ChangesRejected(error.message) from error
        except GitError as error:
            raise ChangesRejected(f"The commits can't be checked: {error.message}") from error
        self._checked = checked
        return Changes(
            base=checked.base,
            head=found.head,
            commits=len(checked.commits),
            files=len(checked.files),
            size=checked.bytes,
            dropped=checked.dropped,
            remark=self._remark,
            patch=patch or b"",
        )

    async def _collected(self, shell: Shell, plan: CommitPlan, base: str) -> Collected | None:
        source = collecting.REBASED
        if not self._is_rebased:
            source, self._remark = await collecting.choose(shell, base, plan.message, name=_NAME)
        self._bundles += 1
        into = self._folder / f"{self._bundles}.bundle"
        return await collecting.collect(shell, base, into, name=_NAME, source=source, most_bytes=self._most_bundle_bytes)

    async def _stored(self, run: Run) -> Collected:
        """Return the stored changes of the run, or of the one that it applies. Raises ChangesRejected, HostUnavailable."""
        folder = await self._stored_in(run)
        facts = await asyncio.to_thread(_facts, folder) if folder is not None else None
        if folder is None or facts is None:
            raise ChangesRejected("The stored changes were deleted; run the workflow again.")
        size = (await asyncio.to_thread((folder / _BUNDLE).stat)).st_size
        return Collected(base=facts.base, head=facts.head, bundle=folder / _BUNDLE, bytes=size)

    async def has_stored(self, run: Run) -> bool:
        return await self._stored_in(run) is not None

    async def _stored_in(self, run: Run) -> Path | None:
        """Return the folder of the stored changes, after copying them from another host if necessary; None: there are none.

        A host from which a run was taken over may have stored other changes than those that were shown to people.
        """
        of = run
        if run.plan.applies is not None:
            of = await self._find_run(run.plan.applies) or structs.replace(run, id=run.plan.applies, hosts=(), commit=None)
        head = of.commit.head if of.commit is not None and len(of.hosts) > 1 else ""

        def are_wanted(folder: Path) -> bool:
            facts = _facts(folder)
            return facts is not None and head in ("", facts.head)

        if await asyncio.to_thread(are_wanted, self._folder):
            return self._folder
        names, most = (_BUNDLE_FACTS, _BUNDLE), self._most_bundle_bytes
        try:
            return await self._files.copy(of.id, of.hosts, names, self._folder, most_bytes=most, are_wanted=are_wanted)
        except OSError as error:
            raise HostUnavailable(f"The changes can't be copied from another host: {error.strerror}") from None

    async def discard(self, run: Run) -> None:
        await asyncio.to_thread(_discard, self._logs / run.id)


class GitHubSteps(_CheckedChanges):
    """See run_commits.CommitSteps. One object for each run."""

    def __init__(self, tools: CommitTools, redactor: Redactor, folder: Path) -> None:
        super().__init__(tools.policy, redactor, folder, tools.logs, tools.files or RunFiles(tools.logs))
        self._tools = tools
        self._repository: Path | None = None
        self._installations: dict[str, int | None] = {}
        """Fork → the installation that may write to it."""

    async def _find_run(self, run_id: str) -> Run | None:
        return await self._tools.find_run(run_id) if self._tools.find_run is not None else None

    async def rebase(self, shell: Shell | None, run: Run, onto: Target) -> bool:
        if shell is None or onto.head is None or self._checked is None:
            return False
        try:
            repository = await self._with_commit(run, onto.head, depth=None, repository=onto.repository)
            await conflicts.rebase(shell, repository, self._checked, onto.head, name=_NAME)
        except (Conflict, NotCollected, GitError):
            return False
        self._is_rebased = True
        return True

    async def _with_commit(self, run: Run, sha: str, *, depth: int | None = 1, repository: str = "") -> Path:
        """Return the repository of this run, after fetching that commit. Raises GitHubError."""
        path = self._folder / "repository.git"
        if self._repository is None:
            await git.create_repository(path)
            self._repository = path
        source = run.source.repository
        url = source.clone_url
        if repository and repository.lower() != source.full_name.lower():
            url = f"{_server_of(source)}{repository}.git"
        arguments = [f"--depth={depth}"] if depth else []

        async def fetch() -> None:
            token = await self._tools.github.clone_token(run.source.installation_id, source) if source.private else None
            extra = git.anonymous_environment()
            if token is not None:
                extra |= {
                    "GIT_CONFIG_COUNT": "1",
                    "GIT_CONFIG_KEY_0": f"http.{url}.extraHeader",
                    "GIT_CONFIG_VALUE_0": f"Authorization: {basic_authorization('x-access-token', token)}",
                }
            try:
                await git.run(
                    "fetch", "-q", "--no-tags", "--no-write-fetch-head", *arguments, "--", url, f"+{sha}:refs/gibil/{sha}",
                    git_dir=path, extra=extra, within_s=_FETCH_S, limits=git.ALL_FILES,
                )  # fmt: skip
            finally:
                if token is not None:
                    await asyncio.shield(self._tools.github.revoke_token(token))

        try:
            await _FETCHES.call(fetch, retry_after_s=_fetch_again_after_s)
        except GitError as error:
            raise GitHubError(f"{source.full_name}: the commit {sha[:7]} can't be fetched: {error.message}") from error
        return path

    # --- at GitHub

    async def target(self, run: Run, plan: CommitPlan) -> Target:
        home, pull = run.source.repository.full_name, run.source.pull_request
        if plan.to == "branch":
            assert plan.branch is not None
            _check_other_branch(run, plan.branch)
            return await self._at_home(run, plan.branch)
        if not (await self._tools.github.pull_request(run.source.installation_id, home, pull.number)).is_open:
            raise PushNotAllowed(f"Pull request {pull.number} was closed or merged meanwhile")
        repository = pull.head_repository
        if repository is None:
            raise BranchClosed("The fork of this pull request was deleted")
        if repository.lower() == home.lower():
            target = await self._at_home(run, pull.head_ref)
            if target.head is None:
                raise PushNotAllowed(f"{home} has no branch {pull.head_ref}: it was deleted or renamed")
            return target
        data = await self._data(run, repository)
        if not await data.may_write():
            raise BranchClosed(f"The App may only read contents of {repository}")
        head = await data.ref(repository, pull.head_ref)
        if head is None:
            raise BranchClosed(f"The App sees no branch {pull.head_ref} in {repository}")
        return Target(repository=repository, branch=pull.head_ref, head=head)

    async def elsewhere(self, run: Run, plan: CommitPlan) -> Target | None:
        # The branch would contain the fork's commits, with their workflows of GitHub Actions, which run with secrets there.
        if not _may_use_own_branch(run, plan):
            return None
        return await self._at_home(run, _own_branch(run))

    async def _at_home(self, run: Run, branch: str) -> Target:
        home = run.source.repository.full_name
        data = await self._data(run, home)
        if not await data.may_write():
            raise PushNotAllowed(
                "The App may only read contents here: an owner of the account has to accept its permission `contents: write`"
            )
        return Target(repository=home, branch=branch, head=await data.ref(home, branch))

    async def create(self, run: Run, changes: Changes, target: Target) -> str:
        assert self._repository is not None
        assert self._checked is not None
        data = await self._data(run, target.repository)
        url = self._tools.public_url
        try:
            return await write(
                data,
                target.repository,
                self._repository,
                base=changes.base,
                head=self._checked.head,
                run_url=f"{url.rstrip('/')}/runs/{run.id}" if url else run.id,
                co_author=await self._co_author(data, run.source.actor),
                own_message=run.plan.commit.message if run.plan.commit is not None else "",
            )
        except NoWriteAccess as error:
            raise _not_allowed(run, target, error) from error
        except (NotWritten, GitError) as error:
            raise PushNotAllowed(error.message) from error

    async def head(self, run: Run, repository: str, branch: str) -> str | None:
        return await (await self._data(run, repository)).ref(repository, branch)

    async def contains(self, run: Run, repository: str, branch: str, sha: str) -> bool:
        return await (await self._data(run, repository)).contains(repository, branch, sha)

    async def move(self, run: Run, target: Target, sha: str) -> None:
        data = await self._data(run, target.repository)
        try:
            if target.head is None:
                await data.create_ref(target.repository, target.branch, sha)
            else:
                await data.move_ref(target.repository, target.branch, sha, expected=target.head)
        except NotFastForward as error:
            raise BranchMoved(error.message) from error
        except (NoWriteAccess, RefRejected) as error:
            raise _not_allowed(run, target, error) from error

    async def announce(self, run: Run, plan: CommitPlan, progress: CommitProgress) -> str | None:
        source, request = run.source, plan.pull_request
        if plan.to == "head" and progress.branch == _own_branch(run):
            request = _own_request(run, plan, progress.message)
        if request is None:
            return f"{_server_of(source.repository)}{progress.repository}/commit/{progress.created}"
        is_branch = source.pull_request.head_repository == source.repository.full_name
        _, url = await (await self._data(run, source.repository.full_name)).open_pull_request(
            source.repository.full_name,
            head=progress.branch,
            base=source.pull_request.head_ref if is_branch else source.pull_request.base_ref,
            title=request.title,
            body=request.body or f"From #{source.pull_request.number}, by the workflow {run.plan.title}.",
            draft=request.draft,
        )
        return url

    async def _data(self, run: Run, repository: str) -> GitData:
        """Return the API with the rights for that repository. Raises BranchClosed, GitHubError."""
        source = run.source
        data = self._tools.git_data(source.installation_id)
        if repository.lower() == source.repository.full_name.lower():
            return data
        if repository not in self._installations:
            self._installations[repository] = await git_data_for_head(
                data, source.pull_request, source.repository.full_name, source.installation_id
            )
        installation = self._installations[repository]
        if installation is None:
            why = "the pull request doesn't allow edits by maintainers"
            if not source.pull_request.head_owner_is_user:
                why = "it belongs to an organization, whose forks maintainers can't edit"
            raise BranchClosed(f"The App can't write to {repository}: {why}, and the App isn't installed there")
        return data if installation == source.installation_id else self._tools.git_data(installation)

    async def _co_author(self, data: GitData, login: str) -> str:
        address = await data.noreply_address(login)
        return f"{login} <{address}>" if address else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCommitTools:
    """The same as CommitTools, for the runs of a local checkout."""

    repository: Path
    """A repository that we created, with the checkout's commit."""
    policy: CommitPolicy
    logs: Path

    @contextlib.asynccontextmanager
    async def steps(self, run: Run, redactor: Redactor) -> AsyncIterator[LocalSteps]:
        async with _working_folder(self.logs, run) as folder:
            yield LocalSteps(self, redactor, folder)


class LocalSteps(_CheckedChanges):
    """See run_commits.CommitSteps. There is no branch to write to, so plans need `to: patch` (see `as_patch`)."""

    def __init__(self, tools: LocalCommitTools, redactor: Redactor, folder: Path) -> None:
        super().__init__(tools.policy, redactor, folder, tools.logs, RunFiles(tools.logs))
        self._repository = tools.repository

    async def _with_commit(self, run: Run, sha: str) -> Path:
        return self._repository

    async def rebase(self, shell: Shell | None, run: Run, onto: Target) -> bool:
        return False

    async def target(self, run: Run, plan: CommitPlan) -> Target:
        raise _nothing_is_pushed()

    async def elsewhere(self, run: Run, plan: CommitPlan) -> Target | None:
        return None

    async def create(self, run: Run, changes: Changes, target: Target) -> str:
        raise _nothing_is_pushed()

    async def head(self, run: Run, repository: str, branch: str) -> str | None:
        return None

    async def contains(self, run: Run, repository: str, branch: str, sha: str) -> bool:
        return False

    async def move(self, run: Run, target: Target, sha: str) -> None:
        raise _nothing_is_pushed()

    async def announce(self, run: Run, plan: CommitPlan, progress: CommitProgress) -> str | None:
        return None


def _server_of(repository: Repository) -> str:
    """Return the address that the names of repositories follow."""
    return repository.clone_url.removesuffix(".git").removesuffix(repository.full_name)


def _fetch_again_after_s(error: Exception) -> float | None:
    if isinstance(error, GitHubError):
        return error.retry_after_s
    return 0.0 if isinstance(error, GitError) else None


def _nothing_is_pushed() -> PushNotAllowed:
    return PushNotAllowed("The run is of a local checkout, so nothing is pushed")


def as_patch(plan: Plan) -> Plan:
    """Return a plan whose changes become a patch."""
    if plan.commit is None:
        return plan
    return structs.replace(plan, commit=plan.commit.as_patch())


def policy_for(policy: CommitPolicy, plan: CommitPlan, redactor: Redactor) -> CommitPolicy:
    """Return the policy with the paths of a workflow and the secrets of a run."""
    return replace(policy, paths=plan.paths, strict=plan.strict, secrets=redactor)


def _not_allowed(run: Run, target: Target, error: GitHubError) -> PushNotAllowed:
    is_fork = target.repository.lower() != run.source.repository.full_name.lower()
    return BranchClosed(error.message) if is_fork else PushNotAllowed(error.message)


# --- a branch of the base repository in place of the pull request's


def _check_other_branch(run: Run, branch: str) -> None:
    """Raise PushNotAllowed for a branch that the commits of a pull request reach only when it is merged.

    The name may contain that of a fork's branch, which its author chose: `main` is the usual one.
    """
    pull, repository = run.source.pull_request, run.source.repository
    if branch in (pull.base_ref, repository.default_branch):
        raise PushNotAllowed(f"{branch} changes by merging the pull request; choose another `branch` in the workflow")
    if branch == pull.head_ref and (pull.head_repository or "").lower() != repository.full_name.lower():
        raise PushNotAllowed(f"{branch} is the name of the fork's branch; choose another `branch` in the workflow")


def _may_use_own_branch(run: Run, plan: CommitPlan) -> bool:
    return plan.to == "head" and (run.source.trust is Trust.TRUSTED or run.source.is_by_agent)


def _own_branch(run: Run) -> str:
    """Return a name for one workflow on one commit: a later commit may not descend from the commits of an earlier run."""
    return f"gibil/{run.plan.workflow}-{run.source.pull_request.number}-{run.source.sha[:7]}"


def _own_request(run: Run, plan: CommitPlan, why: str) -> PullRequestRequest:
    source, number = run.source, run.source.pull_request.number
    advice = f"Merge it into the branch of #{number}."
    if source.pull_request.head_repository != source.repository.full_name:
        advice = f"It has the commits of #{number}, too: merge it in place of #{number}, or pull its branch into the fork's."
    return PullRequestRequest(
        title=f"{plan.message.partition(chr(10))[0]} (#{number})",
        body=f"The changes of the workflow {run.plan.title} for #{number}. {sentence(why)}\n\n{advice}",
    )


# --- the run's folder


def _new_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)


def _keep(found: Collected, folder: Path) -> None:
    """Store the bundle with the run, for a patch that a user applies later, or if the machine is lost. Not on a full disk."""
    try:
        check_free_space(folder, found.bytes)
        shutil.copyfile(found.bundle, folder / _BUNDLE)
        (folder / _BUNDLE_FACTS).write_bytes(msgspec.json.encode(_BundleFacts(base=found.base, head=found.head)))
    except OSError as error:
        log.warning("run %s: its changes can't be stored: %s", folder.name, error.strerror)
        _discard(folder)


def _facts(folder: Path) -> _BundleFacts | None:
    """Return what is known of the stored bundle; None if none is stored, or nothing can be read. Blocks."""
    try:
        if not (folder / _BUNDLE).exists():
            return None
        return msgspec.json.decode((folder / _BUNDLE_FACTS).read_bytes(), type=_BundleFacts)
    except (OSError, msgspec.MsgspecError):
        return None


def _discard(folder: Path) -> None:
    for name in (_BUNDLE, _BUNDLE_FACTS):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
