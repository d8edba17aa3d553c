"""The App as `app.yml` describes it: the link that registers it, and what of a registered App differs from it.

Pure, but for `shipped_manifest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import yaml

MANIFEST = Path(__file__).parent / "_app.yml"
"""A link to the top-level `app.yml` in a checkout; the file itself in an installed package."""
WEBHOOK_PATH = "/webhook"
LEVELS = ("none", "read", "write", "admin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What the App needs."""

    name: str
    url: str
    description: str
    webhook_url: str
    """An example, to be replaced."""
    is_public: bool
    permissions: Mapping[str, str]
    events: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedDelivery:
    """One that GitHub could not deliver."""

    at: datetime
    event: str
    status_code: int
    """0: there was no answer."""
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredApp:
    """The App as GitHub has it registered."""

    slug: str
    settings_url: str
    permissions: Mapping[str, str]
    events: tuple[str, ...]
    webhook_url: str | None
    """None: the webhook has no address, or is not active."""
    content_type: str
    has_secret: bool
    checks_certificate: bool
    deliveries: int = 0
    """How many recent deliveries were looked at."""
    failures: tuple[FailedDelivery, ...] = field(default=())
    """Newest first, those that got through on a later attempt left out."""
    newest_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing about the App that is not as it has to be, and what to do. `matters`: something does not work."""

    topic: str
    detail: str
    fix: str
    matters: bool = True


def shipped_manifest() -> Manifest:
    """The one that this version needs. Blocks."""
    return read_manifest(MANIFEST.read_bytes())


def read_manifest(text: bytes) -> Manifest:
    """https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest"""
    found = yaml.safe_load(text)
    return Manifest(
        name=found["name"],
        url=found["url"],
        description=found["description"],
        webhook_url=found["hook_attributes"]["url"],
        is_public=found["public"],
        permissions=dict(found["default_permissions"]),
        events=tuple(found["default_events"]),
    )


def web_address(api_url: str) -> str:
    """Where people use the GitHub whose API is at that address.

    https://api.github.com → https://github.com, https://api.acme.ghe.com → https://acme.ghe.com,
    https://ghe.example.com/api/v3 → https://ghe.example.com
    """
    url = urlsplit(api_url)
    host = url.netloc.rpartition("@")[2]
    if host == "api.github.com" or (host.startswith("api.") and host.endswith(".ghe.com")):
        host = host.removeprefix("api.")
    return f"{url.scheme}://{host}"


def registration_url(
    manifest: Manifest, api_url: str = "https://api.github.com", *, organization: str | None = None, webhook_url: str = ""
) -> str:
    """GitHub's form for a new App with everything filled in but the webhook's secret, which has no place in an address.

    https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-using-url-parameters
    """
    account = f"/organizations/{quote(organization, safe='')}" if organization else ""
    parameters = [
        ("name", manifest.name),
        ("description", manifest.description),
        ("url", manifest.url),
        ("public", str(manifest.is_public).lower()),
        ("webhook_active", "true"),
        ("webhook_url", webhook_url or manifest.webhook_url),
        *manifest.permissions.items(),
        *(("events[]", event) for event in manifest.events),
    ]
    return f"{web_address(api_url)}{account}/settings/apps/new?{urlencode(parameters, quote_via=quote, safe='[]')}"


def differences(manifest: Manifest, app: RegisteredApp, webhook_url: str = "") -> list[Difference]:
    """What is not as this version needs it. `webhook_url`: where deliveries should go, when that is known."""
    return [*_permissions(manifest, app), *_events(manifest, app), *_webhook(app, webhook_url), *_failures(app)]


def _permissions(manifest: Manifest, app: RegisteredApp) -> list[Difference]:
    lacking = [
        f"{name}: {level} (has {app.permissions.get(name, 'none')})"
        for name, level in manifest.permissions.items()
        if _level(app.permissions.get(name)) < _level(level)
    ]
    beyond = [
        f"{name}: {level}" for name, level in app.permissions.items() if _level(level) > _level(manifest.permissions.get(name))
    ]
    found = []
    if lacking:
        fix = f"set them at {app.settings_url}/permissions, then accept them at every installation of the App"
        found.append(Difference(topic="App permissions", detail=f"the App lacks {', '.join(lacking)}", fix=fix))
    if beyond:
        fix = f"nothing here uses it: take it away at {app.settings_url}/permissions"
        found.append(
            Difference(
                topic="App permissions", detail=f"the App may do more than needed: {', '.join(beyond)}", fix=fix, matters=False
            )
        )
    return found


def _level(name: str | None) -> int:
    return LEVELS.index(name) if name in LEVELS else 0


def _events(manifest: Manifest, app: RegisteredApp) -> list[Difference]:
    lacking = [event for event in manifest.events if event not in app.events]
    if not lacking:
        return []
    fix = f"tick them at {app.settings_url}/permissions, under Subscribe to events"
    return [Difference(topic="App events", detail=f"the App is not subscribed to {', '.join(lacking)}", fix=fix)]


def _webhook(app: RegisteredApp, wanted: str) -> list[Difference]:
    topic, found = "App webhook", []
    if not app.webhook_url:
        example = wanted or f"https://your.host{WEBHOOK_PATH}"
        return [Difference(topic=topic, detail="the App's webhook has no URL", fix=f"set {example} at {app.settings_url}")]
    if wanted and app.webhook_url != wanted:
        detail = f"GitHub delivers to {app.webhook_url}, and not to {wanted}"
        found.append(Difference(topic=topic, detail=detail, fix=f"correct it at {app.settings_url}, or GIBIL_PUBLIC_URL"))
    elif urlsplit(app.webhook_url).path != WEBHOOK_PATH:
        detail = f"GitHub delivers to {app.webhook_url}, whose path is not {WEBHOOK_PATH}"
        fix = f"correct it at {app.settings_url}, unless your proxy rewrites it"
        found.append(Difference(topic=topic, detail=detail, fix=fix))
    if app.content_type != "json":
        detail = f"the webhook's content type is {app.content_type!r}"
        found.append(Difference(topic=topic, detail=detail, fix=f"choose application/json at {app.settings_url}"))
    if not app.has_secret:
        detail = "the webhook has no secret, so every delivery is rejected"
        fix = f"set GIBIL_GITHUB_WEBHOOK_SECRET's value at {app.settings_url}"
        found.append(Difference(topic=topic, detail=detail, fix=fix))
    if not app.checks_certificate:
        detail = "GitHub does not check the certificate of the webhook's host"
        found.append(
            Difference(topic=topic, detail=detail, fix=f"enable SSL verification at {app.settings_url}", matters=False)
        )
    return found


def _failures(app: RegisteredApp) -> list[Difference]:
    if not app.failures:
        return []
    newest = app.failures[0]
    said = f"status {newest.status_code}" if newest.status_code else newest.status or "no answer"
    detail = (
        f"{len(app.failures)} of the last {app.deliveries} deliveries failed; the newest of them, {newest.event} at "
        f"{newest.at:%Y-%m-%d %H:%M} UTC, with {said}"
    )
    if not app.newest_failed:
        fix = "deliveries get through again; a running bot asks for those of the last three days again"
        return [Difference(topic="App deliveries", detail=detail, fix=fix, matters=False)]
    return [Difference(topic="App deliveries", detail=detail, fix=_cure(newest.status_code, app.webhook_url or ""))]


def _cure(status_code: int, url: str) -> str:
    match status_code:
        case 401:
            return "the webhook's secret is not GIBIL_GITHUB_WEBHOOK_SECRET: set both to the same value, without a comma in it"
        case 404 | 405:
            return f"{url} does not lead to the bot's {WEBHOOK_PATH}: check your proxy's path and the webhook's URL"
        case 400:
            return "something between GitHub and the bot changes the deliveries: check your proxy"
        case 413:
            return "your proxy limits the size of a request: allow 25 MiB (nginx: client_max_body_size 25m)"
        case 503:
            return "the bot could not store it, or had too many requests: look at its log"
        case 502 | 504:
            return "your proxy does not reach the bot: is `gibil serve` running, at the address that the proxy knows?"
        case _:
            return f"GitHub does not reach {url}: check its name, its certificate, your firewall and your proxy"
