"""Which credentials a run's clone uses: none for a public repository, a revoked token for any other."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from gibil_bot.errors import GitHubError
from gibil_bot.model import Repository, Result, Run, RunState, Source, Trust
from gibil_bot.ports import GitHub, Shell
from gibil_bot.runs.sources import PullRequestClone, SourceError
from gibil_bot.scripts import clone
from tests.contracts.store_nouns import new_run


@dataclass
class _Tokens:
    """Mints `token-1`, `token-2`, … and records which are revoked."""

    minted: int = 0
    revoked: list[str] = field(default_factory=list)

    submodules: list[tuple[str, ...]] = field(default_factory=list)
    not_installed: bool = False
    """Whether the App isn't installed on the repositories of submodules."""

    async def clone_token(self, installation_id: int, repository: Repository, submodules: tuple[str, ...] = ()) -> str:
        self.submodules.append(submodules)
        if submodules and self.not_installed:
            raise GitHubError("Validation Failed", status=422)
        self.minted += 1
        return f"token-{self.minted}"

    async def revoke_token(self, token: str) -> None:
        self.revoked.append(token)


@dataclass
class _Machine:
    """Ends each clone with the next of `statuses`, and records the token that it got."""

    statuses: list[int]
    tokens: list[str] = field(default_factory=list)
    printed: bytes = b""

    async def run(self, script: str, *, timeout_s: float, env: dict[str, str]) -> Result:
        self.tokens.append(env["GIBIL_CLONE_TOKEN"])
        return Result(exit_status=self.statuses.pop(0), stdout=self.printed, stderr=b"gibil: the reason")


def _run(*, private: bool, trust: Trust = Trust.TRUSTED) -> Run:
    new = new_run("r1")
    old = new.source
    repository = Repository(
        id=1, full_name="ada/engine", clone_url="https://github.com/ada/engine.git", default_branch="main", private=private
    )
    source = Source(
        installation_id=3, repository=repository, pull_request=old.pull_request, sha="a" * 40, trust=trust, actor="ada"
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return Run(
        id="r1", seq=1, delivery_guid="d", source=source, plan=new.plan, state=RunState.RUNNING, queued_at=at, started_at=at
    )


async def _cloned(
    run: Run, *statuses: int, printed: bytes = b"", tokens: _Tokens | None = None
) -> tuple[_Tokens, _Machine, str]:
    tokens, machine = tokens or _Tokens(), _Machine(list(statuses), printed=printed)
    transfer = PullRequestClone(cast(GitHub, tokens))
    problem = ""
    transfer.begin(run)
    try:
        await transfer.copy_to(cast(Shell, cast(Any, machine)), run)
    except SourceError as error:
        problem = error.message
    await transfer.end(run)
    return tokens, machine, problem


async def test_a_public_repository_is_cloned_without_a_token() -> None:
    tokens, machine, problem = await _cloned(_run(private=False), 0)
    assert (tokens.minted, tokens.revoked, machine.tokens, problem) == (0, [], [""], "")


async def test_a_private_repository_is_cloned_with_a_token_that_is_revoked() -> None:
    tokens, machine, problem = await _cloned(_run(private=True), 0)
    assert (tokens.minted, tokens.revoked, machine.tokens, problem) == (1, ["token-1"], ["token-1"], "")


@pytest.mark.parametrize("status", [clone.CLONE_REFUSED, clone.CLONE_UNREACHABLE])
async def test_a_token_is_used_if_a_public_repository_needs_a_login(status: int) -> None:
    tokens, machine, problem = await _cloned(_run(private=False), status, 0)
    assert (tokens.minted, tokens.revoked, machine.tokens, problem) == (1, ["token-1"], ["", "token-1"], "")


@pytest.mark.parametrize("status", [clone.CLONE_GONE, clone.CLONE_NO_GIT, clone.CLONE_BROKEN])
async def test_no_token_is_minted_for_a_failure_that_it_cannot_help_with(status: int) -> None:
    tokens, machine, problem = await _cloned(_run(private=False), status)
    assert (tokens.minted, machine.tokens) == (0, [""])
    assert problem == "The clone of ada/engine at aaaaaaa failed: gibil: the reason"


SUBMODULES = b"""gibil-submodule: https://github.com/ada/parts.git
gibil-submodule: https://github.com/Ada/more
gibil-submodule: https://github.com/other/private.git
gibil-submodule: https://elsewhere.example/ada/x.git
gibil-submodule: https://github.com/ada/$(id).git
"""


async def test_a_trusted_run_gets_a_token_for_the_submodules_of_the_same_owner() -> None:
    tokens, machine, problem = await _cloned(_run(private=True), clone.CLONE_REFUSED, 0, printed=SUBMODULES)
    assert tokens.submodules == [(), ("parts", "more")]
    assert (tokens.revoked, machine.tokens, problem) == (["token-1", "token-2"], ["token-1", "token-2"], "")


async def test_an_untrusted_run_gets_no_token_for_submodules() -> None:
    run = _run(private=True, trust=Trust.UNTRUSTED)
    tokens, _machine, problem = await _cloned(run, clone.CLONE_REFUSED, printed=SUBMODULES)
    assert (tokens.submodules, tokens.revoked) == ([()], ["token-1"])
    assert problem.endswith("gibil: the reason")


async def test_a_submodule_on_which_the_app_is_not_installed_is_reported() -> None:
    tokens = _Tokens(not_installed=True)
    _, _, problem = await _cloned(_run(private=True), clone.CLONE_REFUSED, printed=SUBMODULES, tokens=tokens)
    assert problem.endswith("the App isn't installed on the repository of one of its submodules")
    assert tokens.revoked == ["token-1"]
