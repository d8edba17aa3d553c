"""What the bots of one database have to share: the key of their machines, the App, and the provider. Checked at their start.

With another key, a bot would neither reach the others' machines nor recognize a repeated delivery; with another App, it would
answer deliveries that aren't its own; with another provider, it couldn't continue their runs.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from gibil_bot.config import Settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.model import HostSeen
from gibil_bot.ports import Store
from gibil_bot.providers.keyring import Keyring

log = logging.getLogger("gibil")

_APP_SETTINGS, _PROVIDER_SETTINGS = "GIBIL_GITHUB_APP_ID and GIBIL_GITHUB_URL", "GIBIL_PROVIDER and HCLOUD_TOKEN"
_SAME_EVERYWHERE = "set the same for all bots of a database; to change them, stop all bots first"


class Comparison(Struct, frozen=True, kw_only=True):
    """What the start of a bot would find about one agreement."""

    name: str
    """For people."""
    ok: bool = True
    """False: the bot wouldn't start."""
    detail: str
    remedy: str = ""


async def check_agreements(store: Store, settings: Settings, keyring: Keyring, host_id: str, *, is_shared: bool) -> None:
    """Compare this bot with those of other hosts, before it does anything. Raises ConfigurationError, StoreError.

    Where no other bot can exist, or none is running, other values replace the earlier ones. The key remains, because machines
    and other hosts may need it.
    """
    seen = [each for each in await store.hosts.all() if each.host.id != host_id]
    check = keyring.check_value()
    if await store.agree("keyring", check) != check:
        if is_shared:
            raise ConfigurationError((f"{keyring.path}: {': '.join(_other_key(_names(seen)))}",))
        await store.agree("keyring", check, replace=True)
        log.warning("%s %s", keyring.path, _NEW_KEY)
    problems = []
    running = _names(each for each in seen if not each.is_away)
    values = {
        "github app": (_app(settings), _APP_SETTINGS),
        "provider": (_provider(settings, keyring), _PROVIDER_SETTINGS),
    }
    for name, (value, setting) in values.items():
        if (stored := await store.agree(name, value)) == value:
            continue
        if is_shared and running:
            shown = f" ({stored!r}, here {value!r})" if name == "github app" else ""
            problems.append(f"{setting} {_differ(running)}{shown}: {_SAME_EVERYWHERE}")
        else:
            await store.agree(name, value, replace=True)
    if problems:
        raise ConfigurationError(tuple(problems))


async def warn_of_differences(store: Store, settings: Settings, host_id: str) -> None:
    """Compare this bot's limit of machines with the other bots', once they see each other. Raises StoreError.

    With another one it works, too, but the highest is the limit of all. Where no other bot is running, this one's replaces it.
    """
    running = _names(each for each in await store.hosts.all() if each.host.id != host_id and not each.is_away)
    value = str(settings.max_machines)
    if (stored := await store.agree("max machines", value)) == value:
        return
    if running:
        log.warning(
            "GIBIL_MAX_MACHINES is %s here and %s for the bots that run on %s: runs of all bots count, so the highest applies; "
            "set the same everywhere",
            value,
            stored,
            ", ".join(running),
        )
    else:
        await store.agree("max machines", value, replace=True)


