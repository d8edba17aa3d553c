"""What the bots of one database have to share, when they start."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gibil_bot.cli.doctor import _agreements
from gibil_bot.config import Secret, Settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.model import Host
from gibil_bot.ports import Store
from gibil_bot.providers.keyring import Keyring
from gibil_bot.runs.agreements import check_agreements, warn_of_differences
from gibil_bot.runs.postgres.store import open_store as open_shared
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from tests.doubles.postgres import Cluster

Found = tuple[Store, Settings, Settings]


@contextlib.asynccontextmanager
async def two_directories(folder: Path) -> AsyncIterator[Found]:
    """Yield a store, and the settings of the hosts ada, whose bot runs, and bob. They have the same key."""
    url = f"sqlite:///{folder / 'shared.db'}"
    store = await open_store(url, exclusive=False)
    try:
        ada = Settings(data_dir=folder / "ada", database_url=url, keyring=folder / "shared.key", github_app_id="1")
        await check_agreements(store, ada, keyring(ada), "a", is_shared=True)
        await store.hosts.start(Host(id="a", name="ada"), "bot of ada")
        yield store, ada, replace(ada, data_dir=folder / "bob")
    finally:
        await store.close()


def keyring(settings: Settings) -> Keyring:
    return Keyring(settings.data_dir, settings.keyring)


async def start(store: Store, settings: Settings, *, is_shared: bool = True) -> None:
    """Check what a bot on the host bob checks at its start."""
    await check_agreements(store, settings, keyring(settings), "b", is_shared=is_shared)


async def test_bots_with_the_same_settings_start_again_and_again(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (store, _, bob):
        for _ in range(2):
            await start(store, bob)


async def test_a_bot_with_another_key_does_not_start_and_learns_which_host_has_the_right_one(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (store, ada, bob):
        own_key = replace(bob, keyring=None)
        for _ in range(2):
            with pytest.raises(ConfigurationError) as caught:
                await start(store, own_key)
            (problem,) = caught.value.problems
            for text in (f"{bob.data_dir}/keyring.key: ", "the bots on ada have another key", "GIBIL_KEYRING", "mode 600"):
                assert text in problem
            assert keyring(ada).check_value() not in problem
            await store.hosts.leave("bot of ada")  # its key is needed also while it is away
        (bob.data_dir / "keyring.key").write_bytes((tmp_path / "shared.key").read_bytes())
        await start(store, own_key)


async def test_a_key_that_is_lost_on_all_hosts_can_be_replaced_as_the_error_says(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (store, _, bob):
        with pytest.raises(ConfigurationError, match="delete the row 'keyring' of the table agreements"):
            await start(store, replace(bob, keyring=None))
        await store.agree("keyring", keyring(replace(bob, keyring=None)).check_value(), replace=True)
        await start(store, replace(bob, keyring=None))


async def test_a_database_of_one_bot_is_used_with_another_key_after_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_directories(tmp_path) as (store, ada, bob):
        alone = replace(bob, keyring=None, github_app_id="2")
        with caplog.at_level(logging.WARNING):
            await start(store, alone, is_shared=False)
            assert [record.getMessage() for record in caplog.records] == [
                f"{bob.data_dir}/keyring.key isn't the key with which this database was used before: machines that it created "
                "can't be reached"
            ]
            caplog.clear()
            await start(store, alone, is_shared=False)
            assert caplog.records == []
        with pytest.raises(ConfigurationError):
            await check_agreements(store, ada, keyring(ada), "a", is_shared=True)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"github_app_id": "2"}, r"GIBIL_GITHUB_APP_ID .* on ada \('1 https://api.github.com', here '2 https"),
        ({"github_url": "https://ghe.example/api/v3"}, r"GIBIL_GITHUB_URL differ .* here '1 https://ghe.example/api/v3'"),
        (
            {"provider": "hetzner", "hcloud_token": Secret("s3cret")},
            "GIBIL_PROVIDER and HCLOUD_TOKEN differ .* on ada: set",
        ),
    ],
)
async def test_another_app_or_provider_waits_until_no_other_bot_runs(
    tmp_path: Path, change: dict[str, object], problem: str
) -> None:
    async with two_directories(tmp_path) as (store, ada, bob):
        other = replace(bob, **change)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=problem) as caught:
            await start(store, other)
        assert "s3cret" not in str(caught.value)
        await store.hosts.leave("bot of ada")
        await start(store, other)
        await store.hosts.start(Host(id="b", name="bob"), "bot of bob")
        with pytest.raises(ConfigurationError, match="bob"):
            await check_agreements(store, ada, keyring(ada), "a", is_shared=True)


async def test_another_token_of_hetzner_is_another_provider(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (store, _, bob):
        await store.hosts.leave("bot of ada")
        first = replace(bob, provider="hetzner", hcloud_token=Secret("first"))
        await start(store, first)
        assert "first" not in await store.agree("provider", "")
        await store.hosts.start(Host(id="a", name="ada"), "bot of ada")
        await start(store, first)
        with pytest.raises(ConfigurationError, match="HCLOUD_TOKEN"):
            await start(store, replace(first, hcloud_token=Secret("second")))


async def test_another_limit_of_machines_is_a_warning_while_other_bots_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_directories(tmp_path) as (store, ada, bob):
        await warn_of_differences(store, ada, "a")
        other = replace(bob, max_machines=3)
        for settings in (bob, other):
            await warn_of_differences(store, settings, "b")
        (warning,) = [record.getMessage() for record in caplog.records]
        assert warning.startswith("GIBIL_MAX_MACHINES is 3 here and 10 for the bots that run on ada: ")
        await store.hosts.leave("bot of ada")
        await warn_of_differences(store, other, "b")
        assert await store.agree("max machines", "") == "3"
        assert len(caplog.records) == 1


async def test_every_difference_is_reported_at_once(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (store, _, bob):
        with pytest.raises(ConfigurationError) as caught:
            await start(store, replace(bob, github_app_id="2", provider="hetzner", hcloud_token=Secret("t")))
        assert len(caught.value.problems) == 2


async def test_of_two_bots_with_different_apps_that_start_at_the_same_time_one_stops(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (store, ada, bob):
        await store.hosts.leave("bot of ada")
        other = replace(bob, github_app_id="2")
        await check_agreements(store, ada, keyring(ada), "a", is_shared=True)
        await start(store, other)
        await store.hosts.start(Host(id="a", name="ada"), "bot of ada")
        await store.hosts.start(Host(id="b", name="bob"), "bot of bob")
        # Each checks again once the others see it.
        with pytest.raises(ConfigurationError, match="bots that run on bob"):
            await check_agreements(store, ada, keyring(ada), "a", is_shared=True)
        await start(store, other)


# --- gibil doctor -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def shared(postgres: Cluster, folder: Path) -> AsyncIterator[Found]:
    """As two_directories, on a PostgreSQL."""
    async with postgres.lend_database() as name:
        ada = Settings(
            data_dir=folder / "ada",
            database_url=postgres.url(name),
            keyring=folder / "shared.key",
            github_app_id="1",
            bot_url="http://ada:8080",
        )
        store = await open_shared(ada.database_url)
        try:
            await check_agreements(store, ada, keyring(ada), "a", is_shared=True)
            await warn_of_differences(store, ada, "a")
            await store.hosts.start(Host(id="a", name="ada"), "bot of ada")
            yield store, ada, replace(ada, data_dir=folder / "bob")
        finally:
            await store.close()


async def diagnosis(settings: Settings) -> dict[str, tuple[bool, str, str]]:
    found = await _agreements(settings)
    return {each.name.removeprefix("database: "): (each.ok, each.detail, each.fix) for each in found}


async def rows(store: Store) -> object:
    assert isinstance(store, SqlStore)
    return await store.database.read(lambda db: db.rows("select name, value from agreements order by name"))


async def test_the_doctor_finds_what_would_stop_a_bot_at_its_start_and_changes_nothing(
    postgres: Cluster, tmp_path: Path
) -> None:
    async with shared(postgres, tmp_path) as (store, _, bob):
        before = await rows(store)
        assert {name: ok for name, (ok, _, _) in (await diagnosis(bob)).items()} == {"key": True, "App": True, "provider": True}

        no_key = await diagnosis(replace(bob, keyring=None))
        ok, detail, fix = no_key["key"]
        assert not ok
        assert detail.startswith(f"{bob.data_dir}/keyring.key: it doesn't exist, and a new key would be another one: ")
        assert "the bots on ada have another key" in detail
        assert fix.startswith("copy their keyring.key to this path with mode 600, or set GIBIL_KEYRING")
        assert no_key["provider"] == (True, "as in the database", "")
        assert not bob.data_dir.exists()

        keyring(replace(bob, keyring=None)).check_value()
        assert (await diagnosis(replace(bob, keyring=None)))["key"][0] is False

        other = replace(bob, github_app_id="2", provider="hetzner", hcloud_token=Secret("s3cret"), max_machines=3, bot_url="")
        found = await diagnosis(other)
        assert found["App"][:2] == (
            False,
            "GIBIL_GITHUB_APP_ID and GIBIL_GITHUB_URL differ from those of the bots that run on ada "
            "('1 https://api.github.com', here '2 https://api.github.com')",
        )
        assert found["provider"][:2] == (False, "GIBIL_PROVIDER and HCLOUD_TOKEN differ from those of the bots that run on ada")
        assert found["machines"][:2] == (True, "GIBIL_MAX_MACHINES is 3 here and 10 on ada: the highest applies")
        assert found["other hosts"][:2] == (True, "the bots on ada can't read the output of runs of this host")
        assert "s3cret" not in str(found)

        await store.hosts.leave("bot of ada")
        found = await diagnosis(other)
        assert {name: ok for name, (ok, _, _) in found.items()} == {"key": True, "App": True, "provider": True}
        assert "the first bot that starts decides" in found["App"][2]
        assert (await diagnosis(replace(bob, keyring=None)))["key"][0] is False, "the key is needed also while ada is away"
        assert await rows(store) == before


async def test_the_doctor_reports_a_key_that_other_users_can_read_and_a_new_database(postgres: Cluster, tmp_path: Path) -> None:
    async with shared(postgres, tmp_path) as (store, _, bob):
        (tmp_path / "shared.key").chmod(0o644)
        ((ok, detail, _),) = (await diagnosis(bob)).values()
        assert not ok
        assert "chmod 600" in detail
        assert isinstance(store, SqlStore)
        await postgres.execute("delete from agreements", database=bob.database_url.rpartition("/")[2])
        (tmp_path / "shared.key").unlink()
        assert (await diagnosis(bob))["key"] == (True, "no bot has used this database yet, so any key is right", "")
        assert not (tmp_path / "shared.key").exists()


async def test_the_doctor_gives_advice_about_a_key_that_one_bot_replaces(tmp_path: Path) -> None:
    async with two_directories(tmp_path) as (_, ada, bob):
        assert (await diagnosis(ada))["key"] == (True, f"{tmp_path}/shared.key is the key of this database", "")
        ok, detail, fix = (await diagnosis(replace(bob, keyring=None)))["key"]
        assert (ok, fix) == (True, "restore the former keyring.key if there are such machines")
        assert detail.startswith(f"{bob.data_dir}/keyring.key doesn't exist")
