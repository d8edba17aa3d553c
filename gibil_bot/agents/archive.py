"""Tar archives of a few files, which a machine unpacks."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable


def archive_of(files: Iterable[tuple[str, bytes, int]]) -> bytes:
    """Return an archive of files: path, content, mode. Leading slashes are left out, so that it can be unpacked anywhere."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, content, mode in files:
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.size, entry.mode = len(content), mode
            tar.addfile(entry, io.BytesIO(content))
    return archive.getvalue()
