"""Checks of what users write before a machine is created: names, times to live, sizes, environment entries. No I/O.

Every check raises UsageError with a message for the user.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import TypeAlias

from gibil_bot.config import parse_duration
from gibil_bot.errors import UsageError
from gibil_bot.humanize import duration_setting
from gibil_bot.limits import ENVIRONMENT_VALUE_BYTES, MACHINE_NAME, MACHINE_NAME_RULE, MACHINE_SIZES

Duration: TypeAlias = str | int | float | timedelta
"""`90s 20m 2h 7d 1w 1mo 1y`, or a number of minutes."""

DEFAULT_TTL_S = 3600
MIN_TTL_S = 60
MOST_IN_FLEET = 20

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)

_FIRST = ("amber", "ashen", "bright", "bronze", "copper", "ember", "golden", "iron", "molten", "ruddy", "silver", "tempered")
_SECOND = ("anvil", "bellows", "brazier", "chisel", "crucible", "flame", "forge", "furnace", "hammer", "kiln", "spark", "tongs")


def check_name(name: str) -> str:
    """Check an RFC 1123 label (section 2.1): lower-case letters, digits and inner dashes, at most 63 characters."""
    if not MACHINE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid machine name: use {MACHINE_NAME_RULE}")
    return name


def check_template(name: str) -> str:
    """Check the name of a template, which has the form of a machine's name."""
    if not MACHINE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a valid name of a template: use {MACHINE_NAME_RULE}")
    return name


def random_name() -> str:
    """Return a pronounceable name that is very probably unused."""
    return f"{secrets.choice(_FIRST)}-{secrets.choice(_SECOND)}-{secrets.token_hex(2)}"


def name_of_branch(branch: str) -> str:
    """Return a machine name derived from a branch name."""
    slug = re.sub(r"[^a-z0-9]+", "-", branch.lower()).strip("-")[:50].strip("-") or "branch"
    return f"{slug}-{secrets.token_hex(2)}"


def name_of_fork(name: str) -> str:
    """Return a machine name derived from the name of the machine that is forked."""
    return f"{name[:50].strip('-')}-{secrets.token_hex(2)}"


def fleet_names(name: str, count: int) -> list[str]:
    """Return `name-1` … `name-COUNT`."""
    if not 1 <= count <= MOST_IN_FLEET:
        raise UsageError(f"a fleet has 1 to {MOST_IN_FLEET} machines, got {count}")
    return [check_name(f"{name}-{number}") for number in range(1, count + 1)]


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key in which numbers count as numbers, so `agent-3` comes before `agent-10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((text, int(number or 0)) for text, number in zip(parts[::2], [*parts[1::2], ""], strict=True))


def check_command(command: str) -> str:
    """Check that a shell command isn't empty."""
    if not command.strip() or "\0" in command:
        raise UsageError("a command can't be empty or contain a NUL byte")
    return command


def ttl_seconds(text: Duration, max_ttl_s: int) -> int:
    """Parse a time to live: `90s 20m 2h 7d 1w 1mo 1y`, a bare number is minutes; from one minute to GIBIL_MAX_TTL."""
    seconds = duration_seconds(text)
    if seconds < MIN_TTL_S:
        raise UsageError(f"the time to live is at least a minute, and {text!r} is {seconds} s")
    if seconds > max_ttl_s:
        raise UsageError(
            f"the time to live is at most {duration_setting(max_ttl_s)}, and {text!r} is longer; GIBIL_MAX_TTL sets the cap"
        )
    return seconds


def duration_seconds(duration: Duration) -> int:
    """Return a duration in whole seconds. A number, or text with only a number, is minutes."""
    try:
        if isinstance(duration, timedelta):
            return round(duration.total_seconds())
        if isinstance(duration, int | float) and not isinstance(duration, bool):
            return round(duration * 60)
        if isinstance(duration, str):
            return parse_duration(duration)
    except (ValueError, OverflowError) as error:  # including NaN and infinity
        if isinstance(duration, str):
            raise UsageError(str(error)) from None
    raise UsageError(f"{duration!r} isn't a duration: write 90s, 20m or 2h, or a number of minutes")


def check_size(size: str) -> str:
    if size not in MACHINE_SIZES:
        raise UsageError(f"there is no size {size!r}; write {', '.join(MACHINE_SIZES)}")
    return size


def check(*, name: str | None, ttl: Duration | None, size: str | None, max_ttl_s: int) -> None:
    """Check the user's values for a machine; None: not given."""
    if name is not None:
        check_name(name)
    if ttl is not None:
        ttl_seconds(ttl, max_ttl_s)
    if size is not None:
        check_size(size)


def environment(entries: Iterable[str], files: Sequence[str] = ()) -> dict[str, str]:
    """Parse `NAME=value` entries, which override those of the `--env-file` files.

    The values may be secret, so they are in no message.
    """
    found: dict[str, str] = {}
    if files:
        from gibil_bot.machines.env_file import read_env_files

        found = read_env_files(files, os.environ)
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals:
            raise UsageError(f"--env: there is no '=' in the entry that begins with {name[:20]!r}; write NAME=value")
        found[name] = value
    return check_environment(found)


def check_environment(env: dict[str, str]) -> dict[str, str]:
    """Check that a shell can export the names, and that Linux can pass the values."""
    if not env:
        return env
    from gibil_bot.scripts.task_script import reserved_name  # imported late: it loads all types of runs

    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise UsageError(f"--env: {name[:40]!r} can't be the name of an environment variable")
        if reserved_name(name):
            raise UsageError(f"--env: {name!r} is reserved: names with GITHUB_, GIBIL_ and RUNNER_ are set by gibil")
        if "\0" in value:
            raise UsageError(f"--env: the value of {name} contains a NUL byte")
        if len(value.encode("utf-8", "surrogateescape")) > ENVIRONMENT_VALUE_BYTES:
            raise UsageError(f"--env: the value of {name} is larger than {ENVIRONMENT_VALUE_BYTES // 1024} KiB")
    return env


def check_room(existing: Collection[str], new: Sequence[str], most: int) -> None:
    """Raise UsageError (MACHINE_LIMIT) when the existing and the `new` machines together are more than `most`.

    A name in both counts once: creating that machine fails later, with its own message.
    """
    total = len({*existing, *new})
    if total <= most:
        return
    present = "no machines exist" if not existing else f"{len(existing)} machine{'s exist' if len(existing) > 1 else ' exists'}"
    wanted = "one more" if len(new) == 1 else f"{len(new)} more"
    remedies = "destroy some first (`gibil list` shows them), or set GIBIL_MAX_MACHINES higher"
    if len(new) > most:
        remedies = f"create at most {most}, or set GIBIL_MAX_MACHINES higher"
    raise UsageError(f"{present}, and {wanted} would exceed GIBIL_MAX_MACHINES={most}: {remedies}", code="MACHINE_LIMIT")
