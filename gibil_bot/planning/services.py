"""Services of a `.gibil.yml`: which ones the machines support, and the script of the task "services" that starts them. Pure.

On a machine with a container engine, a service is its image. Local machines have none, so a few well-known images are replaced
by the distribution's packages: the same environment, the same port on 127.0.0.1, data deleted with the machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.planning.workflow import ProjectSetUp, Service
from gibil_bot.scripts.templates import text


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCapabilities:
    """What the provider's machines support for services."""

    containers: bool
    """Whether they can run containers; otherwise services are the distribution's packages."""
    many_users: bool = True
    """Whether more than one uid exists on them: PostgreSQL doesn't run as root."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """image → the version in the distribution, if known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedImage:
    """An image that the distribution's packages can replace. `env`: the image's variables that we support."""

    port: int
    env: tuple[str, ...]
    passwords: tuple[str, ...] = ()
    """One of these must be set, as the image itself requires."""


# Names as in https://hub.docker.com/_/postgres, …/redis, …/mariadb and …/mysql.
KNOWN = {
    "postgres": PackagedImage(
        port=5432,
        env=("POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_HOST_AUTH_METHOD"),
        passwords=("POSTGRES_PASSWORD", "POSTGRES_HOST_AUTH_METHOD"),
    ),
    "redis": PackagedImage(port=6379, env=()),
    **{
        image: PackagedImage(
            port=3306,
            env=tuple(f"{prefix}_{name}" for prefix in prefixes for name in names),
            passwords=tuple(f"{prefix}_{name}" for prefix in prefixes for name in names[:2]),
        )
        for image, prefixes in {"mariadb": ("MARIADB", "MYSQL"), "mysql": ("MYSQL",)}.items()
        for names in [("ROOT_PASSWORD", "ALLOW_EMPTY_ROOT_PASSWORD", "ALLOW_EMPTY_PASSWORD", "DATABASE", "USER", "PASSWORD")]
    },
}
PACKAGED = "postgres, redis, mariadb and mysql"

# The versions that `apt-get install` installs: packages.debian.org, packages.ubuntu.com.
_DISTRIBUTIONS = {
    ("debian", "11"): {"postgres": "13", "redis": "6.0", "mariadb": "10.5"},
    ("debian", "12"): {"postgres": "15", "redis": "7.0", "mariadb": "10.11"},
    ("debian", "13"): {"postgres": "17", "redis": "8.0", "mariadb": "11.8"},
    ("ubuntu", "22.04"): {"postgres": "14", "redis": "6.0", "mariadb": "10.6", "mysql": "8.0"},
    ("ubuntu", "24.04"): {"postgres": "16", "redis": "7.0", "mariadb": "10.11", "mysql": "8.0"},
}


def distribution_versions(os_release: str, sources: str) -> dict[str, str]:
    """Return image → version, from /etc/os-release and the contents of apt's sources; empty if that can't be determined."""
    fields = dict(re.findall(r'^(ID|VERSION_ID)="?([^"\n]*)"?$', os_release, re.MULTILINE))
    versions = dict(_DISTRIBUTIONS.get((fields.get("ID", ""), fields.get("VERSION_ID", "")), {}))
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
    """Return the official image that is meant, if it is one of KNOWN."""
    name = image.partition("@")[0].removeprefix("docker.io/").removeprefix("library/").partition(":")[0]
    return name if name in KNOWN else None


def image_version(image: str) -> str:
    """Return the version of an image (`16` of `postgres:16-alpine`); empty for `latest` or no tag."""
    match = re.match(r"[0-9]+(\.[0-9]+)*", image.partition("@")[0].rpartition("/")[2].partition(":")[2])
    return match[0] if match else ""


def full_name(image: str) -> str:
    """Return the image with Docker's default registry if it names none.

    podman has no default registry and rejects unknown short names (https://github.com/distribution/reference).
    """
    first, slash, _rest = image.partition("/")
    if not slash:
        return f"docker.io/library/{image}"
    return image if "." in first or ":" in first or first == "localhost" else f"docker.io/{image}"


