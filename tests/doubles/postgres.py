"""A real PostgreSQL server for tests, in a private temporary folder: never the one that the computer may have.

    with Cluster(template) as cluster:
        url = await cluster.create_database()

PostgreSQL doesn't run as root, so root's tests run it as `nobody`. URLs are of TCP on the loopback interface, with a random
password. Without it, the server accepts only connections through a socket in the folder, which no other user may enter. Its
databases sort text as English does, and its time zone isn't UTC, so that code which depends on either fails its tests.

`postmaster.py` is the server's parent, and ends it when the tests end, even if they are killed.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import asyncpg
import pytest

from gibil_bot.providers.local.paths import locked
from tests.doubles.patience import patient

PACKAGE = "postgresql"
USER = "gibil"
"""The role of URLs: it owns its databases and may do nothing else, like an operator's."""
_ADMINISTRATOR = "postgres"
_POSTMASTER = Path(__file__).with_name("postmaster.py")
_LONGEST_FOLDER = 80
"""A socket's path has at most 107 bytes."""

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_permissions = 0700
shared_buffers = 16MB
min_wal_size = 4MB
max_connections = 100
autovacuum = off
dynamic_shared_memory_type = mmap       # files in the folder, which are deleted with it
timezone = 'Asia/Kathmandu'
log_timezone = 'UTC'
log_line_prefix = '%m [%p] %u@%d '
log_checkpoints = off
"""
_ACCESS = """
local all all trust
host all gibil 127.0.0.1/32 scram-sha-256
"""

_END_SESSIONS = "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database}'"
_SCHEMA_TABLES = "'schema_version'"
"""Tables that tell which migrations have run, so their rows stay."""
_DELETE_ROWS = f"""
set session_replication_role = replica;  -- no triggers, so that the order of tables doesn't matter
do $$
declare
    it text;
begin
    for it in
        select oid::regclass from pg_class
        where relkind = 'r' and relnamespace = 'public'::regnamespace and relname not in ({_SCHEMA_TABLES})
    loop
        execute 'delete from ' || it;
    end loop;
    perform setval(seqrelid::regclass, seqstart, false) from pg_sequence;
end
$$
"""


@dataclass(frozen=True)
class Template:
    """The installed programs, the user who runs them, and a folder that each cluster begins as a copy of."""

    programs: Path
    uid: int
    gid: int
    data: Path
    password: str


def programs() -> Path | None:
    """Return the folder of PostgreSQL's programs. Debian has those of the server outside PATH."""
    found = [Path(path) for path in (shutil.which("initdb"),) if path is not None]
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found += sorted(versions, key=lambda path: float(path.parts[4]), reverse=True)
    return next((path.resolve().parent for path in found if (path.resolve().parent / "postgres").exists()), None)


def template(shared: Path) -> Template | str:
    """Create a template in the folder that all workers share, or return why this computer can't run PostgreSQL. Blocking."""
    where = programs()
    if where is None:
        return f"PostgreSQL is missing here: apt-get install {PACKAGE}"
    try:
        user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    except KeyError:
        return f"PostgreSQL runs only as a user with a name, and uid {os.geteuid()} has none"
    shared.mkdir(mode=0o700, exist_ok=True)
    with locked(shared / "lock", wait_s=patient(60)) as mine:
        assert mine
        if not (shared / "password").exists():
            try:
                _initialise(where, user, shared)
            except OSError as error:
                return f"PostgreSQL doesn't run as root, and here no program can run as {user.pw_name}: {error}"
    return Template(where, user.pw_uid, user.pw_gid, shared / "data", (shared / "password").read_text())


def _initialise(where: Path, user: pwd.struct_passwd, shared: Path) -> None:
    folder = _new_folder(user.pw_uid, user.pw_gid)
    try:
        data, password = folder / "data", secrets.token_hex(16)
        version = _run([where / "postgres", "--version"], user, folder).split()[2]
        natural = ["--locale-provider=icu", "--icu-locale=en-US"] if float(version.split(".")[0]) >= 15 else []
        options = ["--auth=trust", "--no-sync", "--wal-segsize=1", "--encoding=UTF8", "--locale=C.UTF-8", *natural]
        _run([where / "initdb", f"--pgdata={data}", f"--username={_ADMINISTRATOR}", *options], user, folder)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS)
        (data / "pg_hba.conf").write_text(_ACCESS)
        role = f"create role {USER} login password '{password}'"
        _run([where / "postgres", "--single", "-j", "-D", data, "postgres"], user, folder, input=f"{role};\n\n")
        shutil.rmtree(shared / "data", ignore_errors=True)
        # Not shutil.move, which loses the owner if the folders are on different file systems.
        subprocess.run(["cp", "-a", str(data), str(shared / "data")], check=True)
        (shared / "password").touch(0o600)
        (shared / "password").write_text(password)
    finally:
        shutil.rmtree(folder)