def compare(
    stored: Mapping[str, str],
    seen: Sequence[HostSeen],
    settings: Settings,
    keyring: Keyring,
    host_id: str,
    *,
    is_shared: bool,
) -> list[Comparison]:
    """Return what `check_agreements` and `warn_of_differences` would find now, without writing anything. Blocks.

    `stored`: the table agreements. `seen`: the hosts of the database. Raises ConfigurationError for a key that can't be read.
    """
    others = [each for each in seen if each.host.id != host_id]
    running = _names(each for each in others if not each.is_away)
    agreed = stored.get("keyring")
    is_same_key = keyring.path.exists() and keyring.check_value() == agreed
    found = [_compare_key(keyring, agreed, _names(others), is_shared=is_shared)]
    if settings.github_app_id:
        found.append(_compare_value("App", _APP_SETTINGS, stored.get("github app"), _app(settings), running, is_shown=True))
    provider = stored.get("provider")
    if is_same_key:
        found.append(
            _compare_value("provider", _PROVIDER_SETTINGS, provider, _provider(settings, keyring), running, is_shown=False)
        )
    elif provider is not None:  # without the key, the token can't be compared
        name = provider.partition(" ")[0]
        found.append(_compare_value("provider", "GIBIL_PROVIDER", name, settings.provider, running, is_shown=True))
    most = stored.get("max machines")
    if running and most not in (None, str(settings.max_machines)):
        detail = f"GIBIL_MAX_MACHINES is {settings.max_machines} here and {most} on {', '.join(running)}: the highest applies"
        found.append(Comparison(name="machines", detail=detail, remedy="set the same for all bots of a database"))
    if is_shared and running and not settings.bot_url:
        detail = f"the bots on {', '.join(running)} can't read the output of runs of this host"
        remedy = "set GIBIL_BOT_URL to the address at which they reach this one"
        found.append(Comparison(name="other hosts", detail=detail, remedy=remedy))
    return found


def _compare_key(keyring: Keyring, agreed: str | None, hosts: list[str], *, is_shared: bool) -> Comparison:
    name = "key"
    if agreed is None:
        return Comparison(name=name, detail="no bot has used this database yet, so any key is right")
    exists = keyring.path.exists()
    if exists and keyring.check_value() == agreed:
        return Comparison(name=name, detail=f"{keyring.path} is the key of this database")
    if not is_shared:
        what = _NEW_KEY if exists else "doesn't exist; a new key can't reach machines that this database knows"
        remedy = "restore the former keyring.key if there are such machines"
        return Comparison(name=name, detail=f"{keyring.path} {what}", remedy=remedy)
    problem, remedy = _other_key(hosts)
    missing = "" if exists else "it doesn't exist, and a new key would be another one: "
    return Comparison(name=name, ok=False, detail=f"{keyring.path}: {missing}{problem}", remedy=remedy)


def _compare_value(
    name: str, settings: str, stored: str | None, value: str, running: list[str], *, is_shown: bool
) -> Comparison:
    shown = f" ({stored!r}, here {value!r})" if is_shown else ""
    if stored is None:
        return Comparison(name=name, detail="no bot has used this database yet")
    if stored == value:
        return Comparison(name=name, detail="as in the database")
    if running:
        return Comparison(name=name, ok=False, detail=f"{settings} {_differ(running)}{shown}", remedy=_SAME_EVERYWHERE)
    detail = f"{settings} differ from those with which the database was used before{shown}"
    return Comparison(name=name, detail=detail, remedy="nothing if it is meant so: the first bot that starts decides")


_NEW_KEY = "isn't the key with which this database was used before: machines that it created can't be reached"


def _other_key(hosts: list[str]) -> tuple[str, str]:
    """Return the problem and the remedy."""
    others = f"the bots on {', '.join(hosts)} have another key" if hosts else "it belongs to bots with another key"
    return (
        f"this database can't be used with it, because {others}",
        "copy their keyring.key to this path with mode 600, or set GIBIL_KEYRING to the same file everywhere. A new database "
        "needs neither. If the key is lost on all hosts, stop all bots, destroy all machines, and delete the row 'keyring' of "
        "the table agreements",
    )


def _names(hosts: Iterable[HostSeen]) -> list[str]:
    """Return each name once: several hosts may have the same."""
    return list(dict.fromkeys(each.host.name for each in hosts))


def _differ(running: list[str]) -> str:
    return f"differ from those of the bots that run on {', '.join(running)}"


def _app(settings: Settings) -> str:
    return f"{settings.github_app_id} {settings.github_url}"


def _provider(settings: Settings, keyring: Keyring) -> str:
    """Return the provider, and a check value of the token, from which the keys of cloud machines are derived."""
    if settings.provider != "hetzner":
        return settings.provider
    key = keyring.derive("check value", "HCLOUD_TOKEN")
    return f"{settings.provider} {hmac.digest(key, settings.hcloud_token.reveal().encode(), 'sha256').hex()[:32]}"
