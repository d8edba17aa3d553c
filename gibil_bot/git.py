"""The only module that starts git on this host.

Rules for every call:

- The caller's repository-local variables (`git rev-parse --local-env-vars`) never reach git: hooks, aliases and `git rebase -x`
  set them, and they would direct our commands at the caller's repository. Of the GIT_ variables, only those for configuration,
  transport, identity and discovery are passed on (`_PASSED_ON`).
- GIT_CONFIG_PARAMETERS and GIT_CONFIG_COUNT are passed on, because users pass credentials in them. git sets them from a
  command line (`git -c`), never from a repository's settings.
- No hook, filter, fsmonitor, pager, external diff or text conversion runs. Transport and credentials follow the user's own
  configuration (global, system, command line): core.sshCommand, url.insteadOf, credential.helper, http.*.
- The repository is set by `--git-dir`. The configuration of a repository that we didn't create can run programs
  (core.sshCommand, remote.*.uploadpack, filter.*, core.fsmonitor, core.gitProxy), so such repositories are only queried for
  refs and configuration values (`NO_FETCH`), and their objects are read through a repository that we created
  (commits/local_repository.py).
- git never prompts: it has no terminal, no stdin and no askpass program. It has a time limit, and its output has a size limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from typing_extensions import Unpack

from gibil_bot.errors import GibilError
from gibil_bot.operator_secrets import without_secrets

TIMEOUT_S = 900.0
MOST_BYTES = 8 * 1024 * 1024
"""Default limit of a command's output. `stream` has none."""
PROTOCOLS = "file:git:http:https:ssh"
"""`ext::` and third-party remote helpers run programs that a URL names."""

_MOST_ERROR_BYTES = 64 * 1024
_PIPE_LINGERS_S = 1.0
"""How long to wait for stderr after git has ended: a background process (SSH master connection) may keep it open."""

# Everything else that begins with GIT_ is removed. https://git-scm.com/docs/git#_environment_variables
_PASSED_ON = re.compile(
    r"GIT_(CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|PARAMETERS|COUNT|KEY_\d+|VALUE_\d+)"
    r"|SSH|SSH_COMMAND|SSH_VARIANT|PROXY_COMMAND|PROXY_SSL_\w+|SSL_\w+|HTTP_\w+|EXEC_PATH"
    r"|COMMITTER_(NAME|EMAIL)|CEILING_DIRECTORIES|DISCOVERY_ACROSS_FILESYSTEM)"
)
_IDENTITY = re.compile(r"GIT_COMMITTER_\w+")
_TRACE = re.compile(r"GIT_TRACE\w*")
_USERS_SETTINGS = re.compile(r"GIT_(CONFIG_\w+|SSH|SSH_COMMAND|SSH_VARIANT|PROXY_COMMAND)")

_ALWAYS = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ASKPASS": "",
    "SSH_ASKPASS": "",
    "SSH_ASKPASS_REQUIRE": "never",
    "GIT_ALLOW_PROTOCOL": PROTOCOLS,
    "GIT_OPTIONAL_LOCKS": "0",
    # A repository can show replacement objects instead of the real ones.
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TRACE2": "0",
    "GIT_TRACE2_EVENT": "0",
    "GIT_TRACE2_PERF": "0",
    "LC_ALL": "C",
    "LANGUAGE": "C",
}

_SETTINGS = (
    "core.hooksPath=/dev/null", "core.fsmonitor=false", "core.askPass=", "core.alternateRefsCommand=true",
    "core.attributesFile=/dev/null", "core.quotePath=false", "core.logAllRefUpdates=false", "core.safecrlf=false",
    "safe.bareRepository=all",
    "protocol.ext.allow=never", "color.ui=false", "column.ui=never", "log.showSignature=false",
    "i18n.commitEncoding=UTF-8", "i18n.logOutputEncoding=UTF-8", "init.defaultRefFormat=files",
    "submodule.recurse=false", "fetch.recurseSubmodules=false", "fetch.writeCommitGraph=false", "fetch.prune=false",
    "fetch.pruneTags=false", "push.recurseSubmodules=no", "push.gpgSign=false", "push.followTags=false",
    "gc.auto=0", "maintenance.auto=false", "advice.detachedHead=false",
    "core.packedGitWindowSize=32m", "core.packedGitLimit=256m",
)  # fmt: skip