def _run(command: list[Any], user: pwd.struct_passwd, folder: Path, **more: Any) -> str:
    as_user: dict[str, Any] = {}
    if user.pw_uid != os.geteuid():
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
    words: dict[str, Any] = {"capture_output": True, "text": True, **as_user, **more}
    done = subprocess.run(list(map(str, command)), cwd=folder, env=_environment(), **words)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def _environment() -> Mapping[str, str]:
    return {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


def _new_folder(uid: int, gid: int) -> Path:
    """Create a folder that only this user can enter. pytest's folders don't admit the other user, and have long names."""
    for parent in (Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")):
        path = parent.resolve()
        if len(str(path)) < _LONGEST_FOLDER and (
            uid == os.geteuid() or all(each.stat().st_mode & 0o001 for each in (path, *path.parents))
        ):
            break
    folder = Path(tempfile.mkdtemp(prefix="gibil-pg-", dir=path))
    try:
        os.chown(folder, uid, gid)
    except OSError:
        folder.rmdir()
        raise
    return folder


class Cluster:
    """A PostgreSQL server with databases. A block starts it and deletes it; the port stays the same in between.

    `start`, `stop`, `kill` and `restart` block. `settings`: lines of postgresql.conf in addition.
    """

    def __init__(self, template: Template, *, settings: str = "") -> None:
        self._template = template
        self.folder = _new_folder(template.uid, template.gid)
        data = self.folder / "data"
        subprocess.run(["cp", "-a", str(template.data), str(data)], check=True)
        # Bound, so that no other process receives the port, not even while the server is stopped; the option lets the server
        # bind to it, too.
        self._port_holder = socket.socket()
        self._port_holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port_holder.bind(("127.0.0.1", 0))
        self.port = int(self._port_holder.getsockname()[1])
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\nunix_socket_directories = '{self.folder}'\n{settings}\n")
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [
                *(sys.executable, "-IS", _POSTMASTER, theirs.fileno(), self.folder, template.uid, template.gid),
                *(template.programs / "postgres", "-D", data),
            ]
            self._parent = subprocess.Popen(
                list(map(str, command)),
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._lendable: list[str] = []
        self.running = False

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it accepts connections."""
        self._channel.send(b"start")
        message = self._message()
        assert message == "ready", f"PostgreSQL ended at its start:\n{self.log()}"
        self.running = True

    def stop(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop it. `smart` waits for the clients, `fast` ends their sessions, `immediate` is a crash that it notices."""
        number = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how]
        self._end(str(int(number)))

    def kill(self) -> None:
        """Kill all its processes at once, with SIGKILL."""
        self._end("crash")

    def restart(self, how: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(how)
        self.start()

    def close(self) -> None:
        """End it and delete its folder. Safe to repeat."""
        self._channel.close()
        self._port_holder.close()
        self._parent.wait(patient(60))
        self.running = False

    def log(self) -> str:
        """Return what the server has logged."""
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def url(self, database: str, *, port: int | None = None) -> str:
        """Return the URL of a database, directly or through the port of a relay."""
        return f"postgresql://{USER}:{self._template.password}@127.0.0.1:{port or self.port}/{database}"

    async def create_database(self, template: str = "template1") -> str:
        """Create a database and return its name. `template`: one that no client is connected to."""
        name = f"test_{secrets.token_hex(6)}"
        await self.execute(f"create database {name} owner {USER} template {template}")
        return name

    async def drop_database(self, name: str) -> None:
        """End its clients' sessions and drop it."""
        await self.execute(f"drop database {name} with (force)")

    @contextlib.asynccontextmanager
    async def lend_database(self) -> AsyncIterator[str]:
        """Lend a database without rows, in which an earlier borrower may have created the tables. Yields its name.

        Creating and dropping one takes 200 times longer than deleting a test's rows.
        """
        name = self._lendable.pop() if self._lendable else await self.create_database()
        yield name
        await self.end_sessions(name)
        await self.execute(_DELETE_ROWS, database=name)
        self._lendable.append(name)

    async def end_sessions(self, database: str) -> None:
        """End the sessions of a database's clients."""
        await self.execute(_END_SESSIONS.format(database=database))

    async def execute(self, statement: str, *, database: str = "postgres") -> None:
        """Execute one statement as the server's administrator."""
        connection = await self.connect(database)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def connect(self, database: str) -> asyncpg.Connection:
        """Connect as the server's administrator."""
        return await asyncpg.connect(host=str(self.folder), port=self.port, user=_ADMINISTRATOR, database=database)

    def _end(self, request: str) -> None:
        assert self.running
        self.running = False
        self._channel.send(request.encode())
        message = self._message()
        assert message == "ended", message

    def _message(self) -> str:
        self._channel.settimeout(patient(30))
        return self._channel.recv(16).decode()


def available(found: Template | str) -> Template:
    """Return the template, or skip the test with the reason why there is none."""
    if isinstance(found, str):
        pytest.skip(found)
    return found
