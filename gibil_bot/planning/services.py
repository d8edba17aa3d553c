"""Services of a `.gibil.yml`: which can be had where, and the script of the task "services" that starts them. Pure.

On a machine with a container engine a service is its image. A local machine has none, so there a few well-known images mean
the distribution's packages: the same environment, the same port on 127.0.0.1, data that is gone with the machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.planning.workflow import RepositoryFile, Service
from gibil_bot.scripts.templates import text


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCapabilities:
    """What the machines that are forged here can do for services."""

    containers: bool
    """They can run containers; else services are the distribution's packages."""
    many_users: bool = True
    """More than one uid exists on them: PostgreSQL refuses to run as root."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """image → the version that the distribution has, where that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """An image that the distribution's packages can stand in for. `env`: the names that the image knows and we obey."""

    port: int
    env: tuple[str, ...]
    passwords: tuple[str, ...] = ()
    """One of these has to be set, as the image itself asks for."""


# The names are those of https://hub.docker.com/_/postgres, …/redis, …/mariadb and …/mysql.
KNOWN = {
    "postgres": Known(
        port=5432,
        env=("POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_HOST_AUTH_METHOD"),
        passwords=("POSTGRES_PASSWORD", "POSTGRES_HOST_AUTH_METHOD"),
    ),
    "redis": Known(port=6379, env=()),
    **{
        image: Known(
            port=3306,
            env=tuple(f"{prefix}_{name}" for prefix in prefixes for name in names),
            passwords=tuple(f"{prefix}_{name}" for prefix in prefixes for name in names[:2]),
        )
        for image, prefixes in {"mariadb": ("MARIADB", "MYSQL"), "mysql": ("MYSQL",)}.items()
        for names in [("ROOT_PASSWORD", "ALLOW_EMPTY_ROOT_PASSWORD", "ALLOW_EMPTY_PASSWORD", "DATABASE", "USER", "PASSWORD")]
    },
}
PACKAGED = "postgres, redis, mariadb and mysql"

# What `apt-get install` gives there: packages.debian.org, packages.ubuntu.com.
_DISTRIBUTIONS = {
    ("debian", "11"): {"postgres": "13", "redis": "6.0", "mariadb": "10.5"},
    ("debian", "12"): {"postgres": "15", "redis": "7.0", "mariadb": "10.11"},
    ("debian", "13"): {"postgres": "17", "redis": "8.0", "mariadb": "11.8"},
    ("ubuntu", "22.04"): {"postgres": "14", "redis": "6.0", "mariadb": "10.6", "mysql": "8.0"},
    ("ubuntu", "24.04"): {"postgres": "16", "redis": "7.0", "mariadb": "10.11", "mysql": "8.0"},
}


def distribution_versions(os_release: str, sources: str) -> dict[str, str]:
    """image → version, from /etc/os-release and the texts of apt's sources; nothing where that cannot be known."""
    said = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    versions = dict(_DISTRIBUTIONS.get((said.get("ID", ""), said.get("VERSION_ID", "")), {}))
    for vendor, image in (
        ("postgresql.org", "postgres"),
        ("redis.io", "redis"),
        ("mariadb", "mariadb"),
        ("mysql.com", "mysql"),
    ):
        if vendor in sources:
            versions.pop(image, None)
    return versions


def image_kind(image: str) -> str | None:
    """The official image that is meant, if we know it."""
    name = image.partition("@")[0].removeprefix("docker.io/").removeprefix("library/").partition(":")[0]
    return name if name in KNOWN else None


