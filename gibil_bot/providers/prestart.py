"""What a command can let begin before it has read all that it needs. Light to import; idle if nothing is forged after all."""

from __future__ import annotations

from gibil_bot.config import Settings


def begin(settings: Settings) -> None:
    """Something is about to be forged. Local machines: their daemon comes up meanwhile. Never raises."""
    if settings.provider == "local":
        from gibil_bot.providers.local import daemon_start

        daemon_start.begin(settings.data_dir)
