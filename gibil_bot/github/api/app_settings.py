"""Reads the App's registration at GitHub, and which deliveries failed recently."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from gibil_bot.github.api.http import Request
from gibil_bot.github.api.session import Session
from gibil_bot.github.payloads import utc
from gibil_bot.github.registration import FailedDelivery, RegisteredApp, web_address

RECENT = 100
_NONE = frozenset({404})
"""The App has no webhook."""


class _Owner(msgspec.Struct):
    login: str = ""
    type: str = ""


class _App(msgspec.Struct):
    slug: str
    permissions: dict[str, str] = msgspec.field(default_factory=dict)
    events: list[str] = msgspec.field(default_factory=list)
    owner: _Owner | None = None


class _Hook(msgspec.Struct):
    url: str | None = None
    content_type: str = "form"
    insecure_ssl: str | int | float = "0"
    secret: str | None = None


class _Delivery(msgspec.Struct):
    guid: str
    delivered_at: datetime
    event: str = ""
    status: str = ""
    status_code: int = 0


async def read_app(session: Session) -> RegisteredApp:
    """Read the registration with three requests. Raises GitHubError.

    https://docs.github.com/en/rest/apps/apps#get-the-authenticated-app,
     https://docs.github.com/en/rest/apps/webhooks
    """
    app = (await session.ask(Request(method="GET", route="/app"))).read(_App)
    answer = await session.ask(Request(method="GET", route="/app/hook/config", answers=_NONE))
    hook = answer.read(_Hook) if answer.status < 400 else _Hook()
    query: dict[str, str | int] = {"per_page": RECENT}
    answer = await session.ask(Request(method="GET", route="/app/hook/deliveries", query=query, answers=_NONE))
    deliveries = answer.read(list[_Delivery]) if answer.status < 400 else []
    arrived = {delivery.guid for delivery in deliveries if _succeeded(delivery)}
    failed = [delivery for delivery in deliveries if delivery.guid not in arrived]
    return RegisteredApp(
        slug=app.slug,
        settings_url=_settings_url(web_address(session.url), app),
        permissions=app.permissions,
        events=tuple(app.events),
        webhook_url=hook.url or None,
        content_type=hook.content_type,
        has_secret=bool(hook.secret),
        checks_certificate=str(hook.insecure_ssl) != "1",
        deliveries=len(deliveries),
        failures=tuple(
            FailedDelivery(
                at=utc(delivery.delivered_at).astimezone(UTC),
                event=delivery.event,
                status_code=delivery.status_code,
                status=delivery.status,
            )
            for delivery in failed
        ),
        newest_failed=bool(deliveries) and not _succeeded(deliveries[0]),
    )


def _succeeded(delivery: _Delivery) -> bool:
    return 200 <= delivery.status_code < 300


def _settings_url(web: str, app: _App) -> str:
    account = f"/organizations/{app.owner.login}" if app.owner is not None and app.owner.type == "Organization" else ""
    return f"{web}{account}/settings/apps/{app.slug}"
