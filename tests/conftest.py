"""What several rooms of the tests share."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import settings

from gibil_bot.errors import Unavailable

# Nothing is kept between runs: a checkout may belong to somebody else, and two workers share it.
settings.register_profile("gibil", database=None)
settings.load_profile("gibil")


@pytest.fixture(scope="session")
def local_machines(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where this box cannot forge local machines, with the reason and the remedies."""
    reason = _why_no_local_machines(tmp_path_factory.mktemp("probe"))
    if reason is not None:
        pytest.skip(reason)


def _why_no_local_machines(folder: Path) -> str | None:
    from gibil_bot.machines.local.provider import LocalProvider

    answer: list[str | None] = []

    async def probe() -> None:
        provider = LocalProvider(folder)
        try:
            await provider.probe()
            answer.append(None)
        except Unavailable as error:
            answer.append(" ".join((error.message, *error.remedies)))
        finally:
            await provider.close()

    # In a thread of its own: a test's event loop may be running in this one.
    thread = threading.Thread(target=lambda: asyncio.run(probe()))
    thread.start()
    thread.join()
    return answer[0]
