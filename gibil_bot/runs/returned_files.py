"""What a task left in GITHUB_STEP_SUMMARY, GITHUB_ENV, GITHUB_PATH and GIBIL_NEUTRAL: for the report, for later tasks.

It comes with the task's end. Only for a task that ended while nobody followed it, it is asked for.
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
"""Of the summary, env, path and neutral files, in the order of `paths_of`."""
_ANSWER_BYTES = 4 * 1024 * 1024
"""Four lines of base64: four thirds of what the limits of the files come to, and a little more."""


@dataclass(frozen=True, slots=True)
class ReturnedFiles:
    """Whatever the task wrote, each cut at its limit."""

    summary: bytes
    env: bytes
    path: bytes
    neutral: bytes = b""
    """Why there was nothing to do; empty: there was."""


def paths_of(index: int) -> tuple[str, str, str, str]:
    """Where the task of that index writes them: what a Job `returns`."""
    files = task_script.task_files(index)
    return files.summary, files.env, files.path, files.neutral


def left_in(ended: Exit, index: int) -> ReturnedFiles | None:
    """What came with the task's end; None: it was started by a bot that did not ask for it."""
    summary, env, path, neutral = (ended.files.get(path) for path in paths_of(index))
    if summary is None or env is None or path is None:
        return None
    return _within_limits((summary, env, path, neutral or b""))


async def read_tail(shell: Shell, job_id: str, most: int) -> tuple[bytes, int]:
    """The end of what a job has printed, and the size of all of it. Raises MachineLost, SSHError, BadAnswer, TimeoutError."""
    result = await shell.run(f'cd "$HOME/.gibil/jobs/{job_id}" && stat -c %s out && tail -c {most} out', most_bytes=most + 100)
    size, _, data = result.stdout.partition(b"\n")
    return data, number(size)


async def read_returned_files(shell: Shell, index: int) -> ReturnedFiles:
    """In one round trip: a line of base64 each. Raises MachineLost."""
    limits = zip(paths_of(index), _LIMITS, strict=True)
    result = await shell.run(
        "\n".join(f"test -s {path} && head -c {limit} {path} | base64 -w 0; echo" for path, limit in limits),
        most_bytes=_ANSWER_BYTES,
    )
    lines = [*result.stdout.split(b"\n"), b"", b"", b"", b""]
    try:
        return _within_limits([base64.b64decode(line) for line in lines[:4]])
    except ValueError:  # the machine belongs to its tasks: one may have put something else in the place of base64
        return ReturnedFiles(b"", b"", b"")


def _within_limits(contents: Iterable[bytes]) -> ReturnedFiles:
    return ReturnedFiles(*(content[:limit] for content, limit in zip(contents, _LIMITS, strict=True)))
