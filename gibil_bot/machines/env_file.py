"""Files of environment variables for `--env-file`, by the rules of `docker run --env-file`.

Source: https://docs.docker.com/reference/cli/docker/container/run/#env, and docker's pkg/kvfile. Each line is `NAME=value`; the
value is everything after the first `=`, unchanged: no quotes are removed, nothing is expanded. `NAME` alone takes the value of
the caller's environment, and is left out if it has none. Blank lines, lines that begin with `#` and blanks before a name are
skipped. In a name that occurs again, the last line counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from gibil_bot.errors import UsageError

MOST_BYTES = 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_BLANKS = " \t\v\f\r\n\x85\xa0"


def read_env_files(paths: Iterable[str | Path], environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of all files; a later file overrides an earlier one. Raises UsageError.

    The values may be secret, so they are in no message.
    """
    found: dict[str, str] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                content = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise UsageError(f"--env-file: {str(path)!r} can't be read: {reason}") from None
        if len(content) > MOST_BYTES:
            raise UsageError(f"--env-file: {str(path)!r} is larger than {MOST_BYTES // 1024**2} MiB")
        found |= parse_env_file(content, str(path), environment)
    return found


def parse_env_file(content: bytes, path: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of one file. `path` is for messages. Raises UsageError with the line's number."""
    found: dict[str, str] = {}
    for number, raw in enumerate(content.removeprefix(_BOM).split(b"\n"), start=1):
        where = f"--env-file: {path}:{number}"
        try:
            line = raw.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"{where}: the line isn't UTF-8") from None
        line = line.lstrip(_BLANKS)
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name:
            raise UsageError(f"{where}: there is no name before '='; write NAME=value")
        if any(blank in name for blank in _BLANKS):
            raise UsageError(f"{where}: the name that begins with {name[:20]!r} contains a blank; write NAME=value")
        if equals:
            found[name] = value
        elif name in environment:
            found[name] = environment[name]
    return found
