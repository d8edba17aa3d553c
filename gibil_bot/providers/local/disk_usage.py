"""Measuring a folder that a machine could write in. Light to import: the fork server does this in a child of its own."""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple


class DiskUsage(NamedTuple):
    """What a folder takes. `complete`: False when the look was broken off."""

    kb: int
    files: int
    complete: bool


def measure_folder(folder: str, most_files: int, seconds: float) -> DiskUsage:
    """What the folder takes on the disk, hard links once. Unreadable parts are skipped, files that vanish meanwhile too.

    Broken off beyond `most_files` or after `seconds` of processor time.
    """
    blocks = files = 0
    linked: set[tuple[int, int]] = set()
    waiting = [folder]
    began = time.process_time()
    while waiting:
        if files > most_files or time.process_time() - began > seconds:
            return DiskUsage(blocks // 2, files, False)
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    files += 1
                    if files > most_files or (not files % 4096 and time.process_time() - began > seconds):
                        return DiskUsage(blocks // 2, files, False)
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(entry.path)
                    elif status.st_nlink > 1:
                        key = status.st_dev, status.st_ino
                        if key in linked:
                            continue
                        linked.add(key)
                    blocks += status.st_blocks
        except OSError:
            continue
    return DiskUsage(blocks // 2, files, True)
