"""The task "set up" before the tasks of a `.gibil.yml`, which installs its packages and runtimes.

Packages are only asked for where they are missing, so that an image that has them needs no network. A runtime comes with the
image, or the machine's tool `gibil-runtime` installs it, or the task fails with one sentence that says what is there instead.
A project that works with pnpm gets it with its Node.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from gibil_bot.scripts.templates import text

_COMMANDS = {"python": ("python3", "python"), "node": ("node", "nodejs"), "go": ("go",)}


def set_up_script(runtime: Mapping[str, str], packages: Sequence[str]) -> str | None:
    """POSIX sh for these runtimes and packages, or None when there is nothing to set up. The names were checked."""
    if not runtime and not packages:
        return None
    parts = [text("setup_begin")]
    if runtime:
        parts.append(text("setup_runtimes"))
    for name, version in runtime.items():
        # The plain name first; then `python3.12`, as distributions call a second Python.
        commands = (*_COMMANDS[name], f"{name}{version}")
        parts.append(f"want {shlex.join((name, version, *commands))}\n")
    if "node" in runtime:
        parts.append(text("setup_pnpm"))
    if packages:
        parts += [f"\npackages={shlex.quote(' '.join(packages))}\n", text("setup_packages")]
    return "".join(parts)
