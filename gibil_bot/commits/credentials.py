"""The user's own GitHub token: found where the user stores it, passed to one git or one API, never stored and never in argv.

A token is used only for the host that it was issued for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gibil_bot import git
from gibil_bot.config import Secret
from gibil_bot.errors import GitHubError
from gibil_bot.git import GitError
from gibil_bot.lfs.pointers import basic_authorization
from gibil_bot.operator_secrets import without_secrets

_ASK_S = 60.0
"""Credential helpers may open a browser or a key ring."""

# The variables that gh reads, for the same hosts: https://cli.github.com/manual/gh_help_environment
_FOR_GITHUB = ("GH_TOKEN", "GITHUB_TOKEN")
_FOR_SERVERS = ("GH_ENTERPRISE_TOKEN", "GITHUB_ENTERPRISE_TOKEN")

_HELPER_VARIABLE = "GIBIL_LENT_TOKEN"
_HELPER = f"""!f() {{ [ "$1" != get ] || printf 'username=x-access-token\\npassword=%s\\n' "${_HELPER_VARIABLE}"; }}; f"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """`source` describes where the token was found."""

    token: Secret
    source: str


def web_address(github_url: str) -> str:
    """Return the URL of repositories for the API's URL: api.github.com, or https://host/api/v3 of an Enterprise Server.

    https://docs.github.com/en/enterprise-cloud@latest/admin/data-residency/about-github-enterprise-cloud-with-data-residency
    has its API at api.SUBDOMAIN.ghe.com.
    """
    url = urlsplit(github_url)
    host = url.hostname or ""
    if host == "api.github.com" or (host.startswith("api.") and host.endswith(".ghe.com")):
        return f"https://{host.removeprefix('api.')}"
    return f"{url.scheme}://{url.netloc}{url.path.removesuffix('/api/v3').rstrip('/')}"


async def find_credential(github_url: str, repository: str) -> Credential:
    """Return a token for the API: from the environment, then gh, then git. Raises GitHubError if there is none."""
    web = web_address(github_url)
    found = await _from_environment_or_gh(web)
    if found is None:
        token = await _from_git(web, f"{repository}.git")
        found = Credential(token=token, source="git's credential helper") if token is not None else None
    if found is None:
        host, names = urlsplit(web).hostname or "", _variables(web)
        text = f"there is no token for GitHub at {host}: set {names[0]}, or log in with `gh auth login --hostname {host}`"
        others = [name for name in _FOR_GITHUB if name not in names and os.environ.get(name)]
        raise GitHubError(f"{text} ({others[0]} is for github.com)" if others else text)
    return found


async def for_git(url: str, github_url: str) -> Mapping[str, str]:
    """Return the environment for a git that connects to `url`; empty if git has other credentials or needs none.

    Otherwise it sets a credential helper for GitHub's host only, and no other helper: another one would store the token.
    """
    web = web_address(github_url)
    remote, github = urlsplit(url), urlsplit(web)
    if (remote.scheme, remote.netloc.lower()) != (github.scheme, github.netloc.lower()):
        return {}
    if await _from_git(web, remote.path.lstrip("/")) is not None:
        return {}
    found = await _from_environment_or_gh(web)
    if found is None:
        return {}
    settings = ((f"credential.{web}.helper", ""), (f"credential.{web}.helper", _HELPER))
    environment = {_HELPER_VARIABLE: found.token.reveal()}
    count = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(count) if count.isascii() and count.isdigit() else 0
    for number, (name, value) in enumerate(settings, first):
        environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return environment | {"GIT_CONFIG_COUNT": str(first + len(settings))}


async def for_http(url: str, github_url: str) -> str | None:
    """Return the Authorization header's value that git would send to `url`, or the user's token for GitHub; None without."""
    parts = urlsplit(url)
    found = await _fill(f"{parts.scheme}://{parts.netloc}", parts.path.lstrip("/"))
    if found.get("password"):
        return basic_authorization(found.get("username", ""), found["password"])
    web = web_address(github_url) if github_url else ""
    if urlsplit(web)[:2] != parts[:2]:
        return None
    credential = await _from_environment_or_gh(web)
    return basic_authorization("x-access-token", credential.token.reveal()) if credential is not None else None


def _variables(web: str) -> tuple[str, ...]:
    host = urlsplit(web).hostname or ""
    return _FOR_GITHUB if host == "github.com" or host.endswith(".ghe.com") else _FOR_SERVERS


async def _from_environment_or_gh(web: str) -> Credential | None:
    for name in _variables(web):
        if value := os.environ.get(name, "").strip():
            return Credential(token=Secret(value), source=name)
    if shutil.which("gh") is None:
        return None
    answer = await _output(
        "gh", "auth", "token", "--hostname", urlsplit(web).hostname or "", environment={"GH_PROMPT_DISABLED": "1"}
    )
    return Credential(token=Secret(answer.strip()), source="gh") if answer and answer.strip() else None


async def _from_git(web: str, path: str) -> Secret | None:
    """Return the password that git would send, without a prompt."""
    password = (await _fill(web, path)).get("password")
    return Secret(password) if password else None


async def _fill(web: str, path: str) -> Mapping[str, str]:
    """Return the credential that git would use, without a prompt; empty if none. https://git-scm.com/docs/git-credential"""
    url = urlsplit(web)
    request = f"protocol={url.scheme}\nhost={url.netloc}\npath={path}\n\n".encode("utf-8", "surrogateescape")
    try:
        answer = await git.text("credential", "fill", stdin=request, within_s=_ASK_S)
    except GitError:
        return {}
    pairs = (line.partition("=") for line in answer.split("\n"))
    return {name: value for name, equals, value in pairs if equals}


async def _output(*command: str, environment: Mapping[str, str]) -> str | None:
    """Return the command's output; None if it fails or times out."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        env={**without_secrets(os.environ), **environment},
    )  # fmt: skip
    try:
        async with asyncio.timeout(_ASK_S):
            out, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return out.decode("utf-8", "replace") if process.returncode == 0 else None
