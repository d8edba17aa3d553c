"""Which repository may use which secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.config import load_settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.operator_secrets import missing_secret

SCOPED = """
global: {A: everywhere, B: everywhere}
owners:
  Acme: {B: of-acme, C: of-acme}
repositories:
  acme/API: {C: of-the-api, D: of-the-api}
  other/api: {E: of-another}
"""


def write(folder: Path, text: str) -> dict[str, str]:
    path = folder / "secrets.yml"
    path.write_text(text)
    path.chmod(0o600)
    return {"GIBIL_DATA_DIR": str(folder)}


def seen(environment: dict[str, str], repository: str) -> dict[str, str]:
    secrets = load_settings(environment).secrets
    return {name: secret.reveal() for name, secret in secrets.of_repository(repository).items()}


def test_the_narrowest_scope_wins_and_repositories_cannot_read_each_others_secrets(tmp_path: Path) -> None:
    environment = write(tmp_path, SCOPED)
    assert seen(environment, "acme/api") == {"A": "everywhere", "B": "of-acme", "C": "of-the-api", "D": "of-the-api"}
    assert seen(environment, "acme/web") == {"A": "everywhere", "B": "of-acme", "C": "of-acme"}
    assert seen(environment, "mallory/api") == {"A": "everywhere", "B": "everywhere"}
    assert seen(environment, "acme") == {"A": "everywhere", "B": "everywhere"}  # a folder of `gibil try`


def test_names_of_owners_and_repositories_ignore_case(tmp_path: Path) -> None:
    environment = write(tmp_path, SCOPED)
    assert seen(environment, "ACME/Api") == seen(environment, "acme/api")


def test_a_variable_applies_to_all_repositories_and_overrides_only_the_global_part(tmp_path: Path) -> None:
    environment = write(tmp_path, SCOPED) | {"GIBIL_SECRET_A": "variable", "GIBIL_SECRET_B": "variable"}
    assert seen(environment, "acme/api") == {"A": "variable", "B": "of-acme", "C": "of-the-api", "D": "of-the-api"}


def test_the_flat_form_is_global_and_reported(tmp_path: Path) -> None:
    environment = write(tmp_path, "TOKEN: one\nowners: two\n")
    assert seen(environment, "any/body") == {"TOKEN": "one", "owners": "two"}
    (note,) = load_settings(environment).notes
    assert "every repository may use all these" in note
    assert load_settings(write(tmp_path, SCOPED)).notes == ()


@pytest.mark.parametrize("text", ["", "{}", "global:\n", "owners: {acme: }\nrepositories: {}\n"])
def test_empty_sections_are_allowed(tmp_path: Path, text: str) -> None:
    assert seen(write(tmp_path, text), "acme/api") == {}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[hidden-word]", "write `global:`, `owners:` and `repositories:`"),
        ("TOKEN: 17", "'TOKEN': write NAME: value; a number needs quotes"),
        ("global: {A: 1}", "global: 'A': write NAME: value"),
        ("global: {A: x}\nTOKEN: hidden-word", "unknown key 'TOKEN', expected global, owners, repositories"),
        ("global: hidden-word\nowners: {}", "global: write one NAME: value per line"),
        ("owners: {acme/api: {A: x}}", "owners: 'acme/api' is not the name of an account"),
        ("repositories: {acme: {A: x}}", "repositories: 'acme' is not owner/name"),
        ("repositories: {acme/api: hidden-word}", "repositories: acme/api: write one NAME: value per line"),
        ("repositories: {acme/api: {A: x}, ACME/API: {A: y}}", "'ACME/API' occurs twice"),
        ("owners: [hidden-word]", "owners: write the name of an account"),
    ],
)
def test_errors_are_reported_without_values(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(write(tmp_path, text))
    assert says in str(caught.value)
    assert "hidden-word" not in str(caught.value)


def test_a_missing_secret_is_reported_with_how_to_set_it_for_the_repository() -> None:
    output = missing_secret("DEPLOY", "acme/api")
    assert "secrets.yml under `repositories: acme/api:`" in output
    assert "GIBIL_SECRET_DEPLOY" in output
    assert "secrets.yml" not in missing_secret("DEPLOY", "folder")
