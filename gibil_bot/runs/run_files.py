"""The files of a run, on the disks of the hosts whose bots worked on it.

Names of files are relative to the run's folder. The transcript of an agent is that of its last round: `0.transcript` means the
newest `0.<round>.events`.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.errors import GibilError, HostUnavailable
from gibil_bot.model import FilePart, Host, HostSeen
from gibil_bot.ports import HostFiles, Hosts
from gibil_bot.runs.logs import free_above_floor

COPY_WITHIN_S = 60.0
_STEP_BYTES = 4 * 1024 * 1024
_RUN_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_NAME = re.compile(
    r"(?:machine-[1-9][0-9]{0,5}/)?[0-9]{1,6}(?:-[0-9]{1,6})?\.(?:log|transcript|patch)|changes\.(?:bundle|json|patch)",
    re.ASCII,
)


def may_be_asked_for(run_id: str, name: str) -> bool:
    """Return whether another host may ask for that file."""
    return _RUN_ID.fullmatch(run_id) is not None and _NAME.fullmatch(name) is not None


def read_part(folder: Path, name: str, *, offset: int | None, most_bytes: int) -> FilePart | None:
    """Return a part of a file in the folder of a run; `offset` None: its end. None: there is no such file. Blocks.

    Raises GibilError with the code LOGS.
    """
    try:
        path, number = _path(folder, name)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = max(0, size - most_bytes) if offset is None else min(offset, size)
            file.seek(start)
            return FilePart(data=file.read(min(most_bytes, size - start)), offset=start, size=size, round=number)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise GibilError(f"{name} of the run {folder.name} can't be read: {error.strerror}", code="LOGS") from None


def _path(folder: Path, name: str) -> tuple[Path, int]:
    """Return the path of a file, and the round of a transcript."""
    path = folder / name
    if path.suffix != ".transcript":
        return path, 0
    rounds = [each.suffixes[-2][1:] for each in path.parent.glob(f"{path.stem}.*.events")]
    number = max((int(each) for each in rounds if each.isdigit()), default=1)
    return path.with_suffix(f".{number}.events"), number


@dataclass(frozen=True, slots=True)
class _Holder:
    """Another host that may have files of a run."""

    host: Host
    problem: str
    """Why it can't be asked; "": it can."""


class RunFiles:
    """Reads files of runs, wherever they are. Without `others`, they are on this host.

    `hosts`: as in model.Run, whose id is `run_id`.
    """

    def __init__(self, logs: Path, host_id: str = "", hosts: Hosts | None = None, others: HostFiles | None = None) -> None:
        """`logs`: the folder on this host, with one folder for each run."""
        self._logs, self._host_id = logs, host_id
        self._hosts, self._others = hosts, others

    async def read(
        self, run_id: str, hosts: Sequence[str], name: str, *, offset: int | None, most_bytes: int
    ) -> tuple[FilePart | None, str]:
        """Return the same part of the longest copy, and why a longer one may exist; "" if none can.

        A host that lost a run in the middle of a task has only the beginning of its output. Takes about 10 seconds at most.
        Raises HostUnavailable if no copy is found and some host can't be asked; StoreError; GibilError with the code LOGS.
        """
        own = await asyncio.to_thread(read_part, self._logs / run_id, name, offset=offset, most_bytes=most_bytes)
        parts, problems = [own] if own is not None else [], []
        asked = [self._read(holder, run_id, name, offset, most_bytes) for holder in await self._elsewhere(hosts)]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, HostUnavailable):
                problems.append(answer.message)
            elif isinstance(answer, BaseException):
                raise answer
            elif answer is not None:
                parts.append(answer)
        if not parts and problems:
            raise HostUnavailable(_missing(name, run_id, problems))
        return max(parts, key=lambda part: (part.round, part.size), default=None), ". ".join(problems)

    async def copy(
        self,
        run_id: str,
        hosts: Sequence[str],
        names: Sequence[str],
        into: Path,
        *,
        most_bytes: int,
        are_wanted: Callable[[Path], bool] = lambda folder: True,
    ) -> Path | None:
        """Return a folder that has these files of one host; None if no host has them all.

        It is the run's, or `into` with copies, each at most `most_bytes` long. Takes at most a minute. `are_wanted` is called
        in a thread with a folder that has the files. Raises HostUnavailable, StoreError, OSError.
        """
        own = self._logs / run_id
        if await asyncio.to_thread(lambda: all((own / name).exists() for name in names) and are_wanted(own)):
            return own
        problems: list[str] = []
        try:
            async with asyncio.timeout(COPY_WITHIN_S):
                for holder in await self._elsewhere(hosts):
                    try:
                        found = [await self._copy(holder, run_id, name, into, most_bytes) for name in names]
                    except HostUnavailable as error:
                        problems.append(error.message)
                        continue
                    if all(found) and await asyncio.to_thread(are_wanted, into):
                        return into
        except TimeoutError:
            problems.append(f"Copying it from another host took longer than {COPY_WITHIN_S:g} s")
        if problems:
            raise HostUnavailable(_missing(names[0], run_id, problems))
        return None

    async def _copy(self, holder: _Holder, run_id: str, name: str, into: Path, most_bytes: int) -> bool:
        draft, size = into / f"{name}.new", 0
        await asyncio.to_thread(into.mkdir, mode=0o700, parents=True, exist_ok=True)
        try:
            with await asyncio.to_thread(draft.open, "wb") as file:
                while not size or file.tell() < size:
                    part = await self._read(holder, run_id, name, file.tell(), _STEP_BYTES)
                    if part is None:
                        return False
                    if part.offset != file.tell() or part.size != (size or part.size) or not part.data:
                        raise HostUnavailable(
                            f"{holder.host.name} answered with parts of {name} that don't fit together; try again"
                        )
                    size = part.size
                    if size > min(most_bytes, free_above_floor(file.fileno())):
                        raise HostUnavailable(f"{name} on {holder.host.name} is too large to be copied: it has {size} bytes")
                    await asyncio.to_thread(file.write, part.data)
            await asyncio.to_thread(draft.replace, into / name)
        finally:
            draft.unlink(missing_ok=True)
        return True

    async def _elsewhere(self, hosts: Sequence[str]) -> list[_Holder]:
        """Return the other hosts that worked on the run, the last one first."""
        wanted = [host_id for host_id in reversed(hosts) if host_id != self._host_id]
        if not wanted or self._hosts is None:
            return []
        seen = {each.host.id: each for each in await self._hosts.all()}
        return [_holder(host_id, seen.get(host_id)) for host_id in wanted]

    async def _read(self, holder: _Holder, run_id: str, name: str, offset: int | None, most_bytes: int) -> FilePart | None:
        if holder.problem or self._others is None:
            raise HostUnavailable(holder.problem)
        return await self._others.read(holder.host, run_id, name, offset=offset, most_bytes=most_bytes)


def _holder(host_id: str, seen: HostSeen | None) -> _Holder:
    if seen is None:
        return _Holder(Host(id=host_id, name=host_id), f"It may be on the host {host_id}, which no bot has used for a week")
    host, problem = seen.host, ""
    if seen.is_away:
        problem = f"It may be on {host.name}, whose bot was last seen at {seen.seen_at:%Y-%m-%d %H:%M} UTC: start it there"
    elif not host.url:
        problem = f"It may be on {host.name}: set GIBIL_BOT_URL there to the address at which other hosts reach its bot"
    return _Holder(host, problem)


def _missing(name: str, run_id: str, problems: Sequence[str]) -> str:
    return f"{name} of the run {run_id} isn't on this host. {'. '.join(problems)}"
