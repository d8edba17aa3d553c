"""`import gibil`: programs use machines, with and without asyncio, and none is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import gibil
import pytest

from gibil_bot.config import Settings, load_settings
from gibil_bot.providers.local.paths import LocalPaths
from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.machines import lent_data_dir
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")
T = TypeVar("T")
SITE = Path(__file__).parents[2] / "gibil_bot" / "sdk" / "site"


@pytest.fixture
async def settings(tmp_path: Path) -> AsyncIterator[Settings]:
    async with lent_data_dir(tmp_path) as data_dir:
        yield load_settings({"GIBIL_DATA_DIR": str(data_dir)})


def left_of(settings: Settings) -> list[str]:
    return sorted(path.name for path in LocalPaths(settings.data_dir).machines.iterdir())


async def in_thread(work: Callable[[], T]) -> T:
    """Run synchronous code, without blocking the loop that serves the machines' data directory."""
    async with asyncio.timeout(patient(60)):
        return await asyncio.to_thread(work)


async def test_synchronous_code_uses_a_machine_from_several_threads(settings: Settings, tmp_path: Path) -> None:
    def program() -> None:
        with gibil.create(name="m", env={"WHO": "ada"}, settings=settings) as m:
            assert m.run("echo hello $WHO; echo oops >&2; exit 4", check=False).exit_code == 4
            assert m.run(["printf", "%s", "a b $x"], cwd="/tmp").stdout == "a b $x"
            assert m.run("cat; pwd", input="given ", cwd="/usr").stdout == "given /usr\n"
            assert m.run("echo $MORE", env={"MORE": "m"}, check=True).stdout == "m\n"
            with pytest.raises(
                gibil.CommandFailed, match=r"'echo no >&2; exit 3' on machine m ended with exit code 3: no$"
            ) as failed:
                m.run("echo no >&2; exit 3", check=True)
            assert (failed.value.code, failed.value.result.stderr) == ("COMMAND_FAILED", "no\n")
            with pytest.raises(gibil.CommandFailed, match=r"took longer than 0\.2 s") as late:
                m.run("sleep 60", timeout=0.2, check=True)
            assert (late.value.code, late.value.result.exit_code) == ("TIMEOUT", 124)
            with ThreadPoolExecutor(4) as threads:
                found = list(threads.map(lambda n: m.run(f"echo {n}").stdout, range(8)))
            assert found == [f"{n}\n" for n in range(8)]

            with m.stream("echo 1; echo 2 >&2; exit 5") as stream:
                assert {(output.stream, output.text) for output in stream} == {("stdout", "1\n"), ("stderr", "2\n")}
                assert stream.result.exit_code == 5
            with m.stream("exec -a endless sleep 600 & echo begins; wait") as stream:
                assert next(stream).text == "begins\n"
            assert m.run("grep -l '^endless' /proc/[0-9]*/cmdline").exit_code != 0  # ended with the block

            with gibil.open("m", settings=settings) as same, gibil.connect(settings=settings) as client:
                assert same.run("echo again").stdout == "again\n"
                assert [machine.name for machine in client.list()] == ["m"]
                with pytest.raises(gibil.NameTaken), client.create(name="m"):
                    pass
            before = m.expires_at
            assert m.extend("5m") == m.expires_at > before
        opening = gibil.open("m", settings=settings)
        with pytest.raises(gibil.MachineNotFound), opening:
            pass
        with pytest.raises(gibil.UsageError, match="already entered"), opening:
            pass

    await in_thread(program)
    assert left_of(settings) == []


async def test_asynchronous_code_has_the_same_methods(settings: Settings) -> None:
    async with gibil.create(name="m", settings=settings) as m:
        assert (await m.run("echo hello", check=True)).stdout == "hello\n"
        job = await m.jobs.start("echo out; echo err >&2; exit 6", timeout=60)
        assert await job.wait(timeout=60) == 6
        assert await job.output() == gibil.JobOutput(stdout="out\n", stderr="err\n")
        async with job.follow() as stream:
            assert {output.text async for output in stream} == {"out\n", "err\n"}
        assert (await (await m.jobs.get(job.id)).state()).exit_status == 6
        with pytest.raises(gibil.UsageError) as absent:
            await m.jobs.get("run-0")
        assert absent.value.code == "JOB_NOT_FOUND"
        endless = await m.jobs.start("sleep 600")
        with pytest.raises(gibil.WaitTimeout, match=r"has not ended within 0\.2 s"):
            await endless.wait(timeout=0.2)
        assert (await endless.state()).status == "running"
        await endless.stop()
        assert (await endless.state()).status != "running"
        assert await m.tasks() == []
    assert left_of(settings) == []


