"""Measuring the size of a folder that a machine can write to. Cheap to import: the fork server runs this in a child process."""

from __future__ import annotations

import os
import stat
import time
from typing import NamedTuple


class DiskUsage(NamedTuple):
    """Size of a folder. `complete` is False if the measurement was stopped early."""

    kb: int
    files: int
    complete: bool


def measure_folder(folder: str, most_files: int, seconds: float) -> DiskUsage:
    """Return the folder's size on the disk, hard links counted once. Unreadable and vanishing files are skipped.

    Stops beyond `most_files` files or after `seconds` of processor time.
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