NO_FETCH: Mapping[str, str | None] = {"GIT_NO_LAZY_FETCH": "1"}
"""Environment for queries in a repository that we didn't create: nothing is fetched because of its settings."""


class GitError(GibilError):
    """git failed. `stderr`: the end of what it wrote to stderr."""

    code = "SOURCE"

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        self.stderr = stderr


class TooMuchOutput(GitError):
    """The output of a command exceeded its limit, and the command was ended."""


class TooExpensive(GitError):
    """git reached one of its Limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Resources of one git process and of each process that it starts."""

    memory_bytes: int = 192 * 1024**2
    """What it may allocate (RLIMIT_DATA). Packs that are mapped for reading don't count."""
    address_bytes: int = 2 * 1024**3
    """All of its address space, mapped files included (RLIMIT_AS)."""
    cpu_s: int = 120
    file_bytes: int = 1024**3
    """Size of each file that it writes (RLIMIT_FSIZE)."""


FOREIGN = Limits()
"""For objects that come from a machine: a few kilobytes can describe gigabytes."""
ALL_FILES = Limits(memory_bytes=1024**3, address_bytes=4 * 1024**3, cpu_s=300, file_bytes=4 * 1024**3)
"""For all files of a commit, which may be anyone's: higher, because a large project has a million files."""
_FOREIGN_SETTINGS = (
    "core.bigFileThreshold=1m", "core.deltaBaseCacheLimit=16m", "pack.windowMemory=16m", "pack.deltaCacheSize=16m",
    "pack.threads=1", "index.threads=1", "fetch.unpackLimit=1", "transfer.unpackLimit=1", "core.packedGitWindowSize=16m",
    "core.packedGitLimit=64m", "core.commitGraph=false", "core.multiPackIndex=false",
)  # fmt: skip


