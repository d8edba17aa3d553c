"""The settings of agents' models: keys, addresses and budgets, checked together with all others."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gibil_bot.config import SETTINGS, load_settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.model_settings import VENDORS, Budgets, ModelSettings
from gibil_bot.quantities import parse_count, parse_usd


def settings(tmp_path: Path, **env: str) -> ModelSettings:
    return load_settings({"GIBIL_DATA_DIR": str(tmp_path), **env}).models


def problems(tmp_path: Path, **env: str) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        settings(tmp_path, **env)
    return list(caught.value.problems)


def test_agents_are_off_without_a_key(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert not found.is_enabled
    assert found == ModelSettings()
    assert settings(tmp_path, GIBIL_MODEL_KEY_OPENAI="sk-x").is_enabled


def test_a_key_appears_in_no_repr(tmp_path: Path) -> None:
    found = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_MODEL_KEY_ANTHROPIC": "sk-ant-one\n"})
    assert found.models.keys["anthropic"].reveal() == "sk-ant-one"
    assert "sk-ant" not in repr(found) + str(found)


def test_a_problem_with_a_key_doesnt_show_it(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GIBIL_MODEL_KEY_GEMINI="AIza one")
    assert problem == "GIBIL_MODEL_KEY_GEMINI must be one key, without spaces and line breaks"


def test_the_table_shows_the_defaults(tmp_path: Path) -> None:
    rows = {setting.name: setting.default for setting in SETTINGS}
    budgets = {
        f"GIBIL_BUDGET_{name}": rows[f"GIBIL_BUDGET_{name}"] for name in ("TASK", "RUN", "PERSON", "DAY", "TOKENS", "TIME")
    }
    assert settings(tmp_path, **budgets).budgets == Budgets()
    assert {vendor: rows[f"GIBIL_MODEL_URL_{vendor.upper()}"] for vendor in VENDORS} == dict(VENDORS)
    assert settings(tmp_path).urls == dict(VENDORS)


def test_budgets_are_exact_and_can_be_switched_off(tmp_path: Path) -> None:
    found = settings(
        tmp_path, GIBIL_BUDGET_TASK="0.10", GIBIL_BUDGET_RUN="none", GIBIL_BUDGET_TOKENS="500k", GIBIL_BUDGET_TIME="90m"
    )
    assert found.budgets == Budgets(task_usd=Decimal("0.1"), run_usd=None, run_tokens=500_000, day_seconds=5400)


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "prices.yml").write_text("m: {input: 1}\nn: 2\n")
    found = problems(
        tmp_path,
        GIBIL_BUDGET_TASK="two",
        GIBIL_BUDGET_RUN="-1",
        GIBIL_BUDGET_TOKENS="0.5",
        GIBIL_BUDGET_TIME="long",
        GIBIL_MODEL_URL_OPENAI="api.openai.com",
        GIBIL_MODEL_URL_GEMINI="https://me:pw@models.example.com",
        GIBIL_MODEL_URL_ANTHROPIC="https://[::1",
        GIBIL_MODEL_PRICES=str(tmp_path / "prices.yml"),
        GIBIL_ENGINES=str(tmp_path / "absent"),
        GIBIL_PORT="eighty",
    )
    assert sorted(problem.split(" ")[0].rstrip(":") for problem in found) == [
        "GIBIL_BUDGET_RUN", "GIBIL_BUDGET_TASK", "GIBIL_BUDGET_TIME", "GIBIL_BUDGET_TOKENS", "GIBIL_ENGINES",
        "GIBIL_MODEL_PRICES", "GIBIL_MODEL_PRICES",
        "GIBIL_MODEL_URL_ANTHROPIC", "GIBIL_MODEL_URL_GEMINI", "GIBIL_MODEL_URL_OPENAI", "GIBIL_PORT",
    ]  # fmt: skip
    assert "GIBIL_BUDGET_RUN: '-1' is not an amount in US dollars: write 2 or 2.50, below a million; or none" in found
    assert f"GIBIL_MODEL_PRICES: {tmp_path}/prices.yml:1:4: output missing" in found
    assert "pw" not in "".join(found)


def test_a_file_of_prices_that_cant_be_read_is_named(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, GIBIL_MODEL_PRICES=str(tmp_path / "absent.yml"))
    assert problem.startswith(f"GIBIL_MODEL_PRICES must be the path of a readable YAML file, got '{tmp_path}/absent.yml'")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe")
    assert len(problems(tmp_path, GIBIL_MODEL_PRICES=str(tmp_path / "binary.yml"))) == 1
    (tmp_path / "large.yml").write_text("# \n" * 100_000)
    (problem,) = problems(tmp_path, GIBIL_MODEL_PRICES=str(tmp_path / "large.yml"))
    assert "larger than 256 KiB" in problem


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("https://models.example.com/", "https://models.example.com"),
        ("https://openrouter.ai/api/v1/", "https://openrouter.ai/api"),
        ("https://generativelanguage.googleapis.com/v1beta", "https://generativelanguage.googleapis.com"),
    ],
)
def test_the_version_at_the_end_of_an_address_is_removed(tmp_path: Path, written: str, read: str) -> None:
    assert settings(tmp_path, GIBIL_MODEL_URL_OPENAI=written).urls["openai"] == read


def test_an_unencrypted_address_is_noted(tmp_path: Path) -> None:
    env = {"GIBIL_DATA_DIR": str(tmp_path)}
    assert load_settings({**env, "GIBIL_MODEL_URL_OPENAI": "http://127.0.0.1:8000/v1"}).notes == ()
    (note,) = load_settings({**env, "GIBIL_MODEL_URL_OPENAI": "http://vllm:8000"}).notes
    assert note.startswith("GIBIL_MODEL_URL_OPENAI: the key")


@pytest.mark.parametrize(
    ("text", "number"), [("20m", 20_000_000), ("1.5M", 1_500_000), ("500k", 500_000), ("5_000", 5000), ("0", 0)]
)
def test_numbers_of_tokens(text: str, number: int) -> None:
    assert parse_count(text) == number


@pytest.mark.parametrize("text", ["", "m", "-1", "1g", "1.0001k", "0.5", "9999999999", "٣"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    with pytest.raises(ValueError):
        parse_count(text)


@pytest.mark.parametrize("text", ["", "$2", "-1", "1e3", "nan", "inf", "1,5", "1000000", "0.0000001", "٣"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError):
        parse_usd(text)
