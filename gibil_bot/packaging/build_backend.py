"""Build backend: setuptools, but an editable install is a .pth file with both import roots.

With two roots, setuptools installs an import hook instead, which type checkers and editors don't follow. The interface is
PEP 517's and PEP 660's; the format of wheels: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from setuptools.build_meta import (  # type: ignore[import-untyped]
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_wheel",
]

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = (REPOSITORY, REPOSITORY / "gibil_bot" / "sdk" / "site")
"""The folders of the packages `gibil_bot` and `gibil`."""


def build_editable(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Build a wheel that has only the metadata, the .pth file and the launcher; return its file name."""
    with tempfile.TemporaryDirectory() as folder:
        info = prepare_metadata_for_build_wheel(folder, config_settings)
        metadata = Path(folder, info)
        contents = {f"{info}/{path.relative_to(metadata)}": path.read_bytes() for path in metadata.rglob("*") if path.is_file()}
    name = info.removesuffix(".dist-info")
    contents[f"__editable__.{name}.pth"] = "".join(f"{root}\n" for root in ROOTS).encode()
    contents[f"{name}.data/scripts/gibil"] = Path(__file__).with_name("gibil").read_bytes()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: gibil-bot\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{path},sha256={_hash(content)},{len(content)}\n" for path, content in contents.items()]
    contents[f"{info}/RECORD"] = "".join([*record, f"{info}/RECORD,,\n"]).encode()
    wheel = f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory, wheel), "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (0o100755 if ".data/scripts/" in path else 0o100644) << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return wheel


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
