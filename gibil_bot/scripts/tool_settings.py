"""Configuration files of a machine's package tools: the operator's certificates and package mirrors. No I/O.

Each tool reads them from its own configuration file, so tasks see no additional variables, with one exception: Node and the
programs written for it know additional certificates only by NODE_EXTRA_CA_CERTS. A repository's own configuration has priority.

Sources: pip.pypa.io/en/stable/topics/configuration, docs.astral.sh/uv/reference/settings,
docs.npmjs.com/cli/configuring-npm/npmrc, yarnpkg.com/configuration/yarnrc, pkg.go.dev/cmd/go (GOENV),
doc.rust-lang.org/cargo/reference/source-replacement.html, maven.apache.org/guides/mini/guide-mirror-settings.html,
bundler.io/man/bundle-config.1.html, getcomposer.org/doc/05-repositories.md.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from xml.sax.saxutils import escape

CA_FILE = "/etc/gibil/ca.pem"
"""The operator's certificates, without those of the system."""
SYSTEM_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
ENVIRONMENT_FILE = "/etc/gibil/environment"
"""Variables of every command, one `NAME=value` a line."""
MIRRORS_FILE = "/etc/gibil/mirrors"
"""Assignments that `gibil-runtime` reads."""

_PROGRAMS = {
    "nodejs": "NODEJS_ORG_MIRROR",
    "golang": "GOLANG_MIRROR",
    "rustup": "RUSTUP_UPDATE_ROOT",
    "adoptium": "ADOPTIUM_MIRROR",
}


def tool_files(certificates_pem: str, mirrors: Mapping[str, str], existing: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return path → content. `existing`: the content of files that are extended instead of replaced: /etc/pip.conf."""
    files: dict[str, str] = {}
    uv: list[str] = []
    pip: dict[str, str] = {}
    if certificates_pem:
        files[CA_FILE] = certificates_pem
        files[ENVIRONMENT_FILE] = f"NODE_EXTRA_CA_CERTS={CA_FILE}\n"
        uv.append("native-tls = true")
        pip["cert"] = SYSTEM_CERTIFICATES
    if "python" in mirrors:
        uv.append(f"python-install-mirror = {_quoted(mirrors['python'])}")
    if url := mirrors.get("pypi"):
        pip["index-url"] = url
        uv.append(f"\n[[index]]\nurl = {_quoted(url)}\ndefault = true")
    if uv:
        files["/etc/uv/uv.toml"] = "\n".join(uv) + "\n"
    if pip:
        files["/etc/pip.conf"] = _pip_configuration((existing or {}).get("/etc/pip.conf", ""), pip)
    if url := mirrors.get("npm"):
        files["/root/.npmrc"] = f"registry={url}\n"
        files["/root/.yarnrc.yml"] = f"npmRegistryServer: {_quoted(url)}\n"
    if url := mirrors.get("go"):
        files["/root/.config/go/env"] = f"GOPROXY={url}\n"
    if url := mirrors.get("crates"):
        files["/root/.cargo/config.toml"] = (
            '[source.crates-io]\nreplace-with = "mirror"\n\n'
            f"[source.mirror]\nregistry = {_quoted(url if url.startswith('sparse+') else f'sparse+{url}')}\n"
        )
    if url := mirrors.get("maven"):
        files["/root/.m2/settings.xml"] = (
            "<settings><mirrors><mirror><id>gibil</id><mirrorOf>central</mirrorOf>"
            f"<url>{escape(url)}</url></mirror></mirrors></settings>\n"
        )
    if url := mirrors.get("rubygems"):
        files["/root/.gemrc"] = f":sources:\n- {_quoted(url)}\n"
        files["/root/.bundle/config"] = f"---\nBUNDLE_MIRROR__HTTPS://RUBYGEMS__ORG/: {_quoted(url)}\n"
    if url := mirrors.get("packagist"):
        repositories = [{"type": "composer", "url": url}, {"packagist.org": False}]
        files["/root/.config/composer/config.json"] = json.dumps({"repositories": repositories}) + "\n"
    programs = {variable: mirrors[name] for name, variable in _PROGRAMS.items() if name in mirrors}
    if programs:
        files[MIRRORS_FILE] = "".join(f"export {name}={shlex.quote(url)}\n" for name, url in programs.items())
    return files


def _quoted(text: str) -> str:
    """Return a string of TOML and of YAML."""
    return json.dumps(text)


def _pip_configuration(existing: str, values: Mapping[str, str]) -> str:
    """Set values in the section `global`. Values that exist and aren't in `values` stay."""
    lines = [line for line in existing.splitlines() if line.partition("=")[0].strip() not in values]
    lines = lines or ["[global]"]
    if "[global]" not in (line.strip() for line in lines):
        lines = ["[global]", *lines]
    at = next(number for number, line in enumerate(lines) if line.strip() == "[global]") + 1
    return "\n".join([*lines[:at], *(f"{name} = {value}" for name, value in values.items()), *lines[at:]]) + "\n"
