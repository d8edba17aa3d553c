"""Fixtures and settings for all tests."""

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
from tests.doubles.machines import end_shared_daemon, local_lodging, shared_folder
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster, Template, available, template
from tests.doubles.prefork import end_forkers
from tests.doubles.repositories import no_git_settings as no_git_settings

# The tests start hundreds of Python processes: cached bytecode saves each of them the compilation.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A shell starts background jobs (`&`) with these signals ignored, and nohup its command. Children would inherit that and
# couldn't be interrupted.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL), (signal.SIGHUP, signal.SIG_DFL),
):  # fmt: skip
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# The examples of a property are the same in each run: a new one is found by who searches for it (`pytest
# --hypothesis-profile search`), not by an unrelated change. No deadline: a busy computer isn't a fault. No example database:
# the checkout may be read-only for this user, and several workers share it.
settings.register_profile("gibil", database=None, deadline=None, derandomize=True)
settings.register_profile("search", database=None, deadline=None, max_examples=5000)
settings.load_profile("gibil")


SLOW_FOLDERS = frozenset({"journeys", "faults", "attacks"})
SLOW_CONTRACTS = ("test_provider", "test_shell", "test_remote_forwarding", "test_task_semantics", "test_store_concurrency")
SLOW_FIXTURES = frozenset({"far", "local_machines", "hetzner_image", "postgres", "own_postgres"})


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Scale the timeout of a test by the speed of this computer: see doubles/patience.py."""
    config.option.timeout = patient(float(config.getini("timeout")))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Disable Nagle's algorithm for pytest-rerunfailures: its pairs of small messages cost 40 ms for each test."""
    connection = getattr(getattr(session.config, "failures_db", None), "sock", None)
    if isinstance(connection, socket.socket):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark tests that start machines, bots or servers as slow. They get a second attempt, and no other test does."""
    second_attempt = config.pluginmanager.hasplugin("rerunfailures") and not config.option.usepdb
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        contract = folder == "contracts" and (item.path.name.startswith(SLOW_CONTRACTS) or "postgresql" in item.name)
        if folder in SLOW_FOLDERS or contract or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
            if second_attempt and folder != "unit":
                item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(scope="session")
def local_machines(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip with the reason and the remedies if this computer can't create local machines."""
    reason = _why_no_local_machines(tmp_path_factory.mktemp("probe") / "data", shared_folder(tmp_path_factory))
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """End the daemon that tests share (doubles/machines.py), if a test needed one."""
    yield
    thread = threading.Thread(target=lambda: asyncio.run(end_shared_daemon(tmp_path_factory)))
    thread.start()
    thread.join()


@pytest.fixture(scope="session", autouse=True)
def scanner_rules(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share the compiled rules of the scanner for secrets, also with processes: compiling them takes seconds."""
    os.environ["KF_RULE_CACHE_DIR"] = str(shared_folder(tmp_path_factory).with_name("secret-rules"))


@pytest.fixture(scope="session")
def postgres_template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """What clusters are copied from (doubles/postgres.py). Skip with the reason if this computer can't run PostgreSQL."""
    return available(template(shared_folder(tmp_path_factory).with_name("postgres")))


@pytest.fixture(scope="session")
def postgres(postgres_template: Template) -> Iterator[Cluster]:
    """The PostgreSQL server of this worker's tests, which no test may stop."""
    with Cluster(postgres_template) as cluster:
        yield cluster


@pytest.fixture
def own_postgres(postgres_template: Template) -> Iterator[Cluster]:
    """A PostgreSQL server for one test, which may stop and kill it."""
    with Cluster(postgres_template) as cluster:
        yield cluster


@pytest.fixture(scope="session", autouse=True)
def forkers() -> Iterator[None]:
    """Stop the processes that `gibil` commands are forked from (doubles/prefork.py), if a test started any."""
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

    # In another thread, because a test's event loop may be running in this one.
    thread = threading.Thread(target=lambda: asyncio.run(probe()))
    thread.start()
    thread.join()
    return answer[0]


@pytest.fixture(scope="session")
def hetzner_image(local_machines: None, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The image that servers of the Hetzner double boot (hetzner_guests.Image). Skip with the reason if they can't."""
    from tests.doubles.hetzner_guests import image_for_tests
    from tests.doubles.machines import shared_folder

    base_trees = shared_folder(tmp_path_factory)
    answer: list[object] = []
    # In a separate thread, because a test's event loop may be running in this one.
    thread = threading.Thread(target=lambda: answer.append(image_for_tests(base_trees.parent / "hetzner", base_trees)))
    thread.start()
    thread.join()
    if isinstance(answer[0], str):
        pytest.skip(answer[0])
    return answer[0]
