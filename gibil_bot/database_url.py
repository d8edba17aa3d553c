"""The address of the bot's database, and the form of it that people may see: without a password."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

POSTGRESQL = ("postgresql://", "postgres://")
SQLITE = "sqlite:///"
_HIDDEN = "postgresql://…"
_HOSTS = re.compile(r"(?:(?:\[[0-9A-Fa-f:.%]+\]|[\w.%-]+)(?::\d+)?(?:,(?=[\w\[])|$))*", re.ASCII)
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SHOWN_OPTIONS = ("host", "port", "user", "dbname", "database", "sslmode")


def is_postgresql(url: str) -> bool:
    return url.startswith(POSTGRESQL)


def shown_url(url: str) -> str:
    """Return the URL without a password, for messages. What can't be parsed may contain one anywhere, and is left out."""
    if not is_postgresql(url):
        if url.startswith(SQLITE):
            return url
        scheme, separator, rest = url.partition("://")
        return f"{scheme}{separator}…" if separator else url if "@" not in rest + scheme else "…"
    try:
        parts = urlsplit(url)
    except ValueError:
        return _HIDDEN
    login, at, hosts = parts.netloc.rpartition("@")
    if not _HOSTS.fullmatch(hosts) or "@" in parts.path + parts.query + parts.fragment or parts.fragment:
        return _HIDDEN  # a password with an unescaped character
    options = [(name, value) for name, value in parse_qsl(parts.query) if name in _SHOWN_OPTIONS]
    query = f"?{urlencode(options, safe='/:,')}" if options else ""
    return f"postgresql://{login.partition(':')[0]}{at}{hosts}{parts.path}{query}"


def problem_of(url: str) -> str | None:
    """Return why the URL can't be used, without its password; None if it can."""
    if is_postgresql(url):
        if shown_url(url) == _HIDDEN:
            return (
                "the PostgreSQL URL can't be parsed; write postgresql://user@host:5432/database, with every special character "
                "of a password percent-encoded (@ as %40, / as %2F), or leave the password to PGPASSWORD or ~/.pgpass"
            )
        parts = urlsplit(url)
        ports = [host.rpartition("]")[2].rpartition(":")[2] for host in parts.netloc.rpartition("@")[2].split(",")]
        if wrong := next((port for port in ports if port.isdigit() and not 0 < int(port) < 65536), None):
            return f"the port {wrong} of {shown_url(url)} must be a number between 1 and 65535"
        modes = [value for name, value in parse_qsl(parts.query) if name == "sslmode" and value not in _SSL_MODES]
        if modes:
            return f"the sslmode of {shown_url(url)} must be one of {', '.join(_SSL_MODES)}"
        return None
    if url.startswith(SQLITE):
        return None
    return (
        f"{shown_url(url)!r} is not supported; write sqlite:/// followed by the path of a file, "
        "or postgresql://user@host/database"
    )
