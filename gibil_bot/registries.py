"""What the key `allow:` of an agent task names: package registries, and hosts; and which hosts these are. No I/O.

A registry's hosts are those that its usual client asks when it installs a package. An operator's mirror of a registry replaces
its hosts. Many registries accept uploads from everyone with an account at the host from which clients download, so
an allow-list limits where data can be sent, and doesn't prevent it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from gibil_bot.errors import UsageError
from gibil_bot.humanize import nearest

WEB_PORTS = (443, 80)
"""The ports of an entry that names none."""
MOST_ENTRIES = 64
"""Of one task."""

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?P<host>(?:\*\.{_LABEL}\.)?(?:{_LABEL}\.)*{_LABEL})\.?(?::(?P<port>[0-9]{{1,5}}))?")
_WORD = re.compile(r"[a-z0-9-]+")
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class Registry:
    """A package registry, or a service of which clients know only names of hosts.

    `mirrors`: keys of GIBIL_MIRRORS; the hosts of those that are configured are used instead of `hosts`.
    """

    title: str
    hosts: tuple[str, ...]
    source: str
    mirrors: tuple[str, ...] = ()


REGISTRIES: Mapping[str, Registry] = {
    "npm": Registry(
        "npm, pnpm, Yarn, Bun",
        # Yarn 1 has its own name for the same registry; corepack downloads Yarn's later versions from the last one.
        ("registry.npmjs.org", "registry.yarnpkg.com", "repo.yarnpkg.com"),
        "docs.npmjs.com/cli/using-npm/config#registry, classic.yarnpkg.com/docs/cli/config, github.com/nodejs/corepack",
        ("npm",),
    ),
    "pypi": Registry(
        "pip, uv, Poetry, PDM",
        ("pypi.org", "files.pythonhosted.org"),
        "docs.pypi.org/api/index-api, warehouse's downloads are at files.pythonhosted.org",
        ("pypi",),
    ),
    "crates": Registry(
        "Cargo",
        ("index.crates.io", "static.crates.io", "crates.io"),
        "doc.rust-lang.org/cargo/reference/registry-index.html, index.crates.io/config.json",
        ("crates",),
    ),
    "go": Registry(
        "Go modules",
        ("proxy.golang.org", "sum.golang.org", "storage.googleapis.com"),
        "go.dev/ref/mod#module-proxy, proxy.golang.org redirects large modules to storage.googleapis.com",
        ("go",),
    ),
    "rubygems": Registry(
        "RubyGems, Bundler",
        ("rubygems.org", "index.rubygems.org"),
        "guides.rubygems.org/rubygems-org-compact-index-api",
        ("rubygems",),
    ),
    "maven": Registry(
        "Maven, Gradle, sbt",
        ("repo.maven.apache.org", "repo1.maven.org", "plugins.gradle.org", "plugins-artifacts.gradle.org"),
        "maven.apache.org/ref/current/maven-model-builder/super-pom.html, central.sonatype.org, docs.gradle.org/current/"
        "userguide/plugins.html",
        ("maven",),
    ),
    "packagist": Registry(
        "Composer",
        # Composer downloads most packages as archives from GitHub.
        ("repo.packagist.org", "packagist.org", "api.github.com", "codeload.github.com"),
        "packagist.org/apidoc, getcomposer.org/doc/05-repositories.md",
        ("packagist",),
    ),
    "nuget": Registry("NuGet", ("api.nuget.org",), "learn.microsoft.com/nuget/api/overview"),
    "hex": Registry("Mix, Rebar3", ("repo.hex.pm", "builds.hex.pm", "hex.pm"), "hex.pm/docs, github.com/hexpm/specifications"),
    "pub": Registry("Dart, Flutter", ("pub.dev",), "dart.dev/tools/pub/custom-package-repositories"),
    "hackage": Registry("Cabal", ("hackage.haskell.org",), "cabal.readthedocs.io/en/stable/config.html"),
    "cpan": Registry("cpan, cpanm", ("www.cpan.org", "cpan.metacpan.org", "fastapi.metacpan.org"), "metacpan.org/about"),
    "cran": Registry("R", ("cloud.r-project.org", "cran.r-project.org"), "cran.r-project.org/mirrors.html"),
    "conda": Registry(
        "conda, mamba",
        ("conda.anaconda.org", "repo.anaconda.com"),
        "docs.conda.io/projects/conda/en/stable/user-guide/configuration/settings.html",
    ),
    "debian": Registry(
        "apt on Debian",
        ("deb.debian.org", "security.debian.org"),
        "wiki.debian.org/SourcesList, www.debian.org/security",
        ("debian",),
    ),
    "ubuntu": Registry(
        "apt on Ubuntu",
        ("archive.ubuntu.com", "*.archive.ubuntu.com", "security.ubuntu.com", "ports.ubuntu.com"),
        "help.ubuntu.com/community/Repositories/Ubuntu, launchpad.net/ubuntu/+archivemirrors",
    ),
    "alpine": Registry("apk", ("dl-cdn.alpinelinux.org",), "wiki.alpinelinux.org/wiki/Repositories"),
    "fedora": Registry(
        "dnf on Fedora",
        ("mirrors.fedoraproject.org", "dl.fedoraproject.org"),
        "docs.fedoraproject.org/en-US/quick-docs/dnf; the mirror that the list chooses has to be allowed by its name",
    ),
    "nodejs": Registry("releases of Node.js", ("nodejs.org",), "nodejs.org/dist", ("nodejs",)),
    "golang": Registry("releases of Go", ("go.dev", "dl.google.com"), "go.dev/dl redirects to dl.google.com", ("golang",)),
    "rustup": Registry(
        "releases of Rust", ("static.rust-lang.org",), "rust-lang.github.io/rustup/environment-variables", ("rustup",)
    ),
    "github": Registry(
        "GitHub: clones, archives, releases, API",
        (
            "github.com",
            "api.github.com",
            "codeload.github.com",
            "raw.githubusercontent.com",
            "objects.githubusercontent.com",
            "release-assets.githubusercontent.com",
            "media.githubusercontent.com",
        ),
        "api.github.com/meta (domains.website, domains.packages)",
    ),
    "gitlab": Registry("GitLab.com: clones, archives, API", ("gitlab.com",), "docs.gitlab.com/user/gitlab_com"),
}
"""By the name in `allow:`. `github` and `gitlab` let an agent send data to any repository, to which it has a key."""


def problem_with(entry: str) -> str:
    """Return why an entry of `allow:` is invalid, as the end of a sentence that names it; "" if it is valid."""
    text = entry.strip().lower()
    if text in REGISTRIES:
        return ""
    if _WORD.fullmatch(text):
        return f"is neither a host nor a registry{nearest(text, REGISTRIES)}; registries are {', '.join(REGISTRIES)}"
    if "/" in text:
        return "has to be a host without a scheme, path or network, as in `docs.python.org`"
    found = _HOST.fullmatch(text)
    if not found or len(found["host"]) > 253:
        return "isn't a host; write `docs.python.org`, `*.python.org`, `files.example.com:8443`, or a registry such as `pypi`"
    if re.fullmatch(r"[0-9.]+", found["host"]):
        return "is an address; hosts are allowed by name, because the name is what TLS and HTTP clients announce"
    if found["port"] is not None and not 1 <= int(found["port"]) <= 65535:
        return "has a port that isn't between 1 and 65535"
    return ""


def hosts(allow: Iterable[str], *, mirrors: Mapping[str, str] | None = None, operator: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the allow-list of a task, in the syntax of GIBIL_EGRESS_ALLOW; every entry that `allow` names has a port.

    `allow`: registries, hosts, `host:port` and `*.example.com`. `mirrors`: the operator's, by keys of GIBIL_MIRRORS.
    `operator`: GIBIL_EGRESS_ALLOW, which is part of the result. Raises UsageError with all invalid entries.
    """
    entries = tuple(allow)
    if len(entries) > MOST_ENTRIES:
        raise UsageError(f"allow: at most {MOST_ENTRIES} entries are allowed, got {len(entries)}")
    found: dict[str, None] = dict.fromkeys(operator)
    problems = []
    for entry in entries:
        if problem := problem_with(entry):
            problems.append(f"allow: {entry[:_SHOWN]!r} {problem}")
            continue
        for name in _meant(entry.strip().lower(), mirrors or {}):
            found.update(dict.fromkeys(name))
    if problems:
        raise UsageError("; ".join(problems))
    return tuple(found)


def _meant(entry: str, mirrors: Mapping[str, str]) -> list[tuple[str, ...]]:
    registry = REGISTRIES.get(entry)
    if registry is None:
        host, _, port = entry.partition(":")
        return [_endpoints(host.removesuffix("."), int(port) if port else None)]
    replaced = [_endpoint_of(mirrors[key]) for key in registry.mirrors if key in mirrors]
    return replaced or [_endpoints(host, None) for host in registry.hosts]


def _endpoints(host: str, port: int | None) -> tuple[str, ...]:
    return tuple(f"{host}:{each}" for each in (WEB_PORTS if port is None else (port,)))


def _endpoint_of(url: str) -> tuple[str, ...]:
    """Return the endpoint of a mirror's URL, which may have Cargo's prefix `sparse+`."""
    parts = urlsplit(url.removeprefix("sparse+"))
    host = (parts.hostname or "").removesuffix(".")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    return (f"[{host}]:{port}" if ":" in host else f"{host}:{port}",) if host else ()
