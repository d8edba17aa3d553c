"""Folders of programs that a test puts on PATH."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path


def add_programs(folder: Path, *names: str) -> None:
    """Make programs of this computer available in `folder`, which is created.

    Each is a small script and no link: a test that writes its own program over a link would replace the computer's.
    """
    folder.mkdir(exist_ok=True)
    for name in names:
        real = shutil.which(name)
        assert real is not None, f"{name} is not on this computer"
        write_program(folder / name, f'exec {shlex.quote(real)} "$@"')


def write_program(path: Path, content: str, interpreter: str = "/bin/sh") -> None:
    """Write an executable script. Whatever is at `path` is removed first, so that nothing is written through a link."""
    path.unlink(missing_ok=True)
    path.write_text(f"#!{interpreter}\n{content}\n")
    path.chmod(0o755)