def environment(extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return the caller's environment without variables that redirect git, without the operator's secrets, which git's helpers
    would inherit, and with `extra` (None removes a variable).
    """
    inherited = without_secrets(os.environ)
    passed_on = {name: value for name, value in inherited.items() if not name.startswith("GIT_") or _PASSED_ON.fullmatch(name)}
    # git rejects an empty identity
    passed_on = {name: value for name, value in passed_on.items() if value or not _IDENTITY.fullmatch(name)}
    # A trace to a file is the user's choice; a trace on stderr would be read as git's error.
    traces = {name: value for name, value in os.environ.items() if _TRACE.fullmatch(name) and value.startswith("/")}
    merged: dict[str, str | None] = {**passed_on, **_ALWAYS, **traces, **(extra or {})}
    return {name: value for name, value in merged.items() if value is not None}


def anonymous_environment() -> dict[str, str | None]:
    """Return additions for a call like a machine's: without the user's configuration and credentials, over HTTP only."""
    dropped: dict[str, str | None] = {name: None for name in os.environ if _USERS_SETTINGS.fullmatch(name)}
    return {**dropped, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "GIT_ALLOW_PROTOCOL": "http:https"}


def sealed_environment(home: Path) -> dict[str, str]:
    """Return a complete environment for repositories that aren't the user's, such as the demonstration's."""
    return {
        **_ALWAYS,
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }


async def ssh_environment() -> dict[str, str]:
    """Return additions for SSH servers: the user's configuration is used, and plain `ssh` doesn't prompt."""
    if "GIT_SSH_COMMAND" in os.environ or "GIT_SSH" in os.environ:
        return {}
    with contextlib.suppress(GitError):
        if await text("config", "--get", "core.sshCommand") != "ssh":
            return {}
    return {"GIT_SSH_COMMAND": "ssh -oBatchMode=yes"}


async def start(
    *arguments: str,
    git_dir: Path | None = None,
    folder: Path | None = None,
    env: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    limits: Limits | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
    stderr: int = asyncio.subprocess.PIPE,
) -> asyncio.subprocess.Process:
    """Start git in a new session, which has no terminal. `env` is the complete environment, see `environment`.

    `folder`: the working directory, / if absent. The caller ends it with `end`.
    """
    if limits is not None:
        settings = (*_FOREIGN_SETTINGS, *settings)
    words = ["git", "--no-pager", "--literal-pathspecs"]
    for setting in (*_SETTINGS, *settings):
        words += ["-c", setting]
    if git_dir is not None:
        words.append(f"--git-dir={git_dir}")
    words += arguments
    whole = dict(environment() if env is None else env)
    if limits is not None:
        # Some systems know only some of these; each process that git starts inherits them.
        script = (
            f"ulimit -d {limits.memory_bytes // 1024} 2>/dev/null; ulimit -v {limits.address_bytes // 1024} 2>/dev/null; "
            f"ulimit -f {limits.file_bytes // 512} 2>/dev/null; "
            f'ulimit -t {limits.cpu_s} 2>/dev/null; ulimit -c 0 2>/dev/null; exec "$@"'
        )
        words = ["/bin/sh", "-c", script, "sh", *words]
        whole["MALLOC_ARENA_MAX"] = "1"
    try:
        return await asyncio.create_subprocess_exec(
            *words, stdin=stdin, stdout=asyncio.subprocess.PIPE, stderr=stderr,
            env=whole, cwd=folder or "/", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        if folder is not None and error.filename == str(folder):
            raise GitError(f"cannot enter {folder}: {error.strerror}") from error
        advice = "install it, for example: apt-get install git"
        raise GitError(f"cannot start git on this host ({error.strerror}); {advice}") from error


async def end(process: asyncio.subprocess.Process) -> None:
    """Kill git and everything that it started, if it still runs."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await asyncio.shield(ended(process))


async def ended(process: asyncio.subprocess.Process) -> None:
    """Wait for a killed process. asyncio does that until its pipes have ended, which it doesn't see while a full one isn't
    read.
    """
    for pipe in (process.stdout, process.stderr):
        with contextlib.suppress(TimeoutError, RuntimeError):  # RuntimeError: another task reads it
            async with asyncio.timeout(_PIPE_LINGERS_S):
                while pipe is not None and await pipe.read(256 * 1024):
                    pass
    await process.wait()


class GitOptions(TypedDict, total=False):
    """Options of a git call. `extra`: additions to its environment; None removes a variable. `stdin`: bytes or a descriptor."""

    git_dir: Path
    folder: Path
    extra: Mapping[str, str | None]
    settings: Sequence[str]
    limits: Limits
    stdin: bytes | int
    within_s: float


async def run(*arguments: str, most_bytes: int = MOST_BYTES, **options: Unpack[GitOptions]) -> bytes:
    """Return git's output.

    Raises GitError with git's reason, also if it takes longer than `within_s`; TooMuchOutput above `most_bytes`.
    """
    chunks: list[bytes] = []
    size = 0

    def collect(data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > most_bytes:
            raise TooMuchOutput(f"git {_verb(arguments)} printed more than {most_bytes} bytes")
        chunks.append(data)

    await feed(collect, *arguments, **options)
    return b"".join(chunks)


async def text(*arguments: str, **options: Unpack[GitOptions]) -> str:
    """As `run`, but return text without its last newline. Bytes that aren't UTF-8 become surrogates."""
    out = await run(*arguments, **options)
    return out.decode("utf-8", "surrogateescape").removesuffix("\n")


async def feed(consume: Callable[[bytes], None], *arguments: str, **options: Unpack[GitOptions]) -> None:
    """As `run`, but pass the output to `consume` as it arrives. An exception of `consume` ends git and is raised."""
    async with contextlib.aclosing(stream(*arguments, **options)) as pieces:
        async for data in pieces:
            consume(data)


async def stream(*arguments: str, **options: Unpack[GitOptions]) -> AsyncGenerator[bytes, None]:
    """Yield git's output, of any size. Raises GitError as `run` does, at the end."""
    git_dir, folder, limits = options.get("git_dir"), options.get("folder"), options.get("limits")
    stdin, within_s = options.get("stdin", b""), options.get("within_s", TIMEOUT_S)
    stderr = _Tail()
    try:
        process = await start(
            *arguments,
            git_dir=git_dir,
            folder=folder,
            env=environment(options.get("extra")),
            settings=options.get("settings", ()),
            limits=limits,
            stdin=stdin if isinstance(stdin, int) else asyncio.subprocess.PIPE if stdin else asyncio.subprocess.DEVNULL,
            stderr=stderr.writing,
        )
    finally:
        await stderr.begin()
    assert process.stdout is not None
    writing: asyncio.Task[None] | None = None
    if process.stdin is not None and isinstance(stdin, bytes):
        writing = asyncio.create_task(_write(process.stdin, stdin))
    latest = asyncio.get_running_loop().time() + within_s
    try:
        while True:
            async with asyncio.timeout_at(latest):  # a timeout must not be active during a yield
                data = await process.stdout.read(256 * 1024)
                if not data:
                    await process.wait()
                    break
            yield data
    except TimeoutError:
        where = git_dir or folder or Path("/")
        raise GitError(f"git {_verb(arguments)} in {where} didn't end within {within_s:g} s") from None
    finally:
        await end(process)
        if writing is not None:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        message = await stderr.close()
    _check(process, arguments, git_dir or folder, message, limits)


async def create_repository(path: Path) -> None:
    """Create a bare repository with SHA-1 object names, without the user's settings and templates.

    It starts no process, because a command creates several. https://git-scm.com/docs/gitrepository-layout
    """

    def create() -> None:
        for folder in ("objects/info", "objects/pack", "refs/heads", "refs/tags"):
            (path / folder).mkdir(parents=True)
        (path / "HEAD").write_text("ref: refs/heads/main\n")
        (path / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = true\n")

    await asyncio.to_thread(create)


def reason_in(stderr: str) -> str:
    """Return the line of git's stderr with the reason: the first `fatal:`, else the last line that isn't a hint."""
    lines = [line.strip() for line in stderr.split("\n")]
    lines = [line for line in lines if line and not line.startswith(("hint:", "warning:"))]
    return next((line for line in lines if line.startswith("fatal:")), lines[-1] if lines else "no reason given")


class _Tail:
    """A pipe for stderr that stores the first and last bytes.

    asyncio's subprocess pipes aren't used, because `wait` waits for those, and a background process of git may keep them open.
    Its pipe transports aren't, either: that of uvloop closes the descriptor twice, and by then it may be a file of a thread
    (https://github.com/MagicStack/uvloop/blob/master/uvloop/handles/handle.pyx, UVSocketHandle._close).
    """

    def __init__(self) -> None:
        self._stored = bytearray()
        self._ended = asyncio.Event()
        self._reading, self.writing = os.pipe()

    async def begin(self) -> None:
        """Start reading. Call it after starting the process, even if that failed."""
        os.close(self.writing)
        os.set_blocking(self._reading, False)
        asyncio.get_running_loop().add_reader(self._reading, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._reading, 16 * 1024)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._reading)
            self._ended.set()
        self._stored += data
        if len(self._stored) > _MOST_ERROR_BYTES:
            del self._stored[_MOST_ERROR_BYTES // 4 : len(self._stored) - _MOST_ERROR_BYTES // 2]

    async def close(self) -> str:
        """Return what was stored. Call it once, when git has ended."""
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), _PIPE_LINGERS_S)
        finally:
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
        return self._stored.decode("utf-8", "replace").strip()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # git ended early; its status tells why
        writer.write(data)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _check(
    process: asyncio.subprocess.Process, arguments: Sequence[str], folder: Path | None, stderr: str, limits: Limits | None
) -> None:
    if process.returncode == 0:
        return
    location = f" in {folder}" if folder is not None else ""
    failed = f"git {_verb(arguments)} failed{location}"
    if limits is not None:
        if process.returncode == -signal.SIGXCPU or f"died of signal {int(signal.SIGXCPU)}" in stderr:
            time = f"{limits.cpu_s} s of processor time"
            raise TooExpensive(f"{failed}: reading the objects needs more than {time}", stderr=stderr)
        elif (
            process.returncode == -signal.SIGXFSZ
            or f"died of signal {int(signal.SIGXFSZ)}" in stderr
            or "File too large" in stderr
        ):
            size = f"{limits.file_bytes // 1024**2} MiB"
            raise TooExpensive(f"{failed}: it would write more than {size}", stderr=stderr)
        elif "ut of memory" in stderr or "mmap failed" in stderr or "Cannot allocate memory" in stderr:
            size = f"{limits.memory_bytes // 1024**2} MiB"
            raise TooExpensive(f"{failed}: reading the objects needs more than {size} of memory", stderr=stderr)
    reason = reason_in(stderr)
    if process.returncode is not None and process.returncode < 0 and not stderr:
        reason = f"it was killed by signal {-process.returncode}"
    raise GitError(f"{failed}: {reason}", stderr=stderr)


def _verb(arguments: Sequence[str]) -> str:
    return next((word for word in arguments if not word.startswith("-")), "")
