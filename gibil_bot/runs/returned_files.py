"""What a task wrote to GITHUB_STEP_SUMMARY, GITHUB_ENV, GITHUB_PATH and GIBIL_NEUTRAL, for the report and for later tasks.

The files come with the job's exit. They are read separately only if no process followed the task when it ended.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass

from gibil_bot.model import Exit
from gibil_bot.ports import Shell
from gibil_bot.scripts import task_script
from gibil_bot.ssh.answers import number

FILES_LIMIT_BYTES = 1024 * 1024
STORED_SUMMARY_BYTES = 64 * 1024
REASON_BYTES = 1024
_LIMITS = (STORED_SUMMARY_BYTES, FILES_LIMIT_BYTES, FILES_LIMIT_BYTES, REASON_BYTES)
"""Limits of the summary, env, path and neutral files, in the order of `paths_of`."""
_ANSWER_BYTES = 4 * 1024 * 1024
"""Four lines of base64: four thirds of the sum of the limits, and a reserve."""


@dataclass(frozen=True, slots=True)
class ReturnedFiles:
    """What the task wrote, each file cut at its limit."""

    summary: bytes
    env: bytes
    path: bytes
    neutral: bytes = b""
    """Why the task had nothing to do; empty if it had something to do."""


def paths_of(index: int) -> tuple[str, str, str, str]:
    """Return the paths of a task's files, for its job's `returns`."""
    files = task_script.task_files(index)
    return files.summary, files.env, files.path, files.neutral


def returned_with(ended: Exit, index: int) -> ReturnedFiles | None:
    """Return the files that came with the job's exit; None if the bot that started it didn't request them."""
    summary, env, path, neutral = (ended.files.get(path) for path in paths_of(index))
    if summary is None or env is None or path is None:
        return None
    return _within_limits((summary, env, path, neutral or b""))


async def read_tail(shell: Shell, job_id: str, most: int) -> tuple[bytes, int]:
    """Return the end of a job's output and the total size. Raises MachineLost, SSHError, BadAnswer, TimeoutError."""
    result = await shell.run(f'cd "$HOME/.gibil/jobs/{job_id}" && stat -c %s out && tail -c {most} out', most_bytes=most + 100)
    size, _, data = result.stdout.partition(b"\n")
    return data, number(size)


async def read_returned_files(shell: Shell, index: int) -> ReturnedFiles:
    """Read the files in one round trip, as one line of base64 each. Raises MachineLost."""
    limits = zip(paths_of(index), _LIMITS, strict=True)
    result = await shell.run(
        "\n".join(f"test -s {path} && head -c {limit} {path} | base64 -w 0; echo" for path, limit in limits),
        most_bytes=_ANSWER_BYTES,
    )
    lines = [*result.stdout.split(b"\n"), b"", b"", b"", b""]
    try:
        return _within_limits([base64.b64decode(line) for line in lines[:4]])
    except ValueError:  # tasks control the machine: one may have replaced base64
        return ReturnedFiles(b"", b"", b"")


def _within_limits(contents: Iterable[bytes]) -> ReturnedFiles:
    return ReturnedFiles(*(content[:limit] for content, limit in zip(contents, _LIMITS, strict=True)))