def host_port(service: Service) -> tuple[int, int]:
    """Return (port on 127.0.0.1 of the machine, port of the service) of the first configured port, else of the usual one."""
    if service.ports:
        return service.ports[0]
    kind = image_kind(service.image)
    port = KNOWN[kind].port if kind else 0
    return port, port


def check_services(file: ProjectSetUp, capabilities: ServiceCapabilities) -> None:
    """Raise InvalidWorkflow, at the service's line, for a service that these machines don't support."""
    for service in file.services:
        problem = None if capabilities.containers else _why_not_packaged(service, capabilities)
        if problem:
            raise InvalidWorkflow(file.path, service.line, service.column, f"the service {service.name!r}: {problem}")


def _why_not_packaged(service: Service, capabilities: ServiceCapabilities) -> str | None:
    kind = image_kind(service.image)
    if kind is None:
        return (
            f"local machines run no containers, and only {PACKAGED} come from the distribution's packages; "
            f"start {service.image} in a task, or use machines in the cloud"
        )
    if kind == "postgres" and not capabilities.many_users:
        return (
            "PostgreSQL doesn't run as root, and machines created by an ordinary user have no other user; "
            "run gibil as root, or use machines in the cloud"
        )
    unknown = [name for name in service.env if name not in KNOWN[kind].env]
    if unknown:
        return f"{unknown[0]} has no effect without containers; {kind} supports {', '.join(KNOWN[kind].env) or 'no variables'}"
    if len(service.ports) > 1 or host_port(service)[1] != KNOWN[kind].port:
        return f"{kind} listens only on {KNOWN[kind].port}; write ports: [{KNOWN[kind].port}]"
    wanted, available = image_version(service.image), capabilities.versions.get(kind)
    if kind == "mysql" and capabilities.versions and available is None and "mariadb" in capabilities.versions:
        return f"this distribution has MariaDB instead; write image: mariadb:{capabilities.versions['mariadb']}"
    if wanted and available and not _compatible(wanted, available):
        return f"this distribution has {kind} {available}, not {wanted}; write image: {kind}:{available}, or use the cloud"
    return None


def _compatible(one: str, other: str) -> bool:
    return all(left == right for left, right in zip(one.split("."), other.split("."), strict=False))


def image_problem(service: Service) -> str | None:
    """Return a problem that exists on every machine: the image itself would not start."""
    kind = image_kind(service.image)
    if kind is None:
        return None if service.ports else "ports are required for an image other than " + PACKAGED
    wanted = KNOWN[kind].passwords
    if wanted and not any(service.env.get(name) for name in wanted):
        return f"{kind} doesn't start without a password: set {wanted[0]} in its env"
    return None


def services_script(services: Sequence[Service]) -> str | None:
    """Return a POSIX sh script that starts all services and returns when they are healthy; None if there are none."""
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
        values = {variable: _first(service.env, names) for variable, names in _SCRIPT_VARIABLES.get(kind, {}).items()}
        parts += [f"    {variable}={shlex.quote(value)}\n" for variable, value in values.items()]
        published = [
            word for pair in service.ports or ((outside, inside),) for word in ("-p", f"127.0.0.1:{pair[0]}:{pair[1]}")
        ]
        given = [word for name, value in service.env.items() for word in ("-e", f"{name}={value}")]
        parts.append(f"    start {shlex.join([*published, *given])}\n)\n")
    return "".join(parts)


_SQL = {"password": ("ROOT_PASSWORD",), "user": ("USER",), "user_password": ("PASSWORD",), "database": ("DATABASE",)}
_SCRIPT_VARIABLES: dict[str, dict[str, tuple[str, ...]]] = {
    "postgres": {
        "password": ("POSTGRES_PASSWORD",),
        "user": ("POSTGRES_USER",),
        "database": ("POSTGRES_DB",),
        "method": ("POSTGRES_HOST_AUTH_METHOD",),
    },
    "mysql": {variable: tuple(f"MYSQL_{name}" for name in names) for variable, names in _SQL.items()},
    "mariadb": {
        variable: tuple(f"{prefix}_{name}" for prefix in ("MARIADB", "MYSQL") for name in names)
        for variable, names in _SQL.items()
    },
}


def _first(env: Mapping[str, str], names: Sequence[str]) -> str:
    return next((env[name] for name in names if env.get(name)), "")
