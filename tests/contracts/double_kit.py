"""Helpers for the tests of the GitHub double: a double with one repository, an authenticated App, a webhook receiver."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
from starlette.types import Receive, Scope, Send

from gibil_bot.demo.github_double import GitHubDouble
from gibil_bot.demo.server import serving
from tests.doubles.bot import NO_AUTHORITIES
from tests.doubles.patience import patient

REPOSITORY = "ada/engine"
FILES = {"README.md": "An engine\n", "src/wheel.py": "TEETH = 12\n", "run.sh": "#!/bin/sh\necho hello\n"}
SECRET = "a secret that signs"


def app_jwt(github: GitHubDouble, **changes: Any) -> str:
    """Return the App's JWT; `changes` replaces claims, and None removes one."""
    now = int(time.time())
    claims: dict[str, Any] = {"iat": now - 60, "exp": now + 540, "iss": str(github.app_id)} | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, github.private_key_pem, algorithm="RS256")


@dataclass
class App:
    """The App, authenticated over real HTTP."""

    github: GitHubDouble
    http: httpx.AsyncClient

    async def ask(self, method: str, path: str, *, token: str | None = None, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await self.http.request(method, path, headers=headers | options.pop("headers", {}), **options)

    async def as_app(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self.ask(method, path, token=app_jwt(self.github), **options)

    async def token(self, full_name: str = REPOSITORY, **wanted: Any) -> str:
        number = self.github.installation(full_name).id
        answer = await self.as_app("POST", f"/app/installations/{number}/access_tokens", json=wanted)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])


@contextlib.asynccontextmanager
async def signed_in(directory: Path, **options: Any) -> AsyncIterator[App]:
    """Start a double with the repository ada/engine, where the App is installed."""
    async with GitHubDouble.start(directory, webhook_secret=SECRET, **options) as github:
        await github.add_repository(REPOSITORY, FILES)
        async with httpx.AsyncClient(base_url=github.url, timeout=10, trust_env=False, verify=NO_AUTHORITIES) as http:
            yield App(github, http)


@dataclass
class Receiver:
    """Receives webhooks and stores them."""

    url: str = ""
    status: int = 202
    silent: asyncio.Event | None = None
    """If given, responses wait for this event."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.got.append(({name.decode(): value.decode() for name, value in scope["headers"]}, body))
        if self.silent is not None:
            await self.silent.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def events(self) -> list[str]:
        return [headers["x-github-event"] for headers, _ in self.got]


@contextlib.asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    async with serving(receiver) as url:
        receiver.url = f"{url}/webhook"
        yield receiver


async def run_git(*arguments: str, cwd: Path, ok: bool = True) -> tuple[int, str]:
    """Run the real git without the user's configuration; return the exit status and its output."""
    process = await asyncio.create_subprocess_exec(
        "git",
        "-c",
        "credential.helper=",
        *arguments,
        cwd=cwd,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(cwd), "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), patient(30))
    assert process.returncode is not None
    assert not ok or process.returncode == 0, output.decode()
    return process.returncode, output.decode()