async def test_files_are_copied_in_both_directions(settings: Settings, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "big").write_bytes(os.urandom(3_000_000))
    (source / "run.sh").write_text("echo ran\n")
    (source / "run.sh").chmod(0o750)
    (source / "link").symlink_to("run.sh")
    async with gibil.create(name="m", settings=settings) as m:
        assert await m.files.write("notes/new.txt", "ü\n") is True
        assert await m.files.write("notes/new.txt", "more\n") is False
        assert await m.files.read("/root/notes/new.txt") == "more\n"
        await m.files.write("notes/binary", b"\xff\0")
        assert await m.files.read_bytes("notes/binary") == b"\xff\0"
        for path, code in (("absent", "FILE_NOT_FOUND"), ("notes", "NOT_A_FILE"), ("notes/binary", "BINARY_FILE")):
            with pytest.raises(gibil.UsageError) as caught:
                await m.files.read(path)
            assert caught.value.code == code
        assert [(entry.name, entry.kind) for entry in await m.files.list("notes")] == [("binary", "file"), ("new.txt", "file")]

        sent = await m.files.upload(source, "copy")
        assert (sent.files, sent.bytes, sent.left_out) == (3, 3_000_009, ())
        assert (
            await m.run("stat -c '%a %U' copy/run.sh; readlink copy/link; sh copy/link")
        ).stdout == "750 root\nrun.sh\nran\n"
        assert (await m.files.upload(source / "run.sh", "/usr/local/")).path == "/usr/local/run.sh"
        assert (await m.run("stat -c %a /usr/local/run.sh")).stdout == "750\n"

        await m.run("ln -s /etc/passwd copy/out; touch -d @1000 copy/sub/big", check=True)
        fetched = await m.files.download("copy", tmp_path / "fetched")
        assert (fetched.files, fetched.bytes, fetched.left_out_total) == (3, 3_000_009, 1)
        assert fetched.left_out == ("out: it is a link to something outside of the copied directory",)
        assert (tmp_path / "fetched" / "link").readlink() == Path("run.sh")
        assert (tmp_path / "fetched" / "sub" / "big").stat().st_mtime == 1000
        assert (tmp_path / "fetched" / "sub" / "big").read_bytes() == (source / "sub" / "big").read_bytes()
        one = await m.files.download("copy/run.sh", tmp_path)
        assert (one.path, (tmp_path / "run.sh").read_text()) == (str(tmp_path / "run.sh"), "echo ran\n")
        assert (tmp_path / "run.sh").stat().st_mode & 0o777 == 0o750
        with pytest.raises(gibil.UsageError, match="isn't an empty directory"):
            await m.files.download("copy", tmp_path / "fetched")
        with pytest.raises(gibil.UsageError, match="larger than 1 MiB"):
            await m.files.download("copy", tmp_path / "small", most_bytes=1024**2)
        with pytest.raises(gibil.UsageError, match="there is no nowhere on machine m"):
            await m.files.download("nowhere", tmp_path / "small")
        with pytest.raises(gibil.UsageError, match=r"absent can't be read: No such file"):
            await m.files.upload(tmp_path / "absent", "copy")
        with pytest.raises(gibil.GibilError):
            await m.files.upload(source, "/proc/no/such")
        assert not (tmp_path / "small").exists()
    assert not list(tmp_path.glob("**/.gibil-*"))
    assert left_of(settings) == []


async def test_a_fleet_is_created_whole_and_runs_a_command_everywhere(settings: Settings) -> None:
    async with gibil.fleet(3, name="team", settings=settings) as machines:
        assert [m.name for m in machines] == ["team-1", "team-2", "team-3"]
        found = await machines.run("hostname", check=True)
        assert [result.stdout for result in found] == ["team-1\n", "team-2\n", "team-3\n"]
        with pytest.raises(gibil.CommandFailed, match="team-2"):
            await machines.run('[ "$(hostname)" != team-2 ]', check=True)
        with pytest.raises(gibil.NameTaken):
            async with gibil.fleet(2, name="team", settings=settings):
                pass
    assert left_of(settings) == []


