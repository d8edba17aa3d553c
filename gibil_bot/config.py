"""Settings: read once from the environment, checked all together, every problem reported at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from gibil_bot.errors import ConfigurationError


class Secret:
    """A value that never shows itself: `repr` and `str` are masked, `reveal()` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the README's table."""

    name: str
    default: str
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting(name="GIBIL_DATA_DIR", default="~/.gibil", meaning="keys, local machines, the embedded database, logs"),
    Setting(name="GIBIL_DATABASE_URL", default="sqlite file in the data dir", meaning="`sqlite:///…`"),
    Setting(
        name="GIBIL_PROVIDER",
        default="hetzner if HCLOUD_TOKEN is set, else local",
        meaning="who forges machines: `local` (this box) or `hetzner` (Hetzner Cloud, billed by the started hour)",
    ),
    Setting(name="HCLOUD_TOKEN", default="–", meaning="Hetzner Cloud: an API token with Read & Write"),
    Setting(name="HCLOUD_ENDPOINT", default="https://api.hetzner.cloud/v1", meaning="Hetzner Cloud's API"),
    Setting(
        name="GIBIL_REUSE",
        default="–",
        meaning="`rebuild`: a burned Hetzner server serves the next run of the same repository and trust in its paid hour",
    ),
    Setting(name="GIBIL_GITHUB_URL", default="https://api.github.com", meaning="GitHub's API; GitHub Enterprise Server too"),
    Setting(name="GIBIL_GITHUB_APP_ID", default="–", meaning="the App's id"),
    Setting(name="GIBIL_GITHUB_PRIVATE_KEY", default="–", meaning="the App's private key: PEM text, or a path to it"),
    Setting(
        name="GIBIL_GITHUB_WEBHOOK_SECRET",
        default="–",
        meaning="the webhook's secret; several, comma-separated, while rotating",
    ),
    Setting(name="GIBIL_WORKFLOWS", default="the shipped `workflows/`", meaning="the operator's folder of workflows"),
    Setting(
        name="GIBIL_SECRET_<NAME>",
        default="–",
        meaning="the value of the secret NAME that a workflow may list; or a file `secrets.yml` (0600) in the data dir",
    ),
    Setting(name="GIBIL_ALLOWED_ACCOUNTS", default="all", meaning="users and organisations whose installations are served"),
    Setting(
        name="GIBIL_LOCAL_UNTRUSTED",
        default="approve",
        meaning="untrusted code on `local` machines, which share this kernel: `approve` runs a commit that a writer approved, "
        "`refuse` none, `allow` any",
    ),
    Setting(
        name="GIBIL_TRUSTED_APPS",
        default="–",
        meaning="Apps such as `dependabot[bot]` whose pushes to branches of the repository itself run without being asked for; "
        "never with secrets",
    ),
    Setting(
        name="GIBIL_EGRESS_ALLOW",
        default="–",
        meaning="hosts and networks that local machines may reach beyond public addresses, comma-separated",
    ),
    Setting(name="GIBIL_HOST", default="127.0.0.1", meaning="the address to listen on"),
    Setting(name="GIBIL_PORT", default="8080", meaning="the port to listen on"),
    Setting(name="GIBIL_PUBLIC_URL", default="–", meaning="where people reach the bot; details links"),
    Setting(
        name="GIBIL_MAX_MACHINES",
        default="10",
        meaning="runs at one time, and machines of this data directory for `create`, `try`, MCP and Python",
    ),
    Setting(name="GIBIL_MAX_TTL", default="24h", meaning="the longest life of a machine"),
)

_APP = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\[bot\]")
_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|w|mo|y)?", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "mo": 2592000, "y": 31536000}


