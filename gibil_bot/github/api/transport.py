"""HTTP connection pool to GitHub's API, through githubkit: sends a request once and returns its response.

Only this file imports githubkit, which takes a third of a second, so `session` imports it in a thread at the first request.
githubkit's retries would repeat POSTs and its caches would retain revoked tokens, so both are off: `session` decides.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import httpx
from githubkit import GitHub, Response
from githubkit.auth import UnauthAuthStrategy
from githubkit.auth.app import AppAuth
from githubkit.cache import MemCacheStrategy
from githubkit.exception import RequestError, RequestFailed

from gibil_bot.errors import GitHubError
from gibil_bot.github.api.http import Answer, Unanswered

API_VERSION = "2022-11-28"
"""The version that github.com and every supported GitHub Enterprise Server support.
https://docs.github.com/en/rest/about-the-rest-api/api-versions
"""

# With these errors nothing was sent, so even a POST may be repeated.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class _Pooled(GitHub[UnauthAuthStrategy]):
    """A GitHub with one HTTP client for all tasks. githubkit keeps its client in a context variable that earlier tasks don't
    see, so each of their calls would create a client.
    """

    pooled: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def get_async_client(self) -> AsyncGenerator[httpx.AsyncClient, None]:
        if self.pooled is None:
            config = self.config
            self.pooled = httpx.AsyncClient(
                base_url=config.base_url,
                headers={"User-Agent": config.user_agent, "Cache-Control": "no-cache"},
                timeout=config.timeout,
                follow_redirects=config.follow_redirects,
                verify=config.ssl_verify,
            )
        yield self.pooled

    def _check_rate_limit(self, response: Response) -> None:
        """Do nothing: `rate_limit` reads these headers.

        This overrides a private method because githubkit has no setting for it, and raises ValueError for a Retry-After that is
        a date: https://github.com/yanyongyu/githubkit/blob/v0.16.1/githubkit/core.py#L449
        """


_authorities = functools.cache(httpx.create_ssl_context)
"""Cached: loading the certificates of all authorities takes longer than several requests."""


class Transport:
    """Requests with timeouts. `total_timeout_s` limits a whole response, however slowly it arrives."""

    def __init__(
        self,
        url: str,
        app_id: str,
        private_key: str,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        total_timeout_s: float,
    ) -> None:
        self._total_timeout_s = total_timeout_s
        self._github = _Pooled(
            UnauthAuthStrategy(),
            base_url=url,
            user_agent="gibil-bot",
            timeout=httpx.Timeout(read_timeout_s, connect=connect_timeout_s),
            # Created here, in a thread, because the first request would block the event loop.
            ssl_verify=_authorities(),
            # The default cache is shared by all clients of the process and doesn't distinguish hosts.
            cache_strategy=MemCacheStrategy(),
            http_cache=False,
            auto_retry=False,
        )
        self._app_id = app_id
        self._private_key = private_key

    async def send(
        self,
        method: str,
        path: str,
        *,
        authorization: str,
        query: Mapping[str, str | int] | None = None,
        body: Mapping[str, object] | None = None,
        accept: str = "application/vnd.github+json",
        at_most: int | None = None,
    ) -> Answer:
        """Send once; any HTTP status is an answer. Raises Unanswered if there is none.

        `at_most`: read no more than that many bytes of the content.
        """
        headers = {"Authorization": authorization, "X-GitHub-Api-Version": API_VERSION, "Accept": accept}
        try:
            async with asyncio.timeout(self._total_timeout_s):
                response = await self._github.arequest(
                    method,
                    path,
                    params=dict(query) if query else None,
                    json=dict(body) if body is not None else None,
                    headers=headers,
                    stream=at_most is not None,
                )
                if at_most is None:
                    return _answer(response.raw_response)
                return await _beginning(response.raw_response, at_most)
        except RequestFailed as error:
            return _answer(error.response.raw_response)
        except RequestError as error:
            raise _unanswered(error.exc) from None
        except TimeoutError:
            raise Unanswered(f"no complete answer within {self._total_timeout_s:g} s", sent=True) from None
        except httpx.HTTPError as error:
            raise _unanswered(error) from None

    async def app_authorization(self) -> str:
        """Return `Bearer` and a token of the App itself, signed at most every eight minutes. Raises GitHubError."""
        flow = AppAuth(self._github, self._app_id, self._private_key)
        try:
            return f"Bearer {await asyncio.to_thread(flow.get_jwt)}"
        except Exception as error:
            # cryptography and PyJWT raise many kinds of errors for a key that is truncated, encrypted or of the wrong type.
            raise GitHubError(
                f"The App's private key can't sign ({type(error).__name__}): GIBIL_GITHUB_PRIVATE_KEY must contain the whole "
                ".pem file that the App's settings page generated"
            ) from None

    async def close(self) -> None:
        if self._github.pooled is not None:
            await self._github.pooled.aclose()


async def _beginning(response: httpx.Response, at_most: int) -> Answer:
    content = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) >= at_most:
                break
    finally:
        await response.aclose()
    return Answer(status=response.status_code, headers=_headers(response), content=bytes(content[:at_most]))


def _answer(response: httpx.Response) -> Answer:
    return Answer(status=response.status_code, headers=_headers(response), content=response.content)


def _headers(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


def _unanswered(error: BaseException) -> Unanswered:
    # httpx's messages contain addresses and reasons, never headers.
    reason = " ".join(str(error).split()) or type(error).__name__
    return Unanswered(reason, sent=not isinstance(error, _NEVER_SENT))
