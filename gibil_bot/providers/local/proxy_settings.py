"""Settings of programs for the egress proxy, on machines without a route (route.py), where nf_tables can't be used.

They are files and not variables, because tests read the environment. Go, Composer and Node's own `fetch` read only variables:
a task that needs them sets `https_proxy=http://127.0.0.1:3128` itself.
"""

from __future__ import annotations

import os

from gibil_bot.providers.local.route import PROXY

_URL = "http://{}:{}".format(*PROXY)
_ITSELF = "localhost,127.0.0.1"
_JVM = "".join(
    f"systemProp.{protocol}.proxyHost={PROXY[0]}\nsystemProp.{protocol}.proxyPort={PROXY[1]}\n"
    for protocol in ("http", "https")
)

FILES = {
    "etc/apt/apt.conf.d/98gibil-proxy": f'Acquire::http::Proxy "{_URL}";\nAcquire::https::Proxy "{_URL}";\n',
    "root/.cargo/config.toml": f'[http]\nproxy = "{_URL}"\n',
    "root/.config/git/config": f"[http]\n\tproxy = {_URL}\n",
    "root/.config/pip/pip.conf": f"[global]\nproxy = {_URL}\n",
    "root/.config/uv/uv.toml": f'http-proxy = "{_URL}"\nhttps-proxy = "{_URL}"\n',
    "root/.curlrc": f'proxy = "{_URL}"\nnoproxy = "{_ITSELF}"\n',
    "root/.gemrc": f"http_proxy: {_URL}\n",
    "root/.gradle/gradle.properties": _JVM,
    "root/.npmrc": f"proxy={_URL}\nhttps-proxy={_URL}\nnoproxy={_ITSELF}\n",
    "root/.wgetrc": f"http_proxy = {_URL}\nhttps_proxy = {_URL}\nno_proxy = {_ITSELF}\n",
    "root/.yarnrc.yml": f'httpProxy: "{_URL}"\nhttpsProxy: "{_URL}"\n',
}
"""By path in the machine. Programs read these files in addition to those for all users, which the operator may have changed."""


def write(root: str) -> None:
    """Write the files below `root`, a layer of the machine's file system."""
    for path, text in FILES.items():
        target = os.path.join(root, path)
        _make_folders(root, os.path.dirname(path))
        with open(target, "x", encoding="utf-8") as file:
            file.write(text)


def _make_folders(root: str, path: str) -> None:
    folder = root
    for name in path.split("/"):
        folder = os.path.join(folder, name)
        if not os.path.isdir(folder):
            os.mkdir(folder, 0o755 if path.startswith("etc") else 0o700)
