"""What the bots of one database have to share: the key of their machines, the App, and the provider. Checked at their start.

With another key, a bot would neither reach the others' machines nor recognize a repeated delivery; with another App, it would
answer deliveries that aren't its own; with another provider, it couldn't continue their runs.
"""

from __future__ import annotations

import hmac
import logging

from gibil_bot.config import Settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.ports import Store
from gibil_bot.providers.keyring import Keyring

log = logging.getLogger("gibil")


async def check_agreements(store: Store, settings: Settings, keyring: Keyring, host_id: str, *, is_shared: bool) -> None:
    """Compare this bot with those of other hosts, before it does anything. Raises ConfigurationError, StoreError.

    Where no other bot can exist, or none is running, other values replace the earlier ones. The key remains, because machines
    and other hosts may need it.
    """
    seen = [each for each in await store.hosts.all() if each.host.id != host_id]
    check = keyring.check_value()
    if await store.agree("keyring", check) != check:
        if is_shared:
            raise ConfigurationError((_other_key(keyring, [each.host.name for each in seen]),))
        await store.agree("keyring", check, replace=True)
        log.warning(
            "%s isn't the key with which this database was used before: machines that it created can't be reached",
            keyring.path,
        )
    problems = []
    running = [each.host.name for each in seen if not each.is_away]
    values = {
        "github app": (f"{settings.github_app_id} {settings.github_url}", "GIBIL_GITHUB_APP_ID and GIBIL_GITHUB_URL"),
        "provider": (_provider(settings, keyring), "GIBIL_PROVIDER and HCLOUD_TOKEN"),
    }
    for name, (value, setting) in values.items():
        if (stored := await store.agree(name, value)) == value:
            continue
        if is_shared and running:
            differ = f"{setting} differ from those of the bots that run on {', '.join(running)}"
            shown = f" ({stored!r}, here {value!r})" if name == "github app" else ""
            remedy = "set the same for all bots of a database; to change them, stop all bots first"
            problems.append(f"{differ}{shown}: {remedy}")
        else:
            await store.agree(name, value, replace=True)
    if problems:
        raise ConfigurationError(tuple(problems))


async def warn_of_differences(store: Store, settings: Settings, host_id: str) -> None:
    """Compare this bot's limit of machines with the other bots', once they see each other. Raises StoreError.

    With another one it works, too, but the highest is the limit of all. Where no other bot is running, this one's replaces it.
    """
    running = [each.host.name for each in await store.hosts.all() if each.host.id != host_id and not each.is_away]
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


def _other_key(keyring: Keyring, hosts: list[str]) -> str:
    others = f"the bots on {', '.join(hosts)} have another key" if hosts else "it belongs to bots with another key"
    return (
        f"{keyring.path}: this database can't be used with it, because {others}: copy their keyring.key to this path with mode "
        "600, or set GIBIL_KEYRING to the same file everywhere. A new database needs neither. If the key is lost on all hosts, "
        "stop all bots, destroy all machines, and delete the row 'keyring' of the table agreements"
    )


def _provider(settings: Settings, keyring: Keyring) -> str:
    """Return the provider, and a check value of the token, from which the keys of cloud machines are derived."""
    if settings.provider != "hetzner":
        return settings.provider
    key = keyring.derive("check value", "HCLOUD_TOKEN")
    return f"{settings.provider} {hmac.digest(key, settings.hcloud_token.reveal().encode(), 'sha256').hex()[:32]}"
