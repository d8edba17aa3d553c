"""Jobs and commands can open the standard streams by name, and lose no output by it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from gibil_bot.errors import UsageError
from gibil_bot.model import Chunk, Exit
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import Far, followed
from tests.doubles.patience import patient

NAMES = ("/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1", "/proc/self/fd/2")
WAYS = (
    "echo @MARK@ >@NAME@",
    "echo @MARK@ >>@NAME@",
    "echo @MARK@ 1<>@NAME@",
    "echo @MARK@ | tee @NAME@",
    "echo @MARK@ | tee -a @NAME@",
    "echo @MARK@ | cp --no-target-directory /proc/self/fd/0 @NAME@",
    "echo @MARK@ | dd of=@NAME@ status=none",
    "printf '' >@NAME@; echo @MARK@",
    "truncate -s 0 @NAME@ 2>/dev/null || :; echo @MARK@",
    "truncate -s 0 /proc/$$/fd/1 2>/dev/null || :; echo @MARK@",
    "echo @MARK@ | sed -n 'w @NAME@'",
    "bash -c 'exec 7>@NAME@; echo @MARK@ >&7'",
    'python3 -c \'open("@NAME@", "w").write("@MARK@\\n")\'',
    'python3 -c \'import os; f = os.open("@NAME@", os.O_RDWR); os.write(f, b"@MARK@\\n")\'',
    "python3 -c 'import os, contextlib as c\nwith c.suppress(OSError): os.ftruncate(1, 0)\n"
    'with c.suppress(OSError): os.lseek(1, 0, 0)\nos.write(1, b"@MARK@\\n")\'',
)


def _script() -> tuple[str, list[str]]:
    """Return a script that writes to each name in every way, and the lines expected of it. `set -e` shows failures early."""
    lines, marks = ["set -e"], []
    for number, (way, name) in enumerate(itertools.product(WAYS, NAMES)):
        marks.append(f"mark-{number:03}")
        lines += [f"echo before-{number:03}", way.replace("@MARK@", marks[-1]).replace("@NAME@", name)]
    return "\n".join([*lines, "echo reached\n"]), marks


def _check(output: bytes, marks: list[str]) -> None:
    lines = output.decode().splitlines()
    assert [line for line in lines if line.startswith("before-")] == [f"before-{number:03}" for number in range(len(marks))]
    assert sorted({line for line in lines if line.startswith("mark-")}) == marks
    assert lines[-1] == "reached"
    assert set(lines) == {*marks, "reached", *(line for line in lines if line.startswith("before-"))}


async def test_a_job_that_opens_its_output_by_name_loses_no_output(far: Far, shell: SSHShell) -> None:
    script, marks = _script()
    await shell.start(far.job("job-1", script))
    output, _, status = await followed(shell, "job-1")
    assert status == 0, output.decode()
    _check(output, marks)
    assert await followed(shell, "job-1") == (output, b"", 0), "a later reader gets the same"


async def test_a_job_with_two_streams_can_open_each_by_name(far: Far, shell: SSHShell) -> None:
    script = "echo o1; echo e1 >&2; echo o2 >/dev/stdout; echo e2 >/dev/stderr; echo o3 | tee /dev/stderr; echo o4; echo e4 >&2"
    await shell.start(far.job("job-1", script, merged=False))
    assert await followed(shell, "job-1") == (b"o1\no2\no3\no4\n", b"e1\ne2\no3\ne4\n", 0)


async def test_a_command_that_opens_its_output_by_name_loses_no_output(far: Far, shell: SSHShell) -> None:
    script, marks = _script()
    await shell.put(f"{far.home}/script", script.encode())
    result = await shell.run(f"bash {far.home}/script 2>&1")
    assert result.exit_status == 0, result.stdout.decode()
    _check(result.stdout, marks)


async def test_a_command_can_write_to_each_stream_by_name(shell: SSHShell) -> None:
    result = await shell.run(
        "set -e; echo warn >/dev/stderr; echo out >/dev/stdout; echo a | tee /dev/stderr | cat; echo reached"
    )
    assert (result.exit_status, result.stdout, result.stderr) == (0, b"out\na\nreached\n", b"warn\na\n")


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
async def test_a_command_can_read_its_input_by_name(shell: SSHShell, name: str) -> None:
    for script in (f"cat {name}", f"cat <{name}", f'python3 -c \'print(open("{name}").read(), end="")\'', f"tee <{name}"):
        result = await shell.run(script, stdin=b"one\ntwo\n")
        assert (result.exit_status, result.stdout) == (0, b"one\ntwo\n"), (script, result.stderr)


async def test_output_just_before_the_end_is_not_lost(far: Far, shell: SSHShell) -> None:
    for number, size in enumerate((1, 65_536, 1_000_000)):
        await shell.start(far.job(f"job-{number}", f"head -c {size} /dev/zero; printf end >/dev/stderr; kill -9 $$"))
        output, _, status = await followed(shell, f"job-{number}")
        assert (output, status) == (bytes(size) + b"end", 137)


async def test_a_remaining_process_with_the_output_open_does_not_delay_the_end(far: Far, shell: SSHShell) -> None:
    mark = far.name("left")
    await shell.start(far.job(mark, "echo first; setsid sleep 60 & echo last"))
    async with asyncio.timeout(patient(30)):
        assert await followed(shell, mark) == (b"first\nlast\n", b"", 0)
        assert await followed(shell, mark) == (b"first\nlast\n", b"", 0)
    await shell.kill(mark, grace_s=0)


async def test_output_after_the_end_is_not_part_of_the_job(far: Far, shell: SSHShell) -> None:
    mark = far.name("late")
    fifo = f"{far.home}/fifo"
    await shell.start(
        far.job(mark, f"mkfifo {fifo}; (read x <{fifo}; echo late; echo done >{fifo}.2) & mkfifo {fifo}.2; echo in time")
    )
    assert await followed(shell, mark) == (b"in time\n", b"", 0)
    assert (await shell.run(f"echo go >{fifo}; read x <{fifo}.2; echo $x")).stdout == b"done\n", "the process can still print"
    assert (await followed(shell, mark))[2] == 0


async def test_offsets_stay_exact_however_the_output_is_opened(far: Far, shell: SSHShell) -> None:
    script, _ = _script()
    await shell.start(far.job("job-1", script))
    whole = (await followed(shell, "job-1"))[0]
    for offset in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        rest = b""
        async for item in shell.attach("job-1", stdout_from=offset):
            if isinstance(item, Chunk):
                rest += item.data
                assert item.offset == offset + len(rest)
            else:
                assert isinstance(item, Exit)
        assert rest == whole[offset:]


async def test_a_job_that_exceeds_its_output_limit_is_stopped_and_its_end_reports_it(far: Far, shell: SSHShell) -> None:
    most = 1024 * 1024
    await shell.start(far.job("job-1", "yes", most_output_bytes=most))
    async with asyncio.timeout(patient(60)):
        items = [item async for item in shell.attach("job-1")]
    assert sum(len(item.data) for item in items if isinstance(item, Chunk)) == most
    assert items[-1] == Exit(141, output_cut=True)
    assert await shell.wait("job-1") == Exit(141, output_cut=True)


async def test_a_jobs_end_can_be_awaited_without_its_output(far: Far, shell: SSHShell) -> None:
    fifo = f"{far.home}/fifo"
    await shell.start(far.job("job-1", f"mkfifo {fifo}; head -c 3000000 /dev/zero; read x <{fifo}; exit 7"))
    waiting = asyncio.create_task(shell.wait("job-1"))
    assert (await shell.run(f"while [ ! -p {fifo} ]; do sleep 0.01; done; echo go >{fifo}")).exit_status == 0
    async with asyncio.timeout(patient(30)):
        assert await waiting == Exit(7)


@pytest.mark.parametrize("script", ["", " ", "\n\t\n"])
async def test_a_blank_command_is_an_error_and_runs_nothing(shell: SSHShell, script: str) -> None:
    with pytest.raises(UsageError, match="no command"):
        await shell.run(script)