def image_version(image: str) -> str:
    """`16` of `postgres:16-alpine`; empty for `latest` and for none."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", image.partition("@")[0].rpartition("/")[2].partition(":")[2])
    return match[0] if match else ""


def full_name(image: str) -> str:
    """With the registry that docker means when none is said: podman has no default, and refuses a short name that it does not
    know (https://github.com/distribution/reference)."""
    first, slash, _rest = image.partition("/")
    if not slash:
        return f"docker.io/library/{image}"
    return image if "." in first or ":" in first or first == "localhost" else f"docker.io/{image}"


def host_port(service: Service) -> tuple[int, int]:
    """(port on 127.0.0.1 of the machine, port of the service), the first that is said."""
    if service.ports:
        return service.ports[0]
    kind = image_kind(service.image)
    port = KNOWN[kind].port if kind else 0
    return port, port


def check_services(file: RepositoryFile, grounds: ServiceCapabilities) -> None:
    """Raises InvalidWorkflow, at the service's line, for one that these machines cannot have."""
    for service in file.services:
        problem = None if grounds.containers else _why_not_packaged(service, grounds)
        if problem:
            raise InvalidWorkflow(file.path, service.line, service.column, f"the service {service.name!r}: {problem}")


def _why_not_packaged(service: Service, grounds: ServiceCapabilities) -> str | None:
    kind = image_kind(service.image)
    if kind is None:
        return (
            f"local machines run no containers, and only {PACKAGED} come from the distribution's packages; "
            f"start {service.image} in a task, or use machines in the cloud"
        )
    if kind == "postgres" and not grounds.many_users:
        return (
            "PostgreSQL does not run as root, and machines that an ordinary user forges have no other user; "
            "run gibil as root, or use machines in the cloud"
        )
    unknown = [name for name in service.env if name not in KNOWN[kind].env]
    if unknown:
        return f"{unknown[0]} means nothing without containers; {kind} obeys {', '.join(KNOWN[kind].env) or 'no variables'}"
    if len(service.ports) > 1 or host_port(service)[1] != KNOWN[kind].port:
        return f"{kind} listens on {KNOWN[kind].port} and nothing else; write ports: [{KNOWN[kind].port}]"
    wanted, there = image_version(service.image), grounds.versions.get(kind)
    if kind == "mysql" and grounds.versions and there is None and "mariadb" in grounds.versions:
        return f"this distribution has MariaDB instead; write image: mariadb:{grounds.versions['mariadb']}"
    if wanted and there and not _compatible(wanted, there):
        return f"this distribution has {kind} {there}, and not {wanted}; write image: {kind}:{there}, or use the cloud"
    return None


def _compatible(one: str, other: str) -> bool:
    return all(left == right for left, right in zip(one.split("."), other.split("."), strict=False))


def image_problem(service: Service) -> str | None:
    """What no machine could make right: what the image itself would refuse to start with."""
    kind = image_kind(service.image)
    if kind is None:
        return None if service.ports else "ports are needed for an image that is not one of " + PACKAGED
    wanted = KNOWN[kind].passwords
    if wanted and not any(service.env.get(name) for name in wanted):
        return f"{kind} does not start without a password: set {wanted[0]} in its env"
    return None


def services_script(services: Sequence[Service]) -> str | None:
    """POSIX sh that starts all of them and returns when they are healthy; None when there are none."""
    if not services:
        return None
    parts = [text("services")]
    for service in services:
        kind = image_kind(service.image) or "other"
        outside, inside = host_port(service)
        words = (service.name, kind, image_version(service.image), service.image, str(outside), str(inside))
        parts.append(f"\n(\n    name={shlex.quote(words[0])} kind={words[1]} wanted={shlex.quote(words[2])}\n")
        parts.append(f"    image={shlex.quote(words[3])} port={words[4]} inner={words[5]}\n")
        parts.append(f"    full={shlex.quote(full_name(service.image))}\n")
        values = {own: _first(service.env, names) for own, names in _OWN_NAMES.get(kind, {}).items()}
        parts += [f"    {own}={shlex.quote(value)}\n" for own, value in values.items()]
        published = [
            word for pair in service.ports or ((outside, inside),) for word in ("-p", f"127.0.0.1:{pair[0]}:{pair[1]}")
        ]
        given = [word for name, value in service.env.items() for word in ("-e", f"{name}={value}")]
        parts.append(f"    start {shlex.join([*published, *given])}\n)\n")
    return "".join(parts)


_SQL = {"password": ("ROOT_PASSWORD",), "user": ("USER",), "user_password": ("PASSWORD",), "database": ("DATABASE",)}
_OWN_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "postgres": {
        "password": ("POSTGRES_PASSWORD",),
        "user": ("POSTGRES_USER",),
        "database": ("POSTGRES_DB",),
        "method": ("POSTGRES_HOST_AUTH_METHOD",),
    },
    "mysql": {own: tuple(f"MYSQL_{name}" for name in names) for own, names in _SQL.items()},
    "mariadb": {
        own: tuple(f"{which}_{name}" for which in ("MARIADB", "MYSQL") for name in names) for own, names in _SQL.items()
    },
}


def _first(env: Mapping[str, str], names: Sequence[str]) -> str:
    return next((env[name] for name in names if env.get(name)), "")
