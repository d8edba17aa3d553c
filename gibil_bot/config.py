"""Settings: read once from the environment, checked all together, every problem reported at once."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from gibil_bot.database_url import is_postgresql, problem_of
from gibil_bot.errors import ConfigurationError
from gibil_bot.limits import MOST_GLOB
from gibil_bot.model_settings import ModelSettings, read_model_settings
from gibil_bot.operator_secrets import ScopedSecrets, parse_secrets
from gibil_bot.operator_secrets import Secret as Secret
from gibil_bot.quantities import parse_duration as parse_duration
from gibil_bot.quantities import parse_size as parse_size

GIB = 1024**3
_UNREADABLE = "make it readable for the user who runs gibil, or delete it"
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the README's table."""

    name: str
    default: str
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting(name="GIBIL_DATA_DIR", default="~/.gibil", meaning="keys, local machines, the embedded database, logs"),
    Setting(
        name="GIBIL_DATABASE_URL",
        default="sqlite file in the data dir",
        meaning="`sqlite:///…`, or `postgresql://user@host/database` for several bots; `gibil db export` moves what is stored",
    ),
    Setting(
        name="GIBIL_KEYRING",
        default="keyring.key in the data dir",
        meaning="the file of the key from which those of machines are derived; created if missing; the same for all bots of a "
        "database",
    ),
    Setting(
        name="GIBIL_PROVIDER",
        default="hetzner if HCLOUD_TOKEN is set, else local",
        meaning="creates machines: `local` (this host) or `hetzner` (Hetzner Cloud, billed by the started hour)",
    ),
    Setting(name="HCLOUD_TOKEN", default="–", meaning="Hetzner Cloud: an API token with Read & Write"),
    Setting(name="HCLOUD_ENDPOINT", default="https://api.hetzner.cloud/v1", meaning="Hetzner Cloud's API"),
    Setting(
        name="GIBIL_REUSE",
        default="–",
        meaning="`rebuild`: the next run of the same repository and trust reuses a destroyed machine's server in its paid hour",
    ),
    Setting(name="GIBIL_GITHUB_URL", default="https://api.github.com", meaning="GitHub's API; GitHub Enterprise Server too"),
    Setting(name="GIBIL_GITHUB_APP_ID", default="–", meaning="the App's id"),
    Setting(name="GIBIL_GITHUB_PRIVATE_KEY", default="–", meaning="the App's private key: PEM text, or a path to it"),
    Setting(
        name="GIBIL_GITHUB_WEBHOOK_SECRET",
        default="–",
        meaning="the webhook's secret, without a comma; several, comma-separated, while rotating",
    ),
    Setting(name="GIBIL_WORKFLOWS", default="the shipped `workflows/`", meaning="the operator's folder of workflows"),
    Setting(
        name="GIBIL_SECRET_<NAME>",
        default="–",
        meaning="the secret NAME, which the workflows of every repository may list; for some repositories only: `secrets.yml`",
    ),
    Setting(name="GIBIL_ALLOWED_ACCOUNTS", default="all", meaning="users and organisations whose installations are served"),
    Setting(
        name="GIBIL_COMMANDS_PER_HOUR", default="60", meaning="commands and re-runs per hour of one user in one repository"
    ),
    Setting(
        name="GIBIL_LOCAL_UNTRUSTED",
        default="approve",
        meaning="untrusted code on `local` machines, which share this kernel: `approve` runs commits that a writer approved, "
        "`refuse` none, `allow` all",
    ),
    Setting(
        name="GIBIL_TRUSTED_APPS",
        default="–",
        meaning="Apps such as `dependabot[bot]` whose pushes to branches of the repository itself run without a command; "
        "never with secrets",
    ),
    Setting(name="GIBIL_COMMIT_FILES", default="100", meaning="how many files the commits of one run may change"),
    Setting(
        name="GIBIL_COMMIT_SIZE",
        default="4m",
        meaning="how large the new content of one run's commits may be; at most 32m, the largest file that GitHub's API takes",
    ),
    Setting(
        name="GIBIL_PROTECTED_PATHS",
        default="–",
        meaning="further globs of files that commits from a machine can't change, as in `docker/**`",
    ),
    Setting(
        name="GIBIL_EGRESS_ALLOW",
        default="–",
        meaning="hosts and networks that local machines may reach beyond public addresses, comma-separated; "
        "agents reach them, too",
    ),
    Setting(
        name="GIBIL_CA_BUNDLE",
        default="–",
        meaning="a PEM file of certificates that every tool on machines trusts in addition to the system's",
    ),
    Setting(
        name="GIBIL_MIRRORS",
        default="–",
        meaning="package mirrors that the tools on machines use, comma-separated: `pypi=https://mirror.example/simple,npm=https://…`"
        "; also go, crates, maven, rubygems, packagist, debian (cloud machines), nodejs, golang, python, rustup, adoptium",
    ),
    Setting(
        name="GIBIL_RUNTIMES",
        default="–",
        meaning="runtimes that every local machine has from the beginning, comma-separated: `uv,node@22,pnpm@10`; "
        "`gibil serve` and `doctor` store them; what a run had to install is stored after it",
    ),
    Setting(name="GIBIL_HOST", default="127.0.0.1", meaning="the address to listen on"),
    Setting(name="GIBIL_PORT", default="8080", meaning="the port to listen on"),
    Setting(
        name="GIBIL_PUBLIC_URL",
        default="–",
        meaning="the bot's address for people; used in details links, and the Host that requests to `/mcp` name",
    ),
    Setting(
        name="GIBIL_BOT_URL",
        default="–",
        meaning="where the bots of other hosts that share the database reach this one, to read the output of its runs",
    ),
    Setting(
        name="GIBIL_HOST_AWAY",
        default="10m",
        meaning="how long a host stays away before the runs on its local machines start again on another host; at least 1m",
    ),
    Setting(
        name="GIBIL_MAX_MACHINES",
        default="10",
        meaning="concurrent runs of all bots with the copies for attempts of agents, and machines of this data directory for "
        "`create`, `try`, MCP and Python",
    ),
    Setting(name="GIBIL_MAX_TTL", default="24h", meaning="the longest time to live of a machine"),
    Setting(
        name="GIBIL_CONNECTION_IDLE",
        default="10m",
        meaning="how long a connection stays open after `gibil run`, for the next one; `0`: it is closed at once",
    ),
    Setting(name="GIBIL_MAX_LOGS", default="10", meaning="GiB of stored task output; the oldest runs' output is deleted first"),
    Setting(name="GIBIL_MAX_RUN_LOGS", default="1", meaning="GiB of stored task output per run"),
    Setting(
        name="GIBIL_MAX_MEMORY",
        default="half the host's memory for `local`",
        meaning="the most memory of a machine: 512m, 8g; no repository can raise it",
    ),
    Setting(
        name="GIBIL_MAX_DISK",
        default="half the disk of GIBIL_DATA_DIR for `local`",
        meaning="the largest disk of a machine: 20g; no repository can raise it",
    ),
    Setting(name="GIBIL_MAX_PIDS", default="4096", meaning="the most processes of a machine; no repository can raise it"),
    Setting(
        name="GIBIL_SERVER_TYPES",
        default="those that cost no more than the sizes",
        meaning="Hetzner's server types that may be used, comma-separated",
    ),
    Setting(
        name="GIBIL_MODEL_KEY_ANTHROPIC",
        default="–",
        meaning="the key that pays for agents' calls of Anthropic's models; it stays in the bot. Without a key, agents are off",
    ),
    Setting(name="GIBIL_MODEL_KEY_OPENAI", default="–", meaning="the same for OpenAI's models"),
    Setting(name="GIBIL_MODEL_KEY_GEMINI", default="–", meaning="the same for Google's Gemini models"),
    Setting(
        name="GIBIL_MODEL_URL_ANTHROPIC",
        default="https://api.anthropic.com",
        meaning="the API, without `/v1`; or a gateway with the same API",
    ),
    Setting(name="GIBIL_MODEL_URL_OPENAI", default="https://api.openai.com", meaning="the same for OpenAI's API"),
    Setting(
        name="GIBIL_MODEL_URL_GEMINI",
        default="https://generativelanguage.googleapis.com",
        meaning="the same for Google's API, without `/v1beta`",
    ),
    Setting(
        name="GIBIL_MODEL_PRICES",
        default="those of genai-prices",
        meaning="a YAML file of other prices: models or patterns such as `qwen3-*`, each with USD per million tokens "
        "as `input`, `output`, `cache_read`, `cache_write_5m`, `cache_write_1h`, and `above: {tokens: 200000, …}`",
    ),
    Setting(
        name="GIBIL_BUDGET_TASK",
        default="2",
        meaning="USD that one agent task may spend; a workflow's `budget:` can only be smaller. `none`: no limit, also below",
    ),
    Setting(name="GIBIL_BUDGET_RUN", default="5", meaning="USD that the agents of one run may spend"),
    Setting(name="GIBIL_BUDGET_PERSON", default="20", meaning="USD that one person's commands may spend per day (UTC)"),
    Setting(name="GIBIL_BUDGET_DAY", default="50", meaning="USD that agents may spend in one repository per day (UTC)"),
    Setting(
        name="GIBIL_BUDGET_TOKENS", default="20m", meaning="tokens that the agents of one run may use, cached ones included"
    ),
    Setting(name="GIBIL_BUDGET_TIME", default="8h", meaning="machine time of agents in one repository per day (UTC)"),
    Setting(name="GIBIL_ENGINES", default="the shipped ones", meaning="the operator's folder of further engines for agents"),
    Setting(name="GIBIL_ENGINE", default="the first whose key is set", meaning="the engine of agent tasks that name none"),
)

