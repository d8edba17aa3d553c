"""Settings are read once, all problems are reported together, and the README's table is correct."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gibil_bot.config import SETTINGS, Secret, load_settings, parse_duration, require_github
from gibil_bot.errors import ConfigurationError
from gibil_bot.github.api.git_data import MOST_BLOB_BYTES

README = Path(__file__).parents[2] / "README.md"


def table() -> str:
    rows = ["| name | default | meaning |", "|---|---|---|"]
    rows += [f"| {setting.name} | {setting.default} | {setting.meaning} |" for setting in SETTINGS]
    return "\n".join(rows)


def test_the_readme_lists_exactly_the_settings_that_are_read() -> None:
    match = re.search(r"<!-- settings -->\n(.*)\n<!-- /settings -->", README.read_text(), re.DOTALL)
    assert match is not None
    assert match[1].strip() == table()


def test_every_variable_that_is_read_has_a_row() -> None:
    package = Path(__file__).parents[2] / "gibil_bot"
    source = (package / "config.py").read_text().partition("def load_settings")[2] + (package / "model_settings.py").read_text()
    read = set(re.findall(r"\"(GIBIL_[A-Z_]+|HCLOUD_[A-Z]+)\"", source))
    rows = {setting.name.replace("<NAME>", "") for setting in SETTINGS}
    assert read <= rows


def test_every_setting_has_a_default(tmp_path: Path) -> None:
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    assert settings.database_url == f"sqlite:///{tmp_path}/gibil.db"
    assert settings.github_url == "https://api.github.com"
    assert (settings.host, settings.port, settings.max_machines, settings.max_ttl_s) == ("127.0.0.1", 8080, 10, 86400)
    assert settings.allowed_accounts is None
    assert (settings.max_memory_mb, settings.max_disk_mb, settings.max_pids, settings.server_types) == (None, None, 4096, None)


def test_the_bots_of_several_hosts_are_configured(tmp_path: Path) -> None:
    env = {"GIBIL_DATA_DIR": str(tmp_path)}
    settings = load_settings({**env, "GIBIL_BOT_URL": "http://[fd00::5]:8080/", "GIBIL_HOST_AWAY": "1m"})
    assert (settings.bot_url, settings.host_away_s) == ("http://[fd00::5]:8080", 60)
    assert (load_settings(env).bot_url, load_settings(env).host_away_s) == ("", 600)
    for url in ("10.0.0.5:8080", "ftp://host", "http:", "http://[", "http://a:99999", "http://a:b@host", "http://host?x"):
        with pytest.raises(ConfigurationError) as caught:
            load_settings({**env, "GIBIL_BOT_URL": url, "GIBIL_HOST_AWAY": "59s"})
        assert len(caught.value.problems) == 2, caught.value.problems
        assert "GIBIL_HOST_AWAY must be at least one minute, got '59s'" in caught.value.problems[0]
        shown = "one with a password" if "@" in url else repr(url)
        assert f"GIBIL_BOT_URL must be an http(s) URL such as http://10.0.0.5:8080, got {shown}" in caught.value.problems[1]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "127.8.8.8",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
        "LOCALHOST.",
        "ada.localhost",
        "0.0.0.0",
        "[::]",
    ],
)
def test_an_address_that_leads_other_hosts_to_themselves_is_reported(tmp_path: Path, host: str) -> None:
    env = {"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_BOT_URL": f"http://{host}:8080"}
    assert load_settings(env).notes == (), "no other host uses the SQLite file"
    env["GIBIL_DATABASE_URL"] = "postgresql://gibil@db.example/gibil"
    if host in ("0.0.0.0", "[::]"):
        with pytest.raises(ConfigurationError, match="GIBIL_BOT_URL must have an address at which other hosts reach this one"):
            load_settings(env)
    else:
        settings = load_settings(env)
        assert settings.bot_url == env["GIBIL_BOT_URL"], "several bots on one computer use it"
        (note,) = settings.notes
        assert note.startswith(
            f"GIBIL_BOT_URL: at http://{host}:8080 a bot on another host reaches only itself, not this one; set"
        )


@pytest.mark.parametrize(
    "host", ["10.0.0.5", "ada.example", "localhost.example", "[fd00::5]", "127.example", "gibil-127-0-0-1"]
)
def test_an_address_that_other_hosts_may_reach_is_not_reported(tmp_path: Path, host: str) -> None:
    database = "postgresql://gibil@db.example/gibil"
    env = {"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_BOT_URL": f"http://{host}:8080", "GIBIL_DATABASE_URL": database}
    assert load_settings(env).notes == ()


def test_a_data_directory_below_a_file_is_one_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(ConfigurationError) as caught:
            load_settings({"GIBIL_DATA_DIR": str(tmp_path / path)})
        assert caught.value.problems == (f"GIBIL_DATA_DIR: '{tmp_path}/file' is a file; set it to a writable directory",)


def test_caps_are_read_and_invalid_ones_are_reported(tmp_path: Path) -> None:
    env = {"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_MAX_MEMORY": "2g", "GIBIL_MAX_DISK": "512"}
    settings = load_settings({**env, "GIBIL_MAX_PIDS": "99", "GIBIL_SERVER_TYPES": "cx23, cx33"})
    assert (settings.max_memory_mb, settings.max_disk_mb, settings.max_pids) == (2048, 512, 99)
    assert settings.server_types == ("cx23", "cx33")
    with pytest.raises(ConfigurationError) as caught:
        load_settings(
            {"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_MAX_MEMORY": "much", "GIBIL_MAX_DISK": "1m", "GIBIL_MAX_PIDS": "x"}
        )
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    for expected in ("GIBIL_MAX_MEMORY: 'much' is not a size", "GIBIL_MAX_DISK must be at least 64m", "GIBIL_MAX_PIDS"):
        assert expected in text


def test_commits_are_not_larger_than_one_file_may_be(tmp_path: Path) -> None:
    env = {"GIBIL_DATA_DIR": str(tmp_path)}
    assert load_settings({**env, "GIBIL_COMMIT_SIZE": "32m"}).commit_bytes == MOST_BLOB_BYTES
    with pytest.raises(ConfigurationError, match="GIBIL_COMMIT_SIZE must be at most 32m, got '1g'"):
        load_settings({**env, "GIBIL_COMMIT_SIZE": "1g"})


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(
            {
                "GIBIL_DATA_DIR": str(tmp_path),
                "GIBIL_PORT": "eighty",
                "GIBIL_MAX_TTL": "soon",
                "GIBIL_DATABASE_URL": "mysql://ada:the-password@localhost/gibil",
                "GIBIL_GITHUB_URL": "github",
                "GIBIL_WORKFLOWS": str(tmp_path / "absent"),
                "GIBIL_LOCAL_UNTRUSTED": "maybe",
                "GIBIL_TRUSTED_APPS": "dependabot[bot], renovate",
                "GIBIL_PROTECTED_PATHS": f"docker/**, !docker/x, {'a' * 501}",
            }
        )
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 9
    for name in (
        "GIBIL_LOCAL_UNTRUSTED must be approve, refuse or allow, got 'maybe'",
        "GIBIL_TRUSTED_APPS: 'renovate'",
        "GIBIL_PROTECTED_PATHS: '!docker/x'",
        "is longer than 500 characters",
        "GIBIL_PORT",
        "GIBIL_MAX_TTL",
        "GIBIL_DATABASE_URL: 'mysql://…' is not supported; write sqlite:///",
        "GIBIL_GITHUB_URL",
        "GIBIL_WORKFLOWS",
    ):
        assert name in text


def test_missing_github_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_github(load_settings({"GIBIL_DATA_DIR": str(tmp_path)}))
    assert len(caught.value.problems) == 3


def test_secrets_appear_in_no_repr(tmp_path: Path) -> None:
    environment = {
        "GIBIL_DATA_DIR": str(tmp_path),
        "GIBIL_GITHUB_WEBHOOK_SECRET": "first-one,second-one",
        "GIBIL_SECRET_TOKEN": "third-one",
        "GIBIL_GITHUB_PRIVATE_KEY": "-----BEGIN X-----\\nfourth-one\\n-----END X-----",
    }
    settings = load_settings(environment)
    assert [secret.reveal() for secret in settings.webhook_secrets] == ["first-one", "second-one"]
    assert settings.secrets.everywhere["TOKEN"].reveal() == "third-one"
    assert "\nfourth-one\n" in settings.github_private_key.reveal()
    for shown in (repr(settings), str(settings), f"{settings.secrets}"):
        assert "-one" not in shown
    assert repr(Secret("x")) == "Secret(***)"


def test_a_secrets_file_readable_by_others_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "secrets.yml"
    path.write_text("TOKEN: from-the-file\nOTHER: from-the-file\n")
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    path.chmod(0o600)
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_SECRET_OTHER": "from-the-environment"})
    assert settings.secrets.everywhere["TOKEN"].reveal() == "from-the-file"
    assert settings.secrets.everywhere["OTHER"].reveal() == "from-the-environment"


def test_the_private_key_may_be_a_path(tmp_path: Path) -> None:
    path = tmp_path / "app.pem"
    path.write_text("-----BEGIN X-----\nabc\n-----END X-----\n")
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_GITHUB_PRIVATE_KEY": str(path)})
    assert "abc" in settings.github_private_key.reveal()
    with pytest.raises(ConfigurationError, match="must be PEM text or the path of a readable file"):
        load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_GITHUB_PRIVATE_KEY": str(tmp_path / "absent.pem")})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("20", 1200),
        ("2h", 7200),
        ("7d", 604800),
        ("1w", 604800),
        ("1mo", 2592000),
        ("1y", 31536000),
    ],
)
def test_valid_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-5m", "1.5h", "5 fortnights", "٥m"])
def test_an_invalid_duration_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="90s, 20m"):
        parse_duration(text)


def test_the_configured_github_is_always_reachable_from_machines(tmp_path: Path) -> None:
    settings = load_settings(
        {"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_GITHUB_URL": "http://127.0.0.1:9000", "GIBIL_EGRESS_ALLOW": "10.0.0.0/8"}
    )
    assert settings.egress == ("10.0.0.0/8", "127.0.0.1:9000")
    ghe = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_GITHUB_URL": "https://ghe.example.com/api/v3/"})
    assert ghe.egress == ("ghe.example.com:443",)


def test_a_home_that_cannot_be_expanded_is_an_error_and_creates_no_folder() -> None:
    with pytest.raises(ConfigurationError, match="GIBIL_DATA_DIR: cannot expand '~no-such-user/gibil'"):
        load_settings({"GIBIL_DATA_DIR": "~no-such-user/gibil"})


def test_an_unknown_setting_is_reported_with_the_nearest_name_and_ignored(tmp_path: Path) -> None:
    environment = {
        "GIBIL_DATA_DIR": str(tmp_path),
        "GIBIL_MAX_TLL": "5",
        "GIBIL_ZEBRA_COLOUR": "1",
        "GIBIL_ALLOWED_ACOUNTS": "acme",
        "GIBIL_SECRET_X": "a-value",
        "OTHER_MAX_TTL": "5",
    }
    notes = load_settings(environment).notes
    assert notes == (
        "GIBIL_ALLOWED_ACOUNTS: unknown setting; did you mean GIBIL_ALLOWED_ACCOUNTS?",
        "GIBIL_MAX_TLL: unknown setting; did you mean GIBIL_MAX_TTL?",
        "GIBIL_ZEBRA_COLOUR: unknown setting; it has no effect",
    )


def test_a_webhook_secret_with_a_comma_is_reported_and_not_shown(tmp_path: Path) -> None:
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_GITHUB_WEBHOOK_SECRET": "hidden,word"})
    (note,) = settings.notes
    assert "each of the 2 comma-separated secrets is accepted" in note
    assert "hidden" not in note


def test_the_keyring_is_a_file_anywhere(tmp_path: Path) -> None:
    assert load_settings({"GIBIL_DATA_DIR": str(tmp_path)}).keyring is None
    assert load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_KEYRING": " "}).keyring is None
    found = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_KEYRING": "~/a.key", "HOME": "/nowhere"}).keyring
    assert found is not None
    assert (found.is_absolute(), found.name) == (True, "a.key")
