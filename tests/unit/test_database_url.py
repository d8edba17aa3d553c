"""The database's address is shown without its password, however it is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.config import load_settings
from gibil_bot.database_url import problem_of, shown_url
from gibil_bot.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:the-password@db.example:5432/gibil", "postgresql://ada@db.example:5432/gibil"),
        ("postgres://db.example/gibil", "postgresql://db.example/gibil"),
        ("postgresql://ada:the-p@ssword@db/gibil", "postgresql://ada@db/gibil"),
        ("postgresql:///gibil?host=/run/postgresql&password=the-password", "postgresql:///gibil?host=/run/postgresql"),
        ("postgresql://a@one:1,two:2/gibil?sslmode=require&passfile=x", "postgresql://a@one:1,two:2/gibil?sslmode=require"),
        ("postgresql://a:b@[::1]:5432/gibil", "postgresql://a@[::1]:5432/gibil"),
        ("postgresql://%2Frun%2Fpostgresql/gibil", "postgresql://%2Frun%2Fpostgresql/gibil"),
        ("sqlite:////var/lib/gibil/gibil.db", "sqlite:////var/lib/gibil/gibil.db"),
    ],
)
def test_a_usable_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert (shown_url(url), problem_of(url)) == (shown, None)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ada:the/password@db/gibil",
        "postgresql://ada:1/the-password@db/gibil",
        "postgresql://ada:1?the-password@db/gibil",
        "postgresql://ada:1#the-password@db/gibil",
        "postgresql://ada:[the-password@db/gibil",
        "postgresql://ada:the-password",
        "postgresql:ada:the-password@db/gibil",
        "postgresql+asyncpg://ada:the-password@db/gibil",
        "mysql://ada:the-password@db/gibil",
    ],
)
def test_an_unusable_address_is_rejected_and_not_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="GIBIL_DATABASE_URL") as caught:
        load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_DATABASE_URL": url})
    assert "password@" not in str(caught.value)
    assert "the" not in shown_url(url)


@given(st.text(min_size=1), st.sampled_from(["postgresql", "postgres", "mysql"]))
def test_no_text_of_a_password_is_shown(text: str, scheme: str) -> None:
    password = f"<<{text}>>"
    for url in (f"{scheme}://ada:{password}@db/gibil", f"{scheme}://db/gibil?password={password}@"):
        assert "<<" not in shown_url(url)
        assert ">>" not in shown_url(url)


def test_the_settings_do_not_print_it(tmp_path: Path) -> None:
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_DATABASE_URL": "postgresql://a:the-password@db/gibil"})
    assert "the-password" not in repr(settings)
    assert "the-password" in settings.database_url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (
            "postgresql://a:the-password@db:99999/gibil",
            "the port 99999 of postgresql://a@db:99999/gibil must be a number between",
        ),
        ("postgresql://a:the-password@one:5432,two:0/gibil", "the port 0 of postgresql://a@one:5432,two:0/gibil must be"),
        (
            "postgresql://a:the-password@db/gibil?sslmode=on",
            "the sslmode of postgresql://a@db/gibil?sslmode=on must be one of disable",
        ),
    ],
)
def test_a_wrong_part_of_an_address_is_named(url: str, problem: str) -> None:
    found = problem_of(url)
    assert found is not None
    assert found.startswith(problem)
    assert "the-password" not in found


@pytest.mark.parametrize("url", ["postgresql://[::1]:5432/g", "postgresql://10.0.0.5/g", "postgresql:///g?sslmode=verify-full"])
def test_a_usable_address_has_no_problem(url: str) -> None:
    assert problem_of(url) is None
