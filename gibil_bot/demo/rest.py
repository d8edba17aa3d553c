"""Parses requests and creates responses of REST endpoints, like GitHub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gibil_bot.demo.access import DOCUMENTATION, Caller, Refusal, find_repository
from gibil_bot.demo.actions import Hub
from gibil_bot.demo.payloads import Json
from gibil_bot.demo.records import Installation, Repository, User

T = TypeVar("T")

DEFAULT_PAGE, LARGEST_PAGE = 30, 100
"""https://docs.github.com/en/rest/using-the-rest-api/using-pagination-in-the-rest-api"""


def hub(request: Request) -> Hub:
    found: Hub = request.app.state.hub
    return found


def caller(request: Request) -> Caller:
    found: Caller = request.scope["gibil.caller"]
    return found


def repository(request: Request, *needs: tuple[str, str]) -> Repository:
    """Return the repository of the path, for a caller with one of these (permission, level)."""
    name = f"{request.path_params['owner']}/{request.path_params['name']}"
    return find_repository(hub(request).state, caller(request), name, *needs)


def actor(request: Request) -> User:
    """Return the author of a change: the user of the token, else the App's bot."""
    personal = caller(request).personal
    return personal.user if personal is not None else hub(request).state.bot


def installation(request: Request) -> Installation:
    """Return the caller's installation. Raises Refusal for other callers."""
    token = caller(request).token
    if token is None:
        raise Refusal(403, "Resource not accessible by integration")
    return hub(request).state.installations[token.installation_id]


def require_app(request: Request) -> None:
    """https://docs.github.com/en/rest/apps/apps: these endpoints accept only a JWT."""
    if caller(request).kind != "app":
        raise Refusal(401, "A JSON web token could not be decoded")


async def body(request: Request) -> Json:
    """Return the JSON object of the request; {} for an empty body.

    https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api
    """
    raw = await request.body()
    if not raw:
        return {}
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refusal(400, "Problems parsing JSON") from None
    if not isinstance(parsed, dict):
        raise Refusal(400, "Body should be a JSON object")
    return parsed


def text(found: Mapping[str, object], name: str, resource: str, *, required: bool = False) -> str | None:
    value = found.get(name)
    if value is None:
        if required:
            raise invalid(resource, name, "missing_field", f'"{name}" wasn\'t supplied.')
        return None
    if not isinstance(value, str):
        raise invalid(resource, name, "invalid", f"For '{name}', {value!r} is not a string.")
    return value


def invalid(resource: str, name: str, code: str, message: str) -> Refusal:
    """Return a 422: https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#validation-failed"""
    error = {"resource": resource, "field": name, "code": code, "message": message}
    return Refusal(422, "Validation Failed", errors=[error])


def number(request: Request, name: str, default: int) -> int:
    value = request.query_params.get(name, "")
    return int(value) if value.isascii() and value.isdigit() and len(value) < 19 else default


def page(request: Request, items: Sequence[T]) -> tuple[Sequence[T], dict[str, str]]:
    """Return the requested page, and the Link header for the others."""
    size = max(1, min(number(request, "per_page", DEFAULT_PAGE), LARGEST_PAGE))
    last = max(1, -(-len(items) // size))
    current = max(1, number(request, "page", 1))
    pages = {"prev": current - 1 if current > 1 else 0, "next": current + 1 if current < last else 0}
    if current < last:
        pages["last"] = last
    if current > 1:
        pages["first"] = 1
    links = [
        f'<{request.url.include_query_params(page=number, per_page=size)}>; rel="{rel}"'
        for rel, number in pages.items()
        if number
    ]
    headers = {"Link": ", ".join(links)} if links else {}
    return items[(current - 1) * size : current * size], headers


def answer(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(content, status, headers)


def nothing() -> Response:
    return Response(status_code=204)


def refusal_response(refusal: Refusal) -> JSONResponse:
    content: Json = {"message": refusal.message, "documentation_url": DOCUMENTATION, "status": str(refusal.status)}
    if refusal.errors:
        content["errors"] = refusal.errors
    return JSONResponse(content, refusal.status, refusal.headers)