MIRRORS = (
    "pypi",
    "npm",
    "go",
    "crates",
    "maven",
    "rubygems",
    "packagist",
    "debian",
    "nodejs",
    "golang",
    "python",
    "rustup",
    "adoptium",
)
"""What GIBIL_MIRRORS can replace: package registries, and from `nodejs` on the publishers of languages."""

# fmt: off
STORED_RUNTIMES = (
    "python", "node", "npm", "pnpm", "yarn", "bun", "deno", "bats", "go", "rust", "java", "maven", "gradle", "composer", "uv",
)
# fmt: on
"""What GIBIL_RUNTIMES can list: each is one tree. The others belong to the distribution or to a Python of the host."""

_RUNTIME_VERSION = re.compile(r"[0-9][0-9A-Za-z.-]{0,39}", re.ASCII)
_CA_BUNDLE_BYTES = 256 * 1024
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+?-----END CERTIFICATE-----")
_URL = re.compile(r"[A-Za-z0-9+.-]+://[A-Za-z0-9\[\]._~:/?#@!$&()*+;=%-]+")
_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\[bot\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The checked settings."""

    data_dir: Path
    database_url: str = field(repr=False)
    """It may contain a password: `database_url.shown_url` is for messages."""
    keyring: Path | None = None
    """None: `keyring.key` in the data directory."""
    provider: str = "local"
    hcloud_token: Secret = field(default=Secret(""))
    hcloud_endpoint: str = "https://api.hetzner.cloud/v1"
    reuse: bool = False
    github_url: str = "https://api.github.com"
    github_app_id: str = ""
    github_private_key: Secret = field(default=Secret(""))
    webhook_secrets: tuple[Secret, ...] = ()
    workflows: Path | None = None
    """None: the shipped ones."""
    secrets: ScopedSecrets = field(default_factory=ScopedSecrets)
    allowed_accounts: frozenset[str] | None = None
    """Lower case; None: all."""
    commands_per_hour: int = 60
    """Per user and repository."""
    local_untrusted: str = "approve"
    """approve | refuse | allow"""
    commit_files: int = 100
    commit_bytes: int = 4 * 1024**2
    protected_paths: tuple[str, ...] = ()
    """Globs, in addition to the built-in ones."""
    trusted_apps: frozenset[str] = frozenset()
    """Logins in lower case, each ending in `[bot]`."""
    egress_allow: tuple[str, ...] = ()
    ca_bundle: str = ""
    """Certificates in PEM, without comments."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """A key of MIRRORS → URL without a slash at its end."""
    runtimes: tuple[tuple[str, str], ...] = ()
    """Names of STORED_RUNTIMES with a version, which may be empty."""
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""
    bot_url: str = ""
    """Without a slash at its end; empty: other hosts' bots can't reach this one."""
    host_away_s: int = 600
    max_machines: int = 10
    max_ttl_s: int = 86400
    connection_idle_s: int = 600
    notes: tuple[str, ...] = ()
    """Warnings about settings that are probably mistakes: `NAME: what, and what to do`."""
    max_logs_bytes: int = 10 * GIB
    max_run_logs_bytes: int = GIB
    max_memory_mb: int | None = None
    max_disk_mb: int | None = None
    """None: the provider's default."""
    max_pids: int = 4096
    server_types: tuple[str, ...] | None = None
    models: ModelSettings = field(default_factory=ModelSettings)

    @property
    def egress(self) -> tuple[str, ...]:
        """Return what local machines may reach beyond public addresses: the operator's list and the configured GitHub."""
        url = urlsplit(self.github_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return (*self.egress_allow, f"{host}:{port}")


def _path(text: str) -> Path:
    """Expand `~`. Unlike Path.expanduser, this leaves a `~` unchanged that can't be expanded."""
    return Path(os.path.expanduser(text))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read all settings. Raises ConfigurationError with all problems; `require_github` checks what only `serve` needs."""
    env = os.environ if environ is None else environ
    problems: list[str] = []
    notes = _unknown(env)

    def number(name: str, default: int, lowest: int, highest: int) -> int:
        text = env.get(name, "").strip()
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            problems.append(f"{name} must be a whole number between {lowest} and {highest}, got {text!r}")
            return default
        return int(text)

    data_dir = _path(env.get("GIBIL_DATA_DIR") or "~/.gibil")
    if str(data_dir).startswith("~"):  # a user id without an entry in /etc/passwd, and without HOME
        raise ConfigurationError((f"GIBIL_DATA_DIR: cannot expand '{data_dir}'; set it to a writable directory",))
    data_dir = data_dir.absolute()
    existing = next((each for each in (data_dir, *data_dir.parents) if os.path.exists(each)), data_dir)
    if os.path.isfile(existing):
        raise ConfigurationError((f"GIBIL_DATA_DIR: '{existing}' is a file; set it to a writable directory",))
    env = {**_saved(data_dir, problems), **env}
    database_url = env.get("GIBIL_DATABASE_URL") or f"sqlite:///{data_dir / 'gibil.db'}"
    if (problem := problem_of(database_url)) is not None:
        problems.append(f"GIBIL_DATABASE_URL: {problem}")
    keyring = env.get("GIBIL_KEYRING", "").strip()

    hcloud_token = env.get("HCLOUD_TOKEN", "").strip()
    provider = env.get("GIBIL_PROVIDER", "").strip() or ("hetzner" if hcloud_token else "local")
    if provider not in ("local", "hetzner"):
        problems.append(f"GIBIL_PROVIDER must be local or hetzner, got {provider!r}")
    elif provider == "hetzner" and not hcloud_token:
        problems.append("HCLOUD_TOKEN is not set: create a token in the Cloud Console (Security, API tokens, Read & Write)")
    hcloud_endpoint = (env.get("HCLOUD_ENDPOINT", "").strip() or "https://api.hetzner.cloud/v1").rstrip("/")
    if not hcloud_endpoint.startswith(("http://", "https://")) or not urlsplit(hcloud_endpoint).hostname:
        problems.append(f"HCLOUD_ENDPOINT must be an http(s) URL such as https://api.hetzner.cloud/v1, got {hcloud_endpoint!r}")
    reuse = env.get("GIBIL_REUSE", "").strip()
    if reuse not in ("", "rebuild"):
        problems.append(f"GIBIL_REUSE must be rebuild, got {reuse!r}; leave it unset to delete servers at once")

    github_url = (env.get("GIBIL_GITHUB_URL") or "https://api.github.com").rstrip("/")
    url = urlsplit(github_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        problems.append(f"GIBIL_GITHUB_URL must be an http(s) URL such as https://ghe.example.com/api/v3, got {github_url!r}")

    private_key = env.get("GIBIL_GITHUB_PRIVATE_KEY", "").strip()
    if private_key and "-----BEGIN" not in private_key:
        try:
            private_key = _path(private_key).read_text()
        except (OSError, ValueError) as error:
            problems.append(f"GIBIL_GITHUB_PRIVATE_KEY must be PEM text or the path of a readable file: {_reason(error)}")
            private_key = ""
        else:
            if "-----BEGIN" not in private_key:
                problems.append("GIBIL_GITHUB_PRIVATE_KEY: the file has no PEM key (no -----BEGIN line)")
    private_key = private_key.replace("\\n", "\n")

    workflows = _path(env["GIBIL_WORKFLOWS"]).absolute() if env.get("GIBIL_WORKFLOWS") else None
    if workflows is not None and not workflows.is_dir():
        problems.append(f"GIBIL_WORKFLOWS must be a directory, got {str(workflows)!r}")

    accounts = _words(env.get("GIBIL_ALLOWED_ACCOUNTS", ""))
    untrusted = env.get("GIBIL_LOCAL_UNTRUSTED", "").strip() or "approve"
    if untrusted not in ("approve", "refuse", "allow"):
        problems.append(f"GIBIL_LOCAL_UNTRUSTED must be approve, refuse or allow, got {untrusted!r}")
    apps = _words(env.get("GIBIL_TRUSTED_APPS", ""))
    problems += [
        f"GIBIL_TRUSTED_APPS: {app!r} is not the login of an App; add [bot], as in dependabot[bot]"
        for app in apps
        if not _APP.fullmatch(app)
    ]

    def duration(name: str, default: str, *, least_a_minute: bool) -> int:
        text = env.get(name) or default
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            return parse_duration(default)
        if least_a_minute and seconds < 60:
            problems.append(f"{name} must be at least one minute, got {text!r}")
        return seconds

    max_ttl_s = duration("GIBIL_MAX_TTL", "24h", least_a_minute=True)
    connection_idle_s = duration("GIBIL_CONNECTION_IDLE", "10m", least_a_minute=False)
    host_away_s = duration("GIBIL_HOST_AWAY", "10m", least_a_minute=True)
    bot_url = _bot_url(env, database_url, problems, notes)

    def size(name: str, lowest: int, highest: int | None = None) -> int | None:
        text = env.get(name, "").strip()
        if not text:
            return None
        try:
            size_mb = parse_size(text)
        except ValueError as error:
            problems.append(f"{name}: {error}")
            return None
        if size_mb < lowest:
            problems.append(f"{name} must be at least {lowest}m, got {text!r}")
        if highest is not None and size_mb > highest:
            problems.append(f"{name} must be at most {highest}m, got {text!r}")
        return size_mb

    settings = Settings(
        data_dir=data_dir,
        database_url=database_url,
        keyring=_path(keyring).absolute() if keyring else None,
        provider=provider,
        hcloud_token=Secret(hcloud_token),
        hcloud_endpoint=hcloud_endpoint,
        reuse=reuse == "rebuild",
        github_url=github_url,
        github_app_id=env.get("GIBIL_GITHUB_APP_ID", "").strip(),
        github_private_key=Secret(private_key),
        webhook_secrets=tuple(Secret(word) for word in _words(env.get("GIBIL_GITHUB_WEBHOOK_SECRET", ""))),
        workflows=workflows,
        secrets=_secrets(env, data_dir, problems, notes),
        allowed_accounts=frozenset(word.lower() for word in accounts) if accounts else None,
        commands_per_hour=number("GIBIL_COMMANDS_PER_HOUR", 60, 1, 100_000),
        local_untrusted=untrusted,
        trusted_apps=frozenset(app.lower() for app in apps),
        commit_files=number("GIBIL_COMMIT_FILES", 100, 1, 20_000),
        commit_bytes=(size("GIBIL_COMMIT_SIZE", 1, 32) or 4) * 1024**2,
        protected_paths=_protected_paths(env, problems),
        egress_allow=_words(env.get("GIBIL_EGRESS_ALLOW", "")),
        ca_bundle=_ca_bundle(env, problems),
        mirrors=_mirrors(env, problems),
        runtimes=_runtimes(env, problems),
        host=env.get("GIBIL_HOST", "").strip() or "127.0.0.1",
        port=number("GIBIL_PORT", 8080, 0, 65535),
        public_url=env.get("GIBIL_PUBLIC_URL", "").strip().rstrip("/"),
        bot_url=bot_url,
        host_away_s=host_away_s,
        max_machines=number("GIBIL_MAX_MACHINES", 10, 1, 10000),
        max_ttl_s=max_ttl_s,
        connection_idle_s=connection_idle_s,
        max_logs_bytes=number("GIBIL_MAX_LOGS", 10, 1, 1_000_000) * GIB,
        max_run_logs_bytes=number("GIBIL_MAX_RUN_LOGS", 1, 1, 1_000_000) * GIB,
        max_memory_mb=size("GIBIL_MAX_MEMORY", 64),
        max_disk_mb=size("GIBIL_MAX_DISK", 64),
        max_pids=number("GIBIL_MAX_PIDS", 4096, 16, 4194304),
        server_types=_words(env.get("GIBIL_SERVER_TYPES", "")) or None,
        models=read_model_settings(env, problems, notes),
    )
    if problems:
        raise ConfigurationError(tuple(problems))
    if len(settings.webhook_secrets) > 1:
        notes.append(
            f"GIBIL_GITHUB_WEBHOOK_SECRET: each of the {len(settings.webhook_secrets)} comma-separated secrets is accepted; "
            "if it is one secret that contains a comma, choose one without"
        )
    return replace(settings, notes=tuple(notes))


def require_github(settings: Settings) -> None:
    """Check that everything is set that GitHub needs. Raises ConfigurationError with all missing settings."""
    missing = []
    if not settings.github_app_id:
        missing.append("GIBIL_GITHUB_APP_ID is not set: the number on the App's settings page")
    if not settings.github_private_key:
        missing.append("GIBIL_GITHUB_PRIVATE_KEY is not set: the .pem file that the App's settings page generates, or its path")
    if not settings.webhook_secrets:
        missing.append("GIBIL_GITHUB_WEBHOOK_SECRET is not set: the secret of the App's webhook")
    if missing:
        raise ConfigurationError(tuple(missing))


SAVED = "settings.json"
"""File in the data directory with settings that `gibil init` saved, name → value. The environment has priority."""


def _saved(data_dir: Path, problems: list[str]) -> dict[str, str]:
    path = data_dir / SAVED
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: {_reason(error)}; {_UNREADABLE}")
        return {}
    if mode & 0o077:
        problems.append(f"{path}: other users can read it; run chmod 600 {path}")
    import json  # only where the file exists

    try:
        content = json.loads(text)
    except ValueError:
        content = None
    known = {setting.name for setting in SETTINGS} - {"GIBIL_DATA_DIR"}
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        problems.append(f"{path} must be a JSON object of strings; correct it, or delete it and run gibil init")
        return {}
    problems += [f"{path}: unknown setting {name!r}" for name in content if name not in known]
    return {name: value for name, value in content.items() if name in known}


def _secrets(env: Mapping[str, str], data_dir: Path, problems: list[str], notes: list[str]) -> ScopedSecrets:
    """Return the secrets of the file; those of the environment replace its `global` ones."""
    path = data_dir / "secrets.yml"
    content: object = None
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: {_reason(error)}; {_UNREADABLE}")
    else:
        if mode & 0o077:
            problems.append(f"{path}: other users can read it; run chmod 600 {path}")
        import yaml  # only where the file exists

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"{path}: not valid YAML")
    found, wrong, is_flat = parse_secrets(content)
    problems += [f"{path}: {problem}" for problem in wrong]
    if is_flat:
        notes.append(f"{path}: every repository may use all these secrets; put them under `global`, `owners` or `repositories`")
    prefix = "GIBIL_SECRET_"
    given = {name[len(prefix) :]: Secret(value) for name, value in env.items() if name.startswith(prefix) and value}
    return replace(found, everywhere={**found.everywhere, **given})


def _unknown(env: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that looks like a setting and isn't one, with the setting that may be meant."""
    known = [setting.name for setting in SETTINGS if "<" not in setting.name]
    families = tuple(setting.name.partition("<")[0] for setting in SETTINGS if "<" in setting.name)
    notes = []
    for name in sorted(env):
        if name.startswith("GIBIL_") and name not in known and not name.startswith(families):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            notes.append(f"{name}: unknown setting; " + (f"did you mean {near[0]}?" if near else "it has no effect"))
    return notes


def loose_mode(path: Path) -> int | None:
    """Return the permission bits of a folder that other users may enter or read; None if only its owner may."""
    mode = path.stat().st_mode & 0o7777
    return mode if mode & 0o077 else None


def _ca_bundle(env: Mapping[str, str], problems: list[str]) -> str:
    """Return the certificates of the file, without its other text: people put private keys into such files."""
    text = env.get("GIBIL_CA_BUNDLE", "").strip()
    if not text:
        return ""
    try:
        path = _path(text)
        content = path.read_text("ascii", errors="replace") if path.stat().st_size <= _CA_BUNDLE_BYTES else None
    except (OSError, ValueError) as error:
        problems.append(f"GIBIL_CA_BUNDLE must be the path of a readable PEM file, got {text!r}: {_reason(error)}")
        return ""
    if content is None:
        problems.append(f"GIBIL_CA_BUNDLE: {text} is larger than {_CA_BUNDLE_BYTES // 1024} KiB; list your own certificates")
        return ""
    found = _CERTIFICATE.findall(content)
    if not found:
        problems.append(f"GIBIL_CA_BUNDLE: {text} has no certificate (no -----BEGIN CERTIFICATE----- line)")
    return "".join(f"{certificate}\n" for certificate in found)


def _mirrors(env: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    mirrors: dict[str, str] = {}
    for word in _words(env.get("GIBIL_MIRRORS", "")):
        name, _, url = word.partition("=")
        name, url = name.strip(), url.strip().rstrip("/")
        parts = urlsplit(url.removeprefix("sparse+"))
        if name not in MIRRORS:
            near = difflib.get_close_matches(name, MIRRORS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(MIRRORS)}"
            problems.append(f"GIBIL_MIRRORS: unknown mirror {name!r}; {hint}")
        elif parts.scheme not in ("http", "https") or not parts.hostname or not _URL.fullmatch(url):
            problems.append(f"GIBIL_MIRRORS: {name} must be an http(s) URL such as https://mirror.example/{name}, got {url!r}")
        elif parts.username or parts.password:
            problems.append(f"GIBIL_MIRRORS: {name} must not contain a user name or password, because every task could read it")
        else:
            mirrors[name] = url
    return mirrors


def _runtimes(env: Mapping[str, str], problems: list[str]) -> tuple[tuple[str, str], ...]:
    runtimes = []
    for word in _words(env.get("GIBIL_RUNTIMES", "")):
        name, at, version = word.partition("@")
        if name not in STORED_RUNTIMES:
            problems.append(f"GIBIL_RUNTIMES: {name!r} can't be stored; known are {', '.join(STORED_RUNTIMES)}")
        elif at and not _RUNTIME_VERSION.fullmatch(version):
            problems.append(f"GIBIL_RUNTIMES: {version!r} is not a version; write {name}@22 or {name}@22.1.0")
        else:
            runtimes.append((name, version))
    return tuple(runtimes)


def _protected_paths(env: Mapping[str, str], problems: list[str]) -> tuple[str, ...]:
    globs = _words(env.get("GIBIL_PROTECTED_PATHS", ""))
    for glob in globs:
        if len(glob) > MOST_GLOB:
            problems.append(f"GIBIL_PROTECTED_PATHS: {glob[:40]!r}… is longer than {MOST_GLOB} characters")
        elif glob.startswith("!"):
            problems.append(f"GIBIL_PROTECTED_PATHS: {glob!r}: a glob can't be negated; list what is protected")
    return globs


def _bot_url(env: Mapping[str, str], database_url: str, problems: list[str], notes: list[str]) -> str:
    """Return GIBIL_BOT_URL without a slash at its end.

    An address that leads other hosts to themselves is only noted: several bots on one computer work with it, and one bot alone
    doesn't need any.
    """
    url = env.get("GIBIL_BOT_URL", "").strip().rstrip("/")
    if not url:
        return ""
    if not _is_base_url(url):
        shown = "one with a password" if "@" in url else repr(url)
        problems.append(f"GIBIL_BOT_URL must be an http(s) URL such as http://10.0.0.5:8080, got {shown}")
    elif is_postgresql(database_url):
        reach = _reach(urlsplit(url).hostname or "")
        if reach == "nothing":
            problems.append(
                "GIBIL_BOT_URL must have an address at which other hosts reach this one, such as http://10.0.0.5:8080, "
                f"got {url!r}"
            )
        elif reach == "itself":
            notes.append(
                f"GIBIL_BOT_URL: at {url} a bot on another host reaches only itself, not this one; set it to this host's "
                "address in their network, or leave it unset if there is no other host"
            )
    return url


def _reach(host: str) -> Literal["anything", "itself", "nothing"]:
    """Return what another computer may reach at the host of a URL. Names aren't resolved: other hosts may do it otherwise."""
    import ipaddress
    import socket

    name = host.lower().rstrip(".")
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return "itself"
    try:
        if ":" in name:
            six = ipaddress.IPv6Address(name.partition("%")[0])
            address: ipaddress.IPv4Address | ipaddress.IPv6Address = six.ipv4_mapped or six
        else:
            address = ipaddress.IPv4Address(socket.inet_aton(name))  # it also reads 127.1, as connecting does
    except (OSError, ValueError):
        return "anything"
    if address.is_loopback:
        return "itself"
    broadcast = address == ipaddress.IPv4Address("255.255.255.255")
    return "nothing" if address.is_unspecified or address.is_multicast or broadcast else "anything"


def _is_base_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        is_plain = url.port != 0 and not (url.username or url.query or url.fragment)
        return url.scheme in ("http", "https") and bool(url.hostname) and is_plain
    except ValueError:
        return False


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
