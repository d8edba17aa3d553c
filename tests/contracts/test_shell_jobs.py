"""The contract of every Shell for detached jobs (ports.Shell: start, attach, kill)."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.errors import JobNotStarted, MachineLost, UsageError
from gibil_bot.model import Chunk, Exit
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import Far, alive, far_machine, followed
from tests.doubles.cable import cable
from tests.doubles.patience import patient


async def start(far: Far, on: SSHShell, script: str, **more: object) -> str:
    job = far.job(f"job-{secrets.token_hex(4)}", script, **more)
    await on.start(job)
    return job.id


@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("false", 1), ("exit 77", 77), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143), ("false | true", 1)],
)
async def test_a_job_returns_its_exit_status(far: Far, shell: SSHShell, script: str, status: int) -> None:
    assert (await followed(shell, await start(far, shell, script)))[2] == status


@pytest.mark.parametrize(
    ("script", "status"), [("true", 0), ("exit 77", 77), ("kill -9 $$", 137), ("kill $$", 143), ("setsid sleep 60 & exit 5", 5)]
)
async def test_a_job_with_a_terminal_returns_its_exit_status(far: Far, shell: SSHShell, script: str, status: int) -> None:
    job_id = await start(far, shell, f"tty >&2; stty size; {script}", tty=True)
    output, _, ended = await followed(shell, job_id)
    terminal, size = output.split(b"\n")[:2]
    assert terminal.startswith(b"/dev/pts/")
    assert (size, ended) == (b"50 160", status)


async def test_a_job_with_a_terminal_has_one_stream(far: Far, shell: SSHShell) -> None:
    with pytest.raises(UsageError, match="only one output stream"):
        await start(far, shell, "true", tty=True, merged=False)


async def test_streams_are_merged_or_separate_as_requested(far: Far, shell: SSHShell) -> None:
    script = "echo out 1; echo err 1 >&2; echo out 2; exit 3"
    assert await followed(shell, await start(far, shell, script)) == (b"out 1\nerr 1\nout 2\n", b"", 3)
    assert await followed(shell, await start(far, shell, script, merged=False)) == (b"out 1\nout 2\n", b"err 1\n", 3)


async def test_a_job_may_use_another_shell(far: Far, shell: SSHShell) -> None:
    cases = {
        "sh": ("echo $0", b"script."),
        "bash": ("echo $BASH_VERSION", b"."),
        "python": ("import sys; print(sys.version_info.major)", b"3\n"),
        "bash -c 'echo \"$0 $1\" templates' x {0}": ("", b"/script."),
    }
    for name, (script, expected) in cases.items():
        output, _, status = await followed(shell, await start(far, shell, script, shell=name))
        assert expected in output, name
        assert status == 0
    for wrong in ("zsh", "bash '{0}", ""):
        with pytest.raises(UsageError):
            await start(far, shell, "true", shell=wrong)
    for wrong_id in ("", "../x", "a b", "a\n", ".", "x" * 200):
        with pytest.raises(UsageError):
            await shell.start(far.job(wrong_id, "true"))


async def test_a_missing_interpreter_or_folder_is_reported_in_the_output(far: Far, shell: SSHShell) -> None:
    output, _, status = await followed(shell, await start(far, shell, "", shell="no-such-interpreter {0}"))
    # 126 if a directory on PATH can't be entered
    assert (b"no-such-interpreter" in output, status in (126, 127)) == (True, True)
    job = replace(far.job(far.name("nowhere"), "true"), working_directory="/no/such/folder")
    with pytest.raises(JobNotStarted, match="the working directory /no/such/folder does not exist"):
        await shell.start(job)


async def test_a_jobs_environment_arrives_exactly(far: Far, shell: SSHShell) -> None:
    env = {
        "ODD": "quote ' \" $HOME `id` \\ \n second\n\tüñ\x01\x81",
        "PATH": "/usr/bin:/bin",
        "HOME": "/",
        **{name: name for name in ("e", "j", "n", "r", "s", "script", "gibil", "IFS_")},
    }
    script = (
        "import os, sys\nfor name in sys.stdin.read().split() or os.environ: print(repr((name, os.environb[name.encode()])))"
    )
    output, _, status = await followed(shell, await start(far, shell, script, shell="python", env=env))
    assert status == 0
    seen = dict(eval(line) for line in output.decode().splitlines())
    for name, value in env.items():
        assert seen[name] == value.encode(), name
    assert "gibil_env" not in seen
    assert seen["GIBIL_JOB"].startswith(b"job-")


async def test_secrets_and_scripts_are_in_no_argv_and_secrets_on_no_disk(far: Far, shell: SSHShell) -> None:
    token, marker = secrets.token_hex(16), secrets.token_hex(16)
    await shell.run(f"mkfifo {far.home}/go")
    job_id = await start(far, shell, f"# {marker}\necho ${{#TOKEN}}; read -r word <{far.home}/go", env={"TOKEN": token})
    items = shell.attach(job_id)
    assert await anext(items) == Chunk(b"32\n", 3)
    # The job is now waiting for the pipe and can be inspected.
    assert await alive(shell, token) == 0
    assert await alive(shell, marker) == 0
    found = await shell.run("grep -rlF -f - $HOME/.gibil | wc -l", stdin=token.encode() + b"\n")
    assert int(found.stdout) == 0
    found = await shell.run(
        "cd $HOME/.gibil/jobs; grep -rlF -f - . | xargs stat -c %a; stat -c %a *", stdin=marker.encode() + b"\n"
    )
    assert found.stdout.split() == [b"600", b"700"]  # the script, in its folder
    await shell.run(f"echo >{far.home}/go")
    assert [item async for item in items] == [Exit(0)]


async def test_a_job_is_started_once(far: Far, shell: SSHShell) -> None:
    job = far.job(far.name("once"), f"echo run >>{far.home}/runs; sleep 0.2")
    await asyncio.gather(*(shell.start(job) for _ in range(5)))
    await shell.start(job)
    assert (await followed(shell, job.id))[2] == 0
    await shell.start(job)
    assert (await followed(shell, job.id))[2] == 0
    assert (await shell.run(f"cat {far.home}/runs")).stdout == b"run\n"


async def test_a_job_does_not_ignore_sigint_and_sigquit(far: Far, shell: SSHShell) -> None:
    output, _, _ = await followed(shell, await start(far, shell, "grep SigIgn /proc/self/status"))
    assert int(output.split()[1], 16) & 0b110 == 0  # SIGINT, SIGQUIT


async def test_output_is_streamed_and_the_end_is_reported_at_once(far: Far, shell: SSHShell) -> None:
    job_id = await start(far, shell, f"echo first; until [ -e {far.home}/go ]; do sleep 0.02; done; echo last")
    items = shell.attach(job_id)
    first = await asyncio.wait_for(anext(items), patient(5))
    assert first == Chunk(b"first\n", 6)
    await shell.run(f"touch {far.home}/go")
    async with asyncio.timeout(patient(5)):
        assert [item async for item in items] == [Chunk(b"last\n", 11), Exit(0)]


async def test_a_background_process_does_not_delay_its_job(far: Far, shell: SSHShell) -> None:
    marker = f"30000.{secrets.randbelow(10**9)}"
    job_id = await start(far, shell, f"echo done; sleep {marker} & exit 5")
    async with asyncio.timeout(patient(5)):
        assert await followed(shell, job_id) == (b"done\n", b"", 5)
    await shell.kill(job_id, grace_s=0.1)
    assert await alive(shell, marker) == 0


async def test_an_ended_job_can_be_read_again_from_any_offset(far: Far, shell: SSHShell) -> None:
    job_id = await start(far, shell, "printf 0123456789; printf abcdef >&2; exit 9", merged=False)
    assert (await followed(shell, job_id))[2] == 9
    for stdout_from, stderr_from in ((0, 0), (4, 2), (10, 6)):
        items = [item async for item in shell.attach(job_id, stdout_from=stdout_from, stderr_from=stderr_from)]
        assert items[-1] == Exit(9)
        chunks = [item for item in items if isinstance(item, Chunk)]
        assert b"".join(c.data for c in chunks if c.stream == "stdout") == b"0123456789"[stdout_from:]
        assert b"".join(c.data for c in chunks if c.stream == "stderr") == b"abcdef"[stderr_from:]


async def test_several_clients_can_follow_one_job(far: Far, shell: SSHShell) -> None:
    job_id = await start(far, shell, "for i in 1 2 3 4 5; do echo $i; sleep 0.05; done")
    assert len({await done for done in asyncio.as_completed([followed(shell, job_id) for _ in range(4)])}) == 1


async def test_twenty_megabytes_of_all_byte_values_arrive_exactly(far: Far, shell: SSHShell) -> None:
    script = "import os, sys\nfor i in range(80): os.write(1, bytes(range(256)) * 1024)"
    output, _, status = await followed(shell, await start(far, shell, script, shell="python"))
    assert status == 0
    assert hashlib.sha256(output).digest() == hashlib.sha256(bytes(range(256)) * 1024 * 80).digest()


async def test_a_slow_reader_gets_all_output(far: Far, shell: SSHShell) -> None:
    job_id = await start(far, shell, "import os\nfor i in range(200): os.write(1, b'%07d\\n' % i * 16384)", shell="python")
    digest, size = hashlib.sha256(), 0
    async for item in shell.attach(job_id):
        if isinstance(item, Chunk):
            digest.update(item.data)
            size += len(item.data)
            await asyncio.sleep(0.01)
    wanted = b"".join(b"%07d\n" % number * 16384 for number in range(200))
    assert (size, digest.digest()) == (len(wanted), hashlib.sha256(wanted).digest())


COUNT = """i=0
while [ $i -lt 3000 ]; do
    i=$((i+1)); echo line $i; echo error $i >&2
    if [ $((i % 10)) = 0 ]; then sleep 0.002; fi
