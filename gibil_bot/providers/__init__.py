"""Providers of machines, and the code that all of them share: life cycle, keys, cloud-init."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gibil_bot.config import Settings


def prestart(settings: Settings) -> None:
    """Start slow provider set-up in parallel with reading a command's input, because a machine will be created. Never raises.

    The daemon of local machines starts; it ends by itself if no machine is created. Without this, `gibil create` without a
    running daemon takes 15 % longer. It is here because importing `wiring` would delay it by as much as it saves.
    """
    if settings.provider == "local":
        from gibil_bot.providers.local import daemon_start

        daemon_start.begin(settings.data_dir)