def parse_duration(text: str) -> int:
    """Seconds of `90s 20m 2h 7d 1w 1mo 1y`; a bare number is minutes. Raises ValueError with a person's sentence."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not match:
        raise ValueError(f"{text!r} is not a duration: write 90s, 20m, 2h, 7d, 1w, 1mo or 1y (a bare number is minutes)")
    return int(match[1]) * _UNIT_S[match[2] or "m"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the environment says, checked."""

    data_dir: Path
    database_url: str
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
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    allowed_accounts: frozenset[str] | None = None
    """Lower case; None: all."""
    local_untrusted: str = "approve"
    """approve | refuse | allow"""
    trusted_apps: frozenset[str] = frozenset()
    """Logins in lower case, each ending in `[bot]`."""
    egress_allow: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8080
    public_url: str = ""
    max_machines: int = 10
    max_ttl_s: int = 86400

    @property
    def egress(self) -> tuple[str, ...]:
        """What local machines may reach beyond public addresses: the operator's list, and always the configured GitHub."""
        url = urlsplit(self.github_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        host = f"[{url.hostname}]" if ":" in (url.hostname or "") else url.hostname
        return (*self.egress_allow, f"{host}:{port}")


def _path(text: str) -> Path:
    """Unlike Path.expanduser it leaves a `~` that nobody knows as it is."""
    return Path(os.path.expanduser(text))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read everything. What is missing for `serve` is asked for by `require_github`. Raises ConfigurationError."""
    env = os.environ if environ is None else environ
    problems: list[str] = []

    def number(name: str, default: int, lowest: int, highest: int) -> int:
        text = env.get(name, "").strip()
        if not text:
            return default
        if not text.isascii() or not text.isdigit() or not lowest <= int(text) <= highest:
            problems.append(f"{name}: {text!r} is not a whole number from {lowest} to {highest}")
            return default
        return int(text)

    data_dir = _path(env.get("GIBIL_DATA_DIR") or "~/.gibil")
    if str(data_dir).startswith("~"):  # a user id without an entry in /etc/passwd, and without HOME
        raise ConfigurationError((f"GIBIL_DATA_DIR: nobody knows where {data_dir} is; set it to a folder that you may write",))
    data_dir = data_dir.absolute()
    env = {**_saved(data_dir, problems), **env}
    database_url = env.get("GIBIL_DATABASE_URL") or f"sqlite:///{data_dir / 'gibil.db'}"
    if database_url.startswith(("postgresql:", "postgres:")):
        problems.append(
            "GIBIL_DATABASE_URL: PostgreSQL is not supported yet; leave it unset for the embedded database, "
            "or name a file: sqlite:////var/lib/gibil/gibil.db"
        )
    elif not database_url.startswith("sqlite:///"):
        problems.append("GIBIL_DATABASE_URL: write sqlite:/// followed by a path")

    hcloud_token = env.get("HCLOUD_TOKEN", "").strip()
    provider = env.get("GIBIL_PROVIDER", "").strip() or ("hetzner" if hcloud_token else "local")
    if provider not in ("local", "hetzner"):
        problems.append(f"GIBIL_PROVIDER: there is no provider {provider!r} here; write local or hetzner")
    elif provider == "hetzner" and not hcloud_token:
        problems.append("HCLOUD_TOKEN is not set: make one in the Cloud Console (Security, API tokens, Read & Write)")
    hcloud_endpoint = (env.get("HCLOUD_ENDPOINT", "").strip() or "https://api.hetzner.cloud/v1").rstrip("/")
    if not hcloud_endpoint.startswith(("http://", "https://")) or not urlsplit(hcloud_endpoint).hostname:
        problems.append(f"HCLOUD_ENDPOINT: {hcloud_endpoint!r} is not an http(s) address, such as https://api.hetzner.cloud/v1")
    reuse = env.get("GIBIL_REUSE", "").strip()
    if reuse not in ("", "rebuild"):
        problems.append(f"GIBIL_REUSE: {reuse!r} is not rebuild; leave it unset to burn every server at once")

    github_url = (env.get("GIBIL_GITHUB_URL") or "https://api.github.com").rstrip("/")
    url = urlsplit(github_url)
    if url.scheme not in ("http", "https") or not url.hostname:
        problems.append(f"GIBIL_GITHUB_URL: {github_url!r} is not an http(s) address, such as https://ghe.example.com/api/v3")

    private_key = env.get("GIBIL_GITHUB_PRIVATE_KEY", "").strip()
    if private_key and "-----BEGIN" not in private_key:
        try:
            private_key = _path(private_key).read_text()
        except (OSError, ValueError) as error:
            problems.append(f"GIBIL_GITHUB_PRIVATE_KEY: neither PEM text nor a file that can be read: {_reason(error)}")
            private_key = ""
        else:
            if "-----BEGIN" not in private_key:
                problems.append("GIBIL_GITHUB_PRIVATE_KEY: that file holds no PEM key (no -----BEGIN line)")
    private_key = private_key.replace("\\n", "\n")

    workflows = _path(env["GIBIL_WORKFLOWS"]).absolute() if env.get("GIBIL_WORKFLOWS") else None
    if workflows is not None and not workflows.is_dir():
        problems.append(f"GIBIL_WORKFLOWS: {workflows} is not a folder")

    accounts = _words(env.get("GIBIL_ALLOWED_ACCOUNTS", ""))
    untrusted = env.get("GIBIL_LOCAL_UNTRUSTED", "").strip() or "approve"
    if untrusted not in ("approve", "refuse", "allow"):
        problems.append(f"GIBIL_LOCAL_UNTRUSTED: {untrusted!r} is not approve, refuse or allow")
    apps = _words(env.get("GIBIL_TRUSTED_APPS", ""))
    problems += [
        f"GIBIL_TRUSTED_APPS: {app!r} is not the login of an App; write it with [bot], such as dependabot[bot]"
        for app in apps
        if not _APP.fullmatch(app)
    ]

    max_ttl_s = 86400
    try:
        max_ttl_s = parse_duration(env.get("GIBIL_MAX_TTL") or "24h")
        if max_ttl_s < 60:
            problems.append("GIBIL_MAX_TTL: at least one minute")
    except ValueError as error:
        problems.append(f"GIBIL_MAX_TTL: {error}")

    settings = Settings(
        data_dir=data_dir,
        database_url=database_url,
        provider=provider,
        hcloud_token=Secret(hcloud_token),
        hcloud_endpoint=hcloud_endpoint,
        reuse=reuse == "rebuild",
        github_url=github_url,
        github_app_id=env.get("GIBIL_GITHUB_APP_ID", "").strip(),
        github_private_key=Secret(private_key),
        webhook_secrets=tuple(Secret(word) for word in _words(env.get("GIBIL_GITHUB_WEBHOOK_SECRET", ""))),
        workflows=workflows,
        secrets=_secrets(env, data_dir, problems),
        allowed_accounts=frozenset(word.lower() for word in accounts) if accounts else None,
        local_untrusted=untrusted,
        trusted_apps=frozenset(app.lower() for app in apps),
        egress_allow=_words(env.get("GIBIL_EGRESS_ALLOW", "")),
        host=env.get("GIBIL_HOST", "").strip() or "127.0.0.1",
        port=number("GIBIL_PORT", 8080, 0, 65535),
        public_url=env.get("GIBIL_PUBLIC_URL", "").strip().rstrip("/"),
        max_machines=number("GIBIL_MAX_MACHINES", 10, 1, 10000),
        max_ttl_s=max_ttl_s,
    )
    if problems:
        raise ConfigurationError(tuple(problems))
    return settings


def require_github(settings: Settings) -> None:
    """Everything that talking to GitHub needs is set. Raises ConfigurationError with all that is missing."""
    missing = []
    if not settings.github_app_id:
        missing.append("GIBIL_GITHUB_APP_ID is not set: the number on the App's settings page")
    if not settings.github_private_key:
        missing.append("GIBIL_GITHUB_PRIVATE_KEY is not set: the .pem file that the App's settings page generates, or its path")
    if not settings.webhook_secrets:
        missing.append("GIBIL_GITHUB_WEBHOOK_SECRET is not set: the secret that you gave the App's webhook")
    if missing:
        raise ConfigurationError(tuple(missing))


SAVED = "settings.json"
"""In the data dir: what `gibil init` saved, name → value. The environment beats it."""


def _saved(data_dir: Path, problems: list[str]) -> dict[str, str]:
    path = data_dir / SAVED
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: {_reason(error)}")
        return {}
    if mode & 0o077:
        problems.append(f"{path}: others can read it; run chmod 600 {path}")
    import json  # only where the file exists

    try:
        content = json.loads(text)
    except ValueError:
        content = None
    known = {setting.name for setting in SETTINGS} - {"GIBIL_DATA_DIR"}
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        problems.append(f"{path}: not a JSON object of texts; correct it, or remove it and run gibil init")
        return {}
    problems += [f"{path}: {name} is no setting" for name in content if name not in known]
    return {name: value for name, value in content.items() if name in known}


def _secrets(env: Mapping[str, str], data_dir: Path, problems: list[str]) -> dict[str, Secret]:
    """The file first, the environment over it."""
    found: dict[str, Secret] = {}
    path = data_dir / "secrets.yml"
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path}: {_reason(error)}")
    else:
        if mode & 0o077:
            problems.append(f"{path}: others can read it; run chmod 600 {path}")
        import yaml  # only where the file exists

        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError:
            problems.append(f"{path}: not valid YAML")
        else:
            if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
                problems.append(f"{path}: write one NAME: value a line; a number needs quotes")
            else:
                found |= {str(name): Secret(value) for name, value in content.items()}
    prefix = "GIBIL_SECRET_"
    found |= {name[len(prefix) :]: Secret(value) for name, value in env.items() if name.startswith(prefix) and value}
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
