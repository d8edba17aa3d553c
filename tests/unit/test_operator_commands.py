"""`gibil replay`, `gibil doctor`, `gibil engines` and `gibil budget` on an operator's files."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from gibil_bot import wiring
from gibil_bot.agent_task import Account, ModelCall, Usage
from gibil_bot.agents.engines.loading import load_engines
from gibil_bot.cli.budget import _spent, budget
from gibil_bot.cli.doctor import _data_dir, _database, _models
from gibil_bot.cli.engines import _row, _view
from gibil_bot.cli.replay import guess_event
from gibil_bot.config import load_settings
from gibil_bot.errors import StoreError
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.store import open_store
from tests.doubles.json_output import check_output


@pytest.mark.parametrize(
    ("payload", "event"),
    [
        ({"zen": "Design for failure.", "hook_id": 1, "hook": {}}, "ping"),
        ({"comment": {}, "issue": {}}, "issue_comment"),
        ({"comment": {}, "pull_request": {}}, "pull_request_review_comment"),
        ({"review": {}, "pull_request": {}}, "pull_request_review"),
        ({"pull_request": {}}, "pull_request"),
        ({"check_run": {"pull_requests": []}}, "check_run"),
        ({"check_suite": {}}, "check_suite"),
        ({"merge_group": {}}, "merge_group"),
    ],
)
def test_replay_guesses_the_event(payload: dict[str, object], event: str) -> None:
    assert guess_event(json.dumps(payload).encode(), Path("payload.json")) == event


def test_the_doctor_reports_a_data_directory_readable_by_others(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o755)
    found = _data_dir(load_settings({"GIBIL_DATA_DIR": str(folder)}))
    assert not found.ok
    assert "mode 755" in found.detail
    assert f"chmod 700 {folder}" in found.fix
    folder.chmod(0o700)
    assert "mode" not in _data_dir(load_settings({"GIBIL_DATA_DIR": str(folder)})).detail


def test_engines_tells_whether_a_key_is_set_and_never_the_key(tmp_path: Path) -> None:
    (tmp_path / "ours.yml").write_text("title: Ours\n")
    settings = load_settings({"GIBIL_MODEL_KEY_OPENAI": "the-real-key", "GIBIL_ENGINES": str(tmp_path)}).models
    engines = load_engines(settings.engines)
    shown = {name: (_row(engine, settings)[5], _view(engine, settings)["has_key"]) for name, engine in engines.items()}
    assert shown == {
        "claude": ("GIBIL_MODEL_KEY_ANTHROPIC is not set", False),
        "codex": ("set", True),
        "command": ("-", None),
        "gemini": ("GIBIL_MODEL_KEY_GEMINI is not set", False),
        "opencode": ("GIBIL_MODEL_KEY_ANTHROPIC is not set", False),
        "ours": ("-", None),
    }
    everything = json.dumps([[*_row(engine, settings), _view(engine, settings)] for engine in engines.values()])
    assert "the-real-key" not in everything
    assert _row(engines["ours"], settings)[-2:] == ("never", str(tmp_path / "ours.yml"))


async def test_the_doctor_checks_keys_and_prices_without_a_vendor(tmp_path: Path) -> None:
    env = {"GIBIL_DATA_DIR": str(tmp_path)}
    (off,) = await _models(load_settings(env))
    assert (off.ok, off.detail) == (True, "off, because no GIBIL_MODEL_KEY_… is set")

    swapped, agents = await _models(load_settings({**env, "GIBIL_MODEL_KEY_OPENAI": "sk-ant-x", "GIBIL_BUDGET_RUN": "none"}))
    assert (swapped.name, swapped.ok, swapped.fix) == ("GIBIL_MODEL_KEY_OPENAI", False, "set GIBIL_MODEL_KEY_ANTHROPIC instead")
    assert "sk-ant-x" not in swapped.detail
    assert agents.detail.startswith("codex can be used; budgets: task 2 USD, run unlimited, person and day 20 USD")

    gateway = {"GIBIL_MODEL_KEY_OPENAI": "sk-ant-x", "GIBIL_MODEL_URL_OPENAI": "https://models.example.com"}
    assert [finding.ok for finding in await _models(load_settings({**env, **gateway}))] == [True]


async def test_the_doctor_names_an_engine_whose_model_has_no_price(tmp_path: Path) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    codex = (resources.files("gibil_bot.agents.engines") / "codex.yml").read_text()
    (engines / "local.yml").write_text(re.sub("(?m)^default-model:.*", "default-model: qwen-local", codex))
    env = {"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_MODEL_KEY_OPENAI": "x", "GIBIL_ENGINES": str(engines)}
    finding, _ = await _models(load_settings(env))
    assert (finding.name, finding.ok) == ("GIBIL_MODEL_PRICES", False)
    assert finding.detail == "the engine local can't be used: its model qwen-local has no known price"
    prices = tmp_path / "prices.yml"
    prices.write_text("qwen-*: {input: 0, output: 0}\n")
    assert [each.ok for each in await _models(load_settings({**env, "GIBIL_MODEL_PRICES": str(prices)}))] == [True]
    (engines / "local.yml").write_text("title: 1\n")
    assert {each.name for each in await _models(load_settings(env))} == {"GIBIL_ENGINES"}


def test_budget_prints_what_was_spent_on_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBIL_DATA_DIR", str(tmp_path))
    at = datetime(2026, 11, 27, 12, tzinfo=UTC)

    async def spend() -> None:
        store = await open_store(f"sqlite:///{tmp_path / 'gibil.db'}", clock=at.timestamp)
        account = Account(run_id="r", task=0, person="ada", repository_id=1, repository="ada/engine")
        usage = Usage(input=1000, output=234, is_estimated=True)
        call = ModelCall(
            run_id="r", task=0, started_at=at, protocol="chat", model="m", status=200, usage=usage, usd=Decimal("1.2345")
        )
        await store.ledger.book("a", account, call)
        await store.ledger.add_time(account, 75)
        await store.close()

    asyncio.run(spend())
    shown = CliRunner().invoke(budget, ["--day", "2026-11-27"]).stdout
    assert [line.split() for line in shown.splitlines()] == [
        ["SPENT", "OF", "CALLS", "TOKENS", "MACHINE", "TIME"],
        ["@ada", "~1.23", "USD", "20.00", "1", "~1,234", "1", "min", "15", "s"],
        ["ada/engine", "~1.23", "USD", "50.00", "1", "~1,234", "1", "min", "15", "s"],
    ]
    text = CliRunner().invoke(budget, ["--day", "2026-11-27", "--json"]).stdout
    check_output(["budget", "--json"], text)
    printed = json.loads(text)
    assert (printed["persons"][0]["usd"], printed["repositories"][0]["name"]) == ("1.2345", "ada/engine")
    assert json.loads(CliRunner().invoke(budget, ["--day", "2026-11-26", "--json"]).stdout)["persons"] == []


async def test_commands_create_a_database_but_leave_an_older_one_to_db_migrate(tmp_path: Path) -> None:
    """A bot of that version may be using it."""
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    assert (await _database(settings)).ok
    file = tmp_path / "gibil.db"
    file.unlink()
    with closing(sqlite3.connect(file)) as older:
        older.executescript((Path(__file__).parents[1] / "contracts" / "samples" / "version_3.sql").read_text())
        finding = await _database(settings)
        assert not finding.ok
        assert "has version 3, and this gibil needs 7: stop the bots, and run gibil db migrate" in finding.detail
        with pytest.raises(StoreError, match="run gibil db migrate"):
            await _spent(settings, datetime.now(UTC).date())
        assert database.version(older) == 3
    await (await wiring.open_store(settings)).close()
    assert (await _database(settings)).ok
