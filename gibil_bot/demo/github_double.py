"""A small GitHub with state, for the demonstration and for tests: real HTTP, git, signatures and error responses.

  async with GitHubDouble.start(tmp_path, webhook_url=…) as github:
      github.add_repository("ada/engine", {"README.md": "hello"})

It implements GitHub's documented behaviour; each rule has the URL of its page. README.md lists the behaviour that no page
defines and that the double had to choose.
"""

from __future__ import annotations

import contextlib
import functools
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gibil_bot.demo import actions, api_git_data, lfs_http, payloads, tokens
from gibil_bot.demo.actions import Hub
from gibil_bot.demo.application import application
from gibil_bot.demo.faults import Faults
from gibil_bot.demo.git_store import Files, GitStore
from gibil_bot.demo.hooks import Hooks
from gibil_bot.demo.middleware import Front
from gibil_bot.demo.queries import Queries
from gibil_bot.demo.records import DEFAULT_PERMISSIONS, ROLES, Comment, Installation, Issue, Repository, Review, User
from gibil_bot.demo.server import serving
from gibil_bot.demo.state import State
from gibil_bot.github.webhook import EVENTS


class GitHubDouble(Queries):
    """The actions of users on GitHub; `Queries` shows the results. Created by `start`."""

    def __init__(self, hub: Hub, faults: Faults, private_key: rsa.RSAPrivateKey, url: str) -> None:
        self.url = url
        """The URL of the API and of git, without a trailing slash."""
        super().__init__(hub.state)
        self.app_id = hub.state.app_id
        self.private_key_pem = _pem(private_key)
        self._hub = hub
        self._faults = faults

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        directory: Path,
        *,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        app_slug: str = "gibil",
        permissions: Mapping[str, str] = DEFAULT_PERMISSIONS,
        events: tuple[str, ...] = EVENTS,
        port: int = 0,
    ) -> AsyncIterator[GitHubDouble]:
        """Listen on loopback until the block ends. Repositories are stored under `directory`, which isn't removed."""
        app_id = 100_000 + secrets.randbelow(900_000)
        state = State(app_id=app_id, app_slug=app_slug, permissions=permissions, events=events)
        private_key = _app_key()
        root = directory / "repositories"
        root.mkdir(parents=True, exist_ok=True)
        hooks = Hooks(state, url=webhook_url, secret=webhook_secret or secrets.token_hex(16))
        hub, faults = Hub(state, GitStore(root), hooks), Faults()
        front = Front(application(hub), state, faults, private_key.public_key())
        try:
            async with serving(front, port=port) as url:
                state.url = url
                try:
                    yield cls(hub, faults, private_key, url)
                finally:
                    front.stopping.set()
        finally:
            await hooks.close()

    # --- the App ------------------------------------------------------------------------------------------------

    @property
    def webhook_url(self) -> str | None:
        return self._hub.hooks.url

    @webhook_url.setter
    def webhook_url(self, url: str | None) -> None:
        self._hub.hooks.url = url

    @property
    def webhook_secret(self) -> str:
        return self._hub.hooks.secret

    @webhook_secret.setter
    def webhook_secret(self, secret: str) -> None:
        self._hub.hooks.secret = secret

    def installation(self, full_name: str) -> Installation:
        """Return the installation that a repository belongs to. Raises KeyError."""
        return self.state.installations[self.state.repository(full_name).installation_id or 0]

    def uninstall(self, full_name: str) -> None:
        """Uninstall the App from the owner of that repository, with all its tokens."""
        installation = self.installation(full_name)
        del self.state.installations[installation.id]
        for repository in self.state.repositories_of(installation.id):
            repository.installation_id = None
        self.state.touch()

    def revoke_tokens(self) -> int:
        """Revoke all installation tokens. Returns how many there were."""
        live = [token for token in self.state.tokens.values() if not token.revoked]
        for token in live:
            token.revoked = True
        self.state.touch()
        return len(live)

    def personal_token(
        self, login: str, *, permissions: Mapping[str, str] | None = None, only: Sequence[str] | None = None
    ) -> str:
        """Create a token of that user, for all visible repositories or for those in `only`."""
        return tokens.personal_token(self._hub, self.state.add_user(login), permissions, only)

    # --- people and repositories --------------------------------------------------------------------------------

    def add_user(self, login: str, type: str = "User") -> User:
        return self.state.add_user(login, type)

    async def add_repository(
        self,
        full_name: str,
        files: Files,
        *,
        private: bool = False,
        default_branch: str = "main",
        installed: bool = True,
    ) -> Repository:
        """Add a repository with one commit, its owner if needed, and install the App."""
        owner_login, _, name = full_name.partition("/")
        owner = self.state.add_user(owner_login)
        installation_id = actions.install(self._hub, owner).id if installed else None
        repository = Repository(self.state.new_id(), owner, name, private, default_branch, installation_id)
        await self._hub.git.create(full_name, default_branch)
        await self._hub.git.commit(
            full_name, default_branch, files, message="The first commit", author=owner.login, parent=None
        )  # fmt: skip
        self.state.repositories[full_name.lower()] = repository
        self.state.touch()
        return repository

    async def fork(self, full_name: str, owner_login: str, name: str | None = None) -> Repository:
        """Return that owner's fork, creating it if needed. The App isn't installed on it.

        An organization can fork its own repository under another name.
        """
        parent = self.state.repository(full_name)
        name = name or parent.name
        fork_name = f"{owner_login}/{name}"
        existing = self.state.repositories.get(fork_name.lower())
        if existing is not None:
            return existing
        await self._hub.git.fork(parent.full_name, fork_name)
        owner = self.state.add_user(owner_login)
        fork = Repository(self.state.new_id(), owner, name, parent.private, parent.default_branch, None, parent=parent)
        self.state.repositories[fork_name.lower()] = fork
        self.state.touch()
        return fork

    def delete_repository(self, full_name: str) -> None:
        """Delete a repository; pull requests from it remain without a head repository."""
        deleted = self.state.repositories.pop(full_name.lower())
        for repository in self.state.repositories.values():
            for pull in repository.pull_requests():
                if pull.head_repository is deleted:
                    pull.head_repository = None
        self.state.touch()

    def transfer_repository(self, full_name: str, owner_login: str) -> Repository:
        """Transfer a repository to another owner: its id and its pull requests don't change.
        https://docs.github.com/en/repositories/creating-and-managing-repositories/transferring-a-repository"""
        repository = self.state.repositories.pop(full_name.lower())
        before = self._hub.git.path(repository.full_name)
        repository.owner = self.state.add_user(owner_login)
        after = self._hub.git.path(repository.full_name)
        after.parent.mkdir(parents=True, exist_ok=True)
        before.rename(after)
        self.state.repositories[repository.full_name.lower()] = repository
        self.state.touch()
        return repository

    def protect_branch(
        self, full_name: str, branch: str, message: str = "Changes must be made through a pull request."
    ) -> None:
        """Protect a branch against direct changes; GitHub answers attempts with that message."""
        self.state.repository(full_name).protected[branch] = message
        self.state.touch()

    def allow_apps_to_edit_forks(self, *, allowed: bool = True) -> None:
        """Let the App write to forks whose pull requests let maintainers edit. GitHub's pages don't say whether it may."""
        self.state.apps_edit_forks = allowed

    def set_maintainer_edits(self, full_name: str, number: int, *, allowed: bool) -> None:
        """Tick or clear "Allow edits by maintainers" of a pull request from a fork."""
        self.pull_request(full_name, number).maintainer_can_modify = allowed
        self.state.touch()

    def grant(self, full_name: str, permissions: Mapping[str, str]) -> None:
        """Set what the owner of that repository has accepted for the App. Tokens that exist keep their permissions."""
        installation = self.installation(full_name)
        installation.permissions.clear()
        installation.permissions.update(permissions)
        self.state.touch()

    def install(self, full_name: str) -> None:
        """Install the App on the owner of an existing repository, such as a fork."""
        repository = self.state.repository(full_name)
        repository.installation_id = actions.install(self._hub, repository.owner).id
        self.state.touch()

    def set_permission(self, full_name: str, login: str, role: str) -> None:
        """`role`: admin, maintain, write, triage, read or none."""
        if role not in ROLES:
            raise ValueError(f"{role!r} is not one of {', '.join(ROLES)}")
        self.state.add_user(login)
        self.state.repository(full_name).roles[login.lower()] = role
        self.state.touch()

    def add_lfs_object(self, full_name: str, content: bytes) -> str:
        """Upload an object of Git LFS. Returns its pointer."""
        return lfs_http.add_object(self.state, self.state.repository(full_name), content)

    # --- commits and pull requests ------------------------------------------------------------------------------

    async def open_pull_request(
        self,
        full_name: str,
        branch: str,
        files: Files,
        author: str,
        *,
        fork: bool = False,
        title: str = "A change",
        body: str = "",
        draft: bool = False,
    ) -> int:
        """Push the files to a branch (of the author's fork) and open a pull request from it. Returns its number."""
        home, who = self.state.repository(full_name), self.state.add_user(author)
        head = await self.fork(full_name, author) if fork else home
        await actions.push(self._hub, head, branch, files, who, message=title)
        pull = await actions.open_pull_request(self._hub, home, head, branch, who, title=title, body=body, draft=draft)
        return pull.number

    async def push(
        self,
        full_name: str,
        target: int | str,
        files: Files,
        *,
        author: str | None = None,
        message: str = "A push",
        force: bool = False,
    ) -> str:
        """Push a commit to a branch, or to the branch of a pull request. Returns its hash. `force` replaces the last commit."""
        repository = self.state.repository(full_name)
        branch, who = str(target), repository.owner
        if isinstance(target, int):
            pull = self.pull_request(full_name, target)
            if pull.head_repository is None:
                raise KeyError(f"the fork of {full_name}#{target} was deleted")
            repository, branch, who = pull.head_repository, pull.head_ref, pull.author
        pusher = self.state.add_user(author) if author else who
        return await actions.push(self._hub, repository, branch, files, pusher, message=message, force=force)

    async def commit(self, full_name: str, sha: str) -> dict[str, Any]:
        """Return a commit as the Git database's API shows it."""
        return await api_git_data.commit(self._hub, self.state.repository(full_name), sha)

    async def changed_files(self, full_name: str, before: str, after: str) -> list[str]:
        return await self._hub.git.changed_paths(full_name, before, after)

    async def reset_branch(self, full_name: str, number: int, sha: str, sender: str) -> None:
        """Force-push an existing commit to the branch of a pull request."""
        pull = self.pull_request(full_name, number)
        if pull.head_repository is None:
            raise KeyError(f"the fork of {full_name}#{number} was deleted")
        await actions.reset_branch(self._hub, pull.head_repository, pull.head_ref, sha, self.state.add_user(sender))

    async def open_from(self, full_name: str, head: str, branch: str, author: str, *, title: str = "A change") -> int:
        """Open a pull request from an existing branch of the repository `head`. Returns its number."""
        home, source = self.state.repository(full_name), self.state.repository(head)
        who = self.state.add_user(author)
        pull = await actions.open_pull_request(self._hub, home, source, branch, who, title=title, body="", draft=False)
        return pull.number

    async def retarget(self, full_name: str, number: int, base: str) -> None:
        """Move a pull request to another base branch."""
        pull = self.pull_request(full_name, number)
        await actions.retarget(self._hub, self.state.repository(full_name), pull, base, pull.author)

    async def queue_merge(self, full_name: str, number: int) -> str:
        """Put a pull request into the merge queue. Returns the hash of the commit whose checks the queue requests."""
        home = self.state.repository(full_name)
        return await actions.queue_merge(self._hub, home, self.pull_request(full_name, number), home.owner)

    def close_pull_request(self, full_name: str, number: int, sender: str | None = None) -> None:
        self._set_state(full_name, number, "closed", sender)

    def reopen_pull_request(self, full_name: str, number: int, sender: str | None = None) -> None:
        self._set_state(full_name, number, "open", sender)

    def _set_state(self, full_name: str, number: int, state: str, sender: str | None) -> None:
        pull = self.pull_request(full_name, number)
        who = self.state.add_user(sender) if sender else pull.author
        actions.set_pull_request_state(self._hub, self.state.repository(full_name), pull, state, who)

    def open_issue(self, full_name: str, author: str, title: str = "An issue", body: str = "") -> Issue:
        return actions.open_issue(self._hub, self.state.repository(full_name), self.state.add_user(author), title, body)

    # --- the conversation ---------------------------------------------------------------------------------------

    def comment(self, full_name: str, number: int, author: str, body: str) -> Comment:
        return actions.comment(self._hub, self.state.repository(full_name), number, self.state.add_user(author), body)

    def review_comment(self, full_name: str, number: int, author: str, body: str, *, path: str = "README.md") -> Comment:
        repository = self.state.repository(full_name)
        return actions.comment(self._hub, repository, number, self.state.add_user(author), body, path=path)

    def review(
        self,
        full_name: str,
        number: int,
        author: str,
        body: str,
        *,
        state: str = "commented",
        commit_sha: str | None = None,
    ) -> Review:
        """Submit a review: `state` is commented, approved or changes_requested."""
        repository, pull = self.state.repository(full_name), self.pull_request(full_name, number)
        who = self.state.add_user(author)
        return actions.review(self._hub, repository, pull, who, body, state=state, commit_sha=commit_sha)

    def edit_review(self, full_name: str, review: Review, body: str) -> None:
        pull = self.pull_request(full_name, review.number)
        actions.edit_review(self._hub, self.state.repository(full_name), pull, review, body)

    def edit_comment(self, comment_id: int, body: str, editor: str) -> None:
        """Edit a comment, as its author or a maintainer."""
        repository, comment = self.find_comment(comment_id)
        actions.edit_comment(self._hub, repository, comment, body, self.state.add_user(editor))

    def delete_comment(self, comment_id: int) -> None:
        """Delete a comment, as a maintainer. Raises KeyError."""
        repository, comment = self.find_comment(comment_id)
        actions.delete_comment(self._hub, repository, comment, repository.owner)

    def rerequest_check_run(self, check_run_id: int, sender: str) -> None:
        """Press Re-run."""
        found = self.state.find_check_run(check_run_id)
        if found is None:
            raise KeyError(check_run_id)
        actions.rerequest_check_run(self._hub, *found, self.state.add_user(sender))

    def press_button(self, check_run_id: int, identifier: str, sender: str) -> None:
        """Press a button of a check run. Raises KeyError if it has no such button."""
        found = self.state.find_check_run(check_run_id)
        if found is None:
            raise KeyError(check_run_id)
        actions.press_button(self._hub, *found, identifier, self.state.add_user(sender))

    def rerequest_suite(self, full_name: str, sha: str, sender: str) -> None:
        """Press Re-run all checks."""
        repository = self.state.repository(full_name)
        suite, _ = actions.suite_of(self._hub, repository, sha)
        actions.rerequest_suite(self._hub, repository, suite, self.state.add_user(sender))

    # --- webhooks -----------------------------------------------------------------------------------------------

    def deliver(self, event: str, payload: payloads.Json | bytes, *, guid: str | None = None) -> str | None:
        """Send any payload, signed. Returns its GUID."""
        return self._hub.hooks.deliver(event, payload, guid=guid)

    def redeliver(self, delivery_id: int) -> None:
        if not self._hub.hooks.redeliver(delivery_id):
            raise KeyError(delivery_id)

    def fail_deliveries(self, times: int, status: int = 502) -> None:
        """Let the next attempts fail without reaching the receiver."""
        self._hub.hooks.failing += [status] * times

    def accept_deliveries(self) -> None:
        """Let the next attempts reach the receiver again."""
        self._hub.hooks.failing.clear()

    async def webhooks_sent(self) -> None:
        """Wait until no webhook is being sent."""
        await self._hub.hooks.webhooks_sent()

    # --- faults -------------------------------------------------------------------------------------------------

    def fault(
        self, method: str, path_regex: str, kind: str, *, times: int = 1, status: int = 502, seconds: float = 60.0
    ) -> None:
        """Let the next matching requests fail; `kind` is a `faults.FaultKind`. Faults take effect in the order of arming."""
        self._faults.arm(method, path_regex, kind, times=times, status=status, seconds=seconds)

    @property
    def faults_left(self) -> int:
        """How often armed faults will still take effect; a fault counts from its beginning, even while it hangs."""
        return self._faults.left

    def clear_faults(self) -> None:
        self._faults.clear()

    def advance(self, seconds: float) -> None:
        """Advance GitHub's clock: tokens expire, limits reset, old deliveries are forgotten."""
        self.state.advance(seconds)


def _pem(key: rsa.RSAPrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


@functools.cache
def _app_key() -> rsa.RSAPrivateKey:
    """Return a key, the same for all doubles of this process: generating it takes as long as starting a double."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)
