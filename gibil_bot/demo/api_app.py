"""Endpoints of the App: its identity, tokens, webhook log and limits."""

from __future__ import annotations

import json

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gibil_bot.demo import payloads, rest, tokens
from gibil_bot.demo.access import Refusal
from gibil_bot.demo.records import PERMISSION_LEVELS, HookDelivery, Installation


async def get_app(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/apps#get-the-authenticated-app"""
    rest.require_app(request)
    return rest.answer(payloads.app(rest.hub(request).state))


async def get_hook_config(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/webhooks#get-a-webhook-configuration-for-an-app; a secret is never shown."""
    rest.require_app(request)
    hooks = rest.hub(request).hooks
    config = {"content_type": hooks.content_type, "insecure_ssl": "0", "url": hooks.url or ""}
    return rest.answer(config | ({"secret": "********"} if hooks.secret else {}))


async def list_installations(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/apps#list-installations-for-the-authenticated-app"""
    rest.require_app(request)
    state = rest.hub(request).state
    found, headers = rest.page(request, list(state.installations.values()))
    return rest.answer([payloads.installation(state, each) for each in found], headers=headers)


async def get_repository_installation(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/apps#get-a-repository-installation-for-the-authenticated-app"""
    rest.require_app(request)
    state = rest.hub(request).state
    repository = state.repositories.get("{owner}/{name}".format_map(request.path_params).lower())
    found = state.installations.get((repository.installation_id if repository else None) or 0)
    if found is None:
        raise Refusal(404, "Not Found")
    return rest.answer(payloads.installation(state, found))


async def create_token(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app

    At most 500 repositories. Permissions can only be reduced.
    """
    rest.require_app(request)
    hub = rest.hub(request)
    installation = hub.state.installations.get(request.path_params["installation"])
    if installation is None:
        raise Refusal(404, "Not Found")
    wanted = await rest.body(request)
    ids = _chosen_repositories(request, installation, wanted)
    permissions = _chosen_permissions(installation, wanted)
    stateless = request.headers.get("x-github-stateless-s2s-token", "") == "enabled"
    token = tokens.mint_token(hub, installation, permissions, ids, stateless=stateless)
    return rest.answer(payloads.token(hub.state, token), 201)


def _chosen_repositories(request: Request, installation: Installation, wanted: payloads.Json) -> list[int] | None:
    ids, names = wanted.get("repository_ids"), wanted.get("repositories")
    if ids is None and names is None:
        return None
    own = rest.hub(request).state.repositories_of(installation.id)
    by_id, by_name = {each.id: each.id for each in own}, {each.name.lower(): each.id for each in own}
    chosen: list[int] = []
    for value in [*(ids if isinstance(ids, list) else []), *(names if isinstance(names, list) else [])]:
        found = by_id.get(value) if isinstance(value, int) else by_name.get(str(value).lower())
        if found is None:
            message = "There is at least one repository that does not exist or is not accessible to the parent installation."
            raise Refusal(422, message)
        chosen.append(found)
    if not chosen or len(chosen) > 500:
        raise Refusal(422, "Between 1 and 500 repositories can be chosen.")
    return chosen


def _chosen_permissions(installation: Installation, wanted: payloads.Json) -> dict[str, str]:
    requested = wanted.get("permissions")
    if requested is None:
        return dict(installation.permissions)
    if not isinstance(requested, dict):
        raise rest.invalid("Installation", "permissions", "invalid", "permissions is not an object.")
    for name, level in requested.items():
        held = installation.permissions.get(name, "none")
        if level not in PERMISSION_LEVELS[1:] or PERMISSION_LEVELS.index(level) > PERMISSION_LEVELS.index(held):
            raise Refusal(422, "The permissions requested are not granted to this installation.")
    return {"metadata": "read", **requested}


async def revoke_token(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/installations#revoke-an-installation-access-token"""
    token = rest.caller(request).token
    if token is None:
        raise Refusal(401, "Bad credentials")
    token.revoked = True
    rest.hub(request).state.touch()
    return rest.nothing()


async def list_installation_repositories(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/installations#list-repositories-accessible-to-the-app-installation"""
    state, token = rest.hub(request).state, rest.caller(request).token
    own = state.repositories_of(rest.installation(request).id)
    seen = [each for each in own if token is None or token.repository_ids is None or each.id in token.repository_ids]
    found, headers = rest.page(request, seen)
    content = {"total_count": len(seen), "repositories": [payloads.repository(state, each) for each in found]}
    return rest.answer(content, headers=headers)


async def list_deliveries(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/webhooks#list-deliveries-for-an-app-webhook

    Pages by `cursor`, which the Link header contains; here it is the id of the last delivery on the page.
    """
    rest.require_app(request)
    logged = rest.hub(request).hooks.log()
    wanted = request.query_params.get("status")
    if wanted in ("success", "failure"):
        logged = [each for each in logged if each.succeeded == (wanted == "success")]
    cursor = rest.number(request, "cursor", 0)
    if cursor:
        logged = [each for each in logged if each.id < cursor]
    size = max(1, min(rest.number(request, "per_page", rest.DEFAULT_PAGE), rest.LARGEST_PAGE))
    shown = logged[:size]
    headers = {}
    if len(logged) > size:
        headers["Link"] = f'<{request.url.include_query_params(cursor=shown[-1].id, per_page=size)}>; rel="next"'
    return rest.answer([payloads.delivery(each) for each in shown], headers=headers)


async def get_delivery(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/webhooks#get-a-delivery-for-an-app-webhook"""
    rest.require_app(request)
    found = _delivery(request)
    detail = payloads.delivery(found) | {
        "url": rest.hub(request).hooks.url,
        "request": {"headers": found.headers, "payload": json.loads(found.body)},
        "response": {"headers": {}, "payload": found.response},
    }
    return rest.answer(detail)


async def redeliver(request: Request) -> Response:
    """https://docs.github.com/en/rest/apps/webhooks#redeliver-a-delivery-for-an-app-webhook"""
    rest.require_app(request)
    rest.hub(request).hooks.redeliver(_delivery(request).id)
    return rest.answer({}, 202)


def _delivery(request: Request) -> HookDelivery:
    wanted = request.path_params["delivery"]
    found = next((each for each in rest.hub(request).hooks.log() if each.id == wanted), None)
    if found is None:
        raise Refusal(404, "Not Found")
    return found


async def get_rate_limit(request: Request) -> Response:
    """https://docs.github.com/en/rest/rate-limit/rate-limit: this request isn't counted."""
    core = request.scope["gibil.rate"]
    return rest.answer({"resources": {"core": core}, "rate": core})


async def get_user(request: Request) -> Response:
    """https://docs.github.com/en/rest/users/users#get-a-user; an App's bot is `<slug>[bot]`."""
    state = rest.hub(request).state
    found = state.users.get(request.path_params["login"].lower())
    if found is None:
        raise Refusal(404, "Not Found")
    return rest.answer(payloads.user(state, found))


ROUTES = [
    Route("/app", get_app),
    Route("/app/installations", list_installations),
    Route("/app/installations/{installation:int}/access_tokens", create_token, methods=["POST"]),
    Route("/app/hook/config", get_hook_config),
    Route("/app/hook/deliveries", list_deliveries),
    Route("/app/hook/deliveries/{delivery:int}", get_delivery),
    Route("/app/hook/deliveries/{delivery:int}/attempts", redeliver, methods=["POST"]),
    Route("/installation/token", revoke_token, methods=["DELETE"]),
    Route("/installation/repositories", list_installation_repositories),
    Route("/repos/{owner}/{name}/installation", get_repository_installation),
    Route("/rate_limit", get_rate_limit),
    Route("/users/{login}", get_user),
]
