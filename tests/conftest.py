"""What several rooms of the tests share."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from gibil_bot.errors import Unavailable
from tests.doubles.machines import end_standing_keeper, local_lodging, shared_folder
from tests.doubles.patience import patient
from tests.doubles.prefork import end_forkers
from tests.doubles.repositories import no_git_settings as no_git_settings

# Hundreds of processes of ours are started: what they import is compiled once, and not by each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Started with `&` in a script or by nohup, we ignore these, and so would everything that a test starts and then interrupts.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL),
):  # fmt: skip
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# Nothing is kept between runs: a checkout may belong to somebody else, and two workers share it.
settings.register_profile("gibil", database=None)
settings.load_profile("gibil")


SLOW_FOLDERS = frozenset({"journeys", "faults", "attacks"})
SLOW_CONTRACTS = ("test_provider", "test_shell")
SLOW_FIXTURES = frozenset({"far", "local_machines", "hetzner_image"})


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """One test may take as long as the computer needs: see doubles/patience.py."""
    config.option.timeout = patient(float(config.getini("timeout")))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Two small messages of pytest-rerunfailures in a row wait for a delayed acknowledgement: 40 ms for each test."""
    connection = getattr(getattr(session.config, "failures_db", None), "sock", None)
    if isinstance(connection, socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as slow what starts machines, bots or servers."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        contract = folder == "contracts" and item.path.name.startswith(SLOW_CONTRACTS)
        if folder in SLOW_FOLDERS or contract or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def local_machines(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where this box cannot forge local machines, with the reason and the remedies."""
    reason = _why_no_local_machines(tmp_path_factory.mktemp("probe") / "data", shared_folder(tmp_path_factory))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def standing_keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Ends the keeper that tests share (doubles/machines.py), if they have needed one."""
    yield
    thread = threading.Thread(target=lambda: asyncio.run(end_standing_keeper(tmp_path_factory)))
    thread.start()
    thread.join()


@pytest.fixture(scope="session", autouse=True)
def forkers() -> Iterator[None]:
    """Ends the processes that the `gibil` commands of tests were forked from (doubles/prefork.py), if any."""
    yield
    end_forkers()


def _why_no_local_machines(data_dir: Path, shared: Path) -> str | None:
    answer: list[str | None] = []

    async def probe() -> None:
        try:
            async with local_lodging(data_dir, shared) as lodging:
                await lodging.provider.probe()
            answer.append(None)
        except Unavailable as error:
            answer.append(" ".join((error.message, *error.remedies)))

    # In a thread of its own: a test's event loop may be running in this one.
    thread = threading.Thread(target=lambda: asyncio.run(probe()))
    thread.start()
    thread.join()
    return answer[0]


@pytest.fixture(scope="session")
def hetzner_image(local_machines: None, tmp_path_factory: pytest.TempPathFactory) -> object:
    """What servers of the Hetzner double boot (hetzner_guests.Image); skips where they cannot, with the reason."""
    from tests.doubles.hetzner_guests import image_for_tests
    from tests.doubles.machines import shared_folder

    skeletons = shared_folder(tmp_path_factory)
    answer: list[object] = []
    # In a thread of its own: a test's event loop may be running in this one.
    thread = threading.Thread(target=lambda: answer.append(image_for_tests(skeletons.parent / "hetzner", skeletons)))
    thread.start()
    thread.join()
    if isinstance(answer[0], str):
        pytest.skip(answer[0])
    return answer[0]