done
exit 7
"""


def counted(word: str) -> bytes:
    return b"".join(f"{word} {number}\n".encode() for number in range(1, 3001))


async def test_output_is_exact_when_the_connection_is_lost_three_times(far: Far, shell: SSHShell) -> None:
    job_id = await start(far, shell, COUNT, merged=False, shell="sh")
    output = {"stdout": b"", "stderr": b""}
    breaks = 0
    status = None
    async with cable(far.endpoint, far.folder) as line:
        while status is None:
            follower = await far.connect(line.endpoint)
            try:
                async for item in follower.attach(job_id, stdout_from=len(output["stdout"]), stderr_from=len(output["stderr"])):
                    if isinstance(item, Exit):
                        status = item.status
                        continue
                    output[item.stream] += item.data
                    if breaks < 3 and len(output["stdout"]) > (breaks + 1) * 8000:
                        breaks += 1
                        line.cut()
            except MachineLost:
                pass
            finally:
                await follower.close()
    assert (breaks, status) == (3, 7)
    assert output == {"stdout": counted("line"), "stderr": counted("error")}


FOLLOWER = """
import asyncio, os, pathlib, sys
from gibil_bot.ssh.client import connect
from gibil_bot.model import Chunk, Endpoint

async def main(host_key, username, host, port, unix_path, job, log):
    endpoint = Endpoint(host_key=host_key, username=username, host=host or None, port=int(port), unix_path=unix_path or None)
    shell = await connect(endpoint, sys.stdin.read())
    with open(log, "ab", buffering=0) as file:
        async for item in shell.attach(job, stdout_from=os.path.getsize(log)):
            if isinstance(item, Chunk):
                file.write(item.data)
                print(item.offset, flush=True)
            else:
                print("exit", item.status, flush=True)
    await shell.close()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_output_is_exact_when_the_client_is_killed_three_times(far: Far, shell: SSHShell, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    job_id = await start(far, shell, COUNT.replace(">&2", ">/dev/null"), shell="sh")
    endpoint = far.endpoint
    for kills in range(4):
        client = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FOLLOWER,
            endpoint.host_key,
            endpoint.username,
            endpoint.host or "",
            str(endpoint.port),
            endpoint.unix_path or "",
            job_id,
            str(log),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(far.client_key.encode())
        client.stdin.close()
        message = await client.stdout.readline()
        if kills < 3:
            client.kill()
        message += await client.stdout.read()
        await client.wait()
    assert client.returncode == 0
    assert message.endswith(b"exit 7\n")
    assert log.read_bytes() == counted("line")


async def test_a_job_survives_the_connection_that_started_it(far: Far) -> None:
    async with cable(far.endpoint, far.folder) as line:
        first = await far.connect(line.endpoint)
        job_id = await start(far, first, "sleep 0.5; echo alive; exit 4")
        line.cut()
        await first.close()
    second = await far.connect()
    assert await followed(second, job_id) == (b"alive\n", b"", 4)
    await second.close()


async def test_a_lost_connection_does_not_end_the_job(far: Far) -> None:
    async with cable(far.endpoint, far.folder) as line:
        shell = await far.connect(line.endpoint)
        items = shell.attach(await start(far, shell, "echo x; sleep 0.5; exit 4"))
        assert await anext(items) == Chunk(b"x\n", 2)
        line.cut()
        with pytest.raises(MachineLost):
            await anext(items)
        await shell.close()


async def test_a_job_whose_supervisor_was_killed_is_lost(far: Far, shell: SSHShell) -> None:
    marker = f"30000.{secrets.randbelow(10**9)}"
    job_id = await start(far, shell, f"echo begun; sleep {marker}")
    items = shell.attach(job_id)
    assert await asyncio.wait_for(anext(items), patient(5)) == Chunk(b"begun\n", 6)
    await shell.run(f"kill -9 $(cat $HOME/.gibil/jobs/{job_id}/pid)")
    async with asyncio.timeout(patient(5)):
        with pytest.raises(MachineLost, match="vanished"):
            await anext(items)
        with pytest.raises(MachineLost, match="vanished"):
            await followed(shell, job_id)
    await shell.kill(job_id, grace_s=0.1)
    assert await alive(shell, marker) == 0


async def test_an_unknown_job_is_lost(shell: SSHShell) -> None:
    with pytest.raises(MachineLost, match="no job"):
        await followed(shell, "never-started")
    await shell.kill("never-started")


@pytest.mark.parametrize(
    "script",
    [
        "sleep {}",
        "setsid sleep {} & sleep {}",
        "(setsid sleep {} &); (env -i setsid sleep {} & sleep {})",
        "env -i sleep {} & (env -i sleep {} &); sleep {}",
        "setsid -f sh -c 'setsid sleep {} & sleep {}'; sleep {}",
    ],
)
@pytest.mark.parametrize("tty", [False, True], ids=["", "tty"])
async def test_killing_a_job_leaves_no_process(far: Far, shell: SSHShell, script: str, tty: bool) -> None:
    marker = f"30000.{secrets.randbelow(10**9)}"
    job_id = await start(far, shell, f"echo up; {script.replace('{}', marker)}", tty=tty)
    items = shell.attach(job_id)
    assert await anext(items) == Chunk(b"up\n", 3)
    await shell.kill(job_id, grace_s=5)
    assert await alive(shell, marker) == 0
    async with asyncio.timeout(patient(5)):
        assert [item async for item in items][-1] == Exit(143)
    await shell.kill(job_id)


async def test_a_job_that_ignores_sigterm_is_killed_after_the_grace(far: Far, shell: SSHShell) -> None:
    job_id = await start(far, shell, "trap '' TERM; echo up; while :; do sleep 0.05; done")
    items = shell.attach(job_id)
    assert await anext(items) == Chunk(b"up\n", 3)
    began = time.monotonic()
    await shell.kill(job_id, grace_s=0.5)
    assert 0.4 < time.monotonic() - began < patient(10)
    async with asyncio.timeout(patient(5)):
        assert [item async for item in items][-1] == Exit(137)


async def test_killing_a_job_spares_jobs_with_similar_names(far: Far, shell: SSHShell) -> None:
    base = far.name("a")
    one, *others = names = (f"{base}.1", f"{base}.10", f"{base}X1", f"b-{base}.1")
    for name in names:
        await shell.start(far.job(name, "sleep 30"))
    await shell.kill(one, grace_s=1)
    states = await shell.run(f"cd $HOME/.gibil/jobs; for j in {' '.join(names)}; do cat $j/rc; done")
    assert states.stdout.split() == [b"143", b"...", b"...", b"..."]
    for name in others:
        await shell.kill(name, grace_s=1)


async def test_a_job_may_signal_its_own_process_group(far: Far, shell: SSHShell) -> None:
    output, _, status = await followed(shell, await start(far, shell, "trap 'echo bye; exit 6' TERM; sleep 30 & kill 0; wait"))
    assert (b"bye" in output, status) == (True, 6)
    assert (await followed(shell, await start(far, shell, "kill -9 0")))[2] == 137


async def test_a_hundred_concurrent_jobs_succeed(far: Far, shell: SSHShell) -> None:
    async def one(number: int) -> tuple[bytes, bytes, int]:
        job_id = await start(far, shell, f"echo {number}; exit {number % 5}")
        return await followed(shell, job_id)

    results = await asyncio.gather(*(one(number) for number in range(100)))
    assert results == [(b"%d\n" % number, b"", number % 5) for number in range(100)]


async def test_the_exit_status_is_known_although_the_disk_is_full(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The job folder is on a file system of 256 KiB. The job fills it, and its exit status is still known."""
    if os.geteuid() != 0:
        pytest.skip("a small file system is mounted for this test, which needs root")
    async with far_machine("inside", tmp_path_factory) as far:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "gibil-test", far.home], capture_output=True)
        if mounted.returncode != 0:
            pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            shell = await far.connect()
            async with asyncio.timeout(patient(20)):
                job_id = await start(far, shell, "head -c 1000000 /dev/zero; exit 42")
                for _ in range(2):  # while it runs, and afterwards
                    items = [item async for item in shell.attach(job_id)]
                    assert 0 < sum(len(item.data) for item in items if isinstance(item, Chunk)) < 262144
                    assert items[-1] == Exit(42, output_cut=True)
                with pytest.raises(JobNotStarted, match="disk full"):
                    await start(far, shell, "#" * 100_000)
            await shell.close()
        finally:
            subprocess.run(["umount", "-l", far.home], check=True)