async def test_forks_and_templates_start_from_the_disk_of_a_machine(settings: Settings) -> None:
    async with gibil.create(name="m", env={"WHO": "ada"}, settings=settings) as m:
        await m.files.write("state", "1")
        async with m.fork(name="copy") as copy, m.fork_fleet(2, name="team", ttl="5m") as team:
            machines = [m, copy, *team]
            found = [(await each.run('cat state; echo " $WHO"; hostname', check=True)).stdout for each in machines]
            assert found == [f"1 ada\n{name}\n" for name in ("m", "copy", "team-1", "team-2")]
            await copy.files.write("state", "2")
        assert left_of(settings) == ["m"]
        job = await m.jobs.start("sleep 600")
        with pytest.raises(gibil.UsageError) as busy:
            async with m.fork():
                pass
        assert busy.value.code == "MACHINE_BUSY"
        assert (await job.state()).status == "running"
        saved = await m.save_template("ready", stop=True)
        assert isinstance(saved, gibil.Template)
        assert await m.files.read("state") == "1"
    async with gibil.connect(settings=settings) as client, client.create(template="ready", name="late") as late:
        assert await late.files.read("/root/state") == "1"
        assert [template.name for template in await client.templates()] == ["ready"]
        assert [await client.delete_template("ready") for _ in range(2)] == [True, False]
        with pytest.raises(gibil.UsageError) as absent:
            async with client.create(template="ready"):
                pass
        assert absent.value.code == "TEMPLATE_NOT_FOUND"
    assert left_of(settings) == []


async def test_ctrl_c_in_a_program_destroys_its_machine(settings: Settings, tmp_path: Path) -> None:
    program = 'import gibil\nwith gibil.create(name="m") as m:\n    print("begins", flush=True)\n    m.run("sleep 600")\n'
    environment = {**os.environ, "GIBIL_DATA_DIR": str(settings.data_dir), "PYTHONPATH": str(SITE)}
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout is not None
    async with asyncio.timeout(patient(60)):
        assert await running.stdout.readline() == b"begins\n"
        running.send_signal(signal.SIGINT)
        _, stderr = await running.communicate()
    assert running.returncode == -signal.SIGINT, stderr
    assert stderr.decode().rstrip().endswith("KeyboardInterrupt")
    assert left_of(settings) == []


async def test_commits_become_a_pull_request(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "world").mkdir()
    async with journey(tmp_path / "world", {"README.md": "an engine\n"}) as world:
        world.github.set_permission(REPOSITORY, "wes", "write")
        monkeypatch.setenv("GH_ENTERPRISE_TOKEN", world.github.personal_token("wes"))
        mine = load_settings({"GIBIL_DATA_DIR": str(settings.data_dir), "GIBIL_GITHUB_URL": world.github.url})
        async with gibil.create(name="m", repo=REPOSITORY, settings=mine) as m:
            with pytest.raises(gibil.UsageError, match="no new commit"):
                await m.push()
            await m.run("git config user.name A; git config user.email a@b; echo 2 >parser; git add .", check=True)
            await m.run(["git", "commit", "-qm", "Parse faster"], check=True)
            opened = await m.open_pull_request(draft=True)
            head = (await m.run("git rev-parse HEAD")).stdout.strip()
        assert (opened.base, opened.draft, opened.already_existed) == ("main", True, False)
        assert (opened.pushed.branch, opened.pushed.commit, opened.pushed.files) == ("gibil/m", head, ("parser",))
        (pull,) = world.github.state.repository(REPOSITORY).pull_requests()
        assert (pull.number, pull.title) == (opened.number, "Parse faster")


def test_the_loop_of_synchronous_calls_ends_with_the_program() -> None:
    program = (
        "from gibil_bot.sdk.background_loop import BACKGROUND\n"
        "async def work(): asyncio.create_task(asyncio.sleep(600))\n"
        "import asyncio; BACKGROUND.call(work())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(SITE)}
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        env=environment, capture_output=True, text=True, timeout=patient(60), check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
