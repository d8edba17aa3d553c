"""All endpoints as one ASGI application, and the responses for unknown paths and methods."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gibil_bot.demo import (
    api_app,
    api_checks,
    api_git_data,
    api_issues,
    api_pulls,
    api_repositories,
    api_reviews,
    control,
    git_http,
    rest,
)
from gibil_bot.demo.access import Refusal
from gibil_bot.demo.actions import Hub


def application(hub: Hub) -> Starlette:
    routes = [
        *control.ROUTES,
        *git_http.ROUTES,
        *api_app.ROUTES,
        *api_checks.ROUTES,
        *api_git_data.ROUTES,
        *api_issues.ROUTES,
        *api_pulls.ROUTES,
        *api_repositories.ROUTES,
        *api_reviews.ROUTES,
    ]
    app = Starlette(routes=routes, exception_handlers={Refusal: _refused, HTTPException: _not_found})
    app.router.redirect_slashes = False
    app.state.hub = hub
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return rest.refusal_response(error)


async def _not_found(request: Request, error: Exception) -> Response:
    """Return GitHub's response for an unknown path or method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    return rest.refusal_response(Refusal(404 if status == 405 else status, "Not Found" if status in (404, 405) else str(error)))
