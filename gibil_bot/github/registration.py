"""The App's manifest `app.yml`: the link that registers the App, and how a registered App differs from the manifest.

Pure, except `shipped_manifest`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

import yaml

MANIFEST = Path(__file__).parent / "_app.yml"
"""In a checkout, a link to the top-level `app.yml`; in an installed package, the file itself."""
WEBHOOK_PATH = "/webhook"
LEVELS = ("none", "read", "write", "admin")
SUFFICIENT = {"contents": ("read", "workflows with `commit:` are rejected")}
"""Permission → a lower level with which the bot works, and what doesn't work then."""


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
    """A delivery that failed."""

    at: datetime
    event: str
    status_code: int
    """0: no response."""
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredApp:
    """The App as it is registered at GitHub."""

    slug: str
    settings_url: str
    permissions: Mapping[str, str]
    events: tuple[str, ...]
    webhook_url: str | None
    """None: the webhook has no URL, or isn't active."""
    content_type: str
    has_secret: bool
    checks_certificate: bool
    deliveries: int = 0
    """How many recent deliveries were read."""
    failures: tuple[FailedDelivery, ...] = field(default=())
    """Newest first, without those that succeeded on a later attempt."""
    newest_failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A difference from the manifest, and what to do. `matters`: something doesn't work because of it."""

    topic: str
    detail: str
    fix: str
    matters: bool = True


def shipped_manifest() -> Manifest:
    """Return the manifest of this version. Blocks."""
    return read_manifest(MANIFEST.read_bytes())


def read_manifest(text: bytes) -> Manifest:
    """Parse a manifest: https://docs.github.com/en/apps/sharing-github-apps/registering-a-github-app-from-a-manifest"""
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
    """Return the web URL of the GitHub whose API is at that URL.

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
    """Return GitHub's form for a new App, filled in except for the webhook's secret, which must not be in a URL.

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
    """Return the differences from what this version needs. `webhook_url`: where deliveries should go, if known."""
    return [*_permissions(manifest, app), *_events(manifest, app), *_webhook(app, webhook_url), *_failures(app)]


def _permissions(manifest: Manifest, app: RegisteredApp) -> list[Difference]:
    lacking = {
        name: f"{name}: {level} (has {app.permissions.get(name, 'none')})"
        for name, level in manifest.permissions.items()
        if _level(app.permissions.get(name)) < _level(level)
    }
    missing = [text for name, text in lacking.items() if not _suffices(name, app.permissions.get(name))]
    optional = [f"{text}: {SUFFICIENT[name][1]}" for name, text in lacking.items() if text not in missing]
    excess = [
        f"{name}: {level}" for name, level in app.permissions.items() if _level(level) > _level(manifest.permissions.get(name))
    ]
    found = []
    if missing:
        fix = f"set them at {app.settings_url}/permissions, then accept them at every installation of the App"
        found.append(Difference(topic="App permissions", detail=f"the App lacks {', '.join(missing)}", fix=fix))
    if optional:
        fix = f"to allow it, set the permission at {app.settings_url}/permissions, then accept it at every installation"
        detail = f"the App lacks {', '.join(optional)}"
        found.append(Difference(topic="App permissions", detail=detail, fix=fix, matters=False))
    if excess:
        fix = f"gibil doesn't use it: remove it at {app.settings_url}/permissions"
        found.append(
            Difference(
                topic="App permissions", detail=f"the App has unneeded permissions: {', '.join(excess)}", fix=fix, matters=False
            )
        )
    return found


def _suffices(name: str, level: str | None) -> bool:
    return name in SUFFICIENT and _level(level) >= _level(SUFFICIENT[name][0])


def _level(name: str | None) -> int:
    return LEVELS.index(name) if name in LEVELS else 0


def _events(manifest: Manifest, app: RegisteredApp) -> list[Difference]:
    missing = [event for event in manifest.events if event not in app.events]
    if not missing:
        return []
    fix = f"select them at {app.settings_url}/permissions, under Subscribe to events"
    return [Difference(topic="App events", detail=f"the App is not subscribed to {', '.join(missing)}", fix=fix)]


def _webhook(app: RegisteredApp, wanted: str) -> list[Difference]:
    topic, found = "App webhook", []
    if not app.webhook_url:
        example = wanted or f"https://your.host{WEBHOOK_PATH}"
        return [Difference(topic=topic, detail="the App's webhook has no URL", fix=f"set {example} at {app.settings_url}")]
    if wanted and app.webhook_url != wanted:
        detail = f"GitHub delivers to {app.webhook_url}, not to {wanted}"
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
        detail = "GitHub doesn't verify the certificate of the webhook's host"
        found.append(
            Difference(topic=topic, detail=detail, fix=f"enable SSL verification at {app.settings_url}", matters=False)
        )
    return found


def _failures(app: RegisteredApp) -> list[Difference]:
    if not app.failures:
        return []
    newest = app.failures[0]
    outcome = f"status {newest.status_code}" if newest.status_code else newest.status or "no answer"
    detail = (
        f"{len(app.failures)} of the last {app.deliveries} deliveries failed; the newest was {newest.event} at "
        f"{newest.at:%Y-%m-%d %H:%M} UTC, with {outcome}"
    )
    if not app.newest_failed:
        fix = "deliveries arrive again; a running bot requests those of the last three days again"
        return [Difference(topic="App deliveries", detail=detail, fix=fix, matters=False)]
    return [Difference(topic="App deliveries", detail=detail, fix=_remedy(newest.status_code, app.webhook_url or ""))]


def _remedy(status_code: int, url: str) -> str:
    match status_code:
        case 401:
            return "the webhook's secret is not GIBIL_GITHUB_WEBHOOK_SECRET: set both to the same value, without a comma in it"
        case 404 | 405:
            return f"{url} doesn't reach the bot's {WEBHOOK_PATH}: check your proxy's path and the webhook's URL"
        case 400:
            return "something between GitHub and the bot modifies the deliveries: check your proxy"
        case 413:
            return "your proxy limits the size of a request: allow 25 MiB (nginx: client_max_body_size 25m)"
        case 503:
            return "the bot could not store it, or had too many requests: see its log"
        case 502 | 504:
            return "your proxy can't reach the bot: check that `gibil serve` is running at the address configured in the proxy"
        case _:
            return f"GitHub can't reach {url}: check its name, its certificate, your firewall and your proxy"
