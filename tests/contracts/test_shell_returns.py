"""The contract of every Shell for the files that a job returns (model.Job.returns), and for the output just before its end."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from gibil_bot.errors import UsageError
from gibil_bot.model import Chunk, Exit
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import Far, end_of, followed
from tests.doubles.patience import patient


async def test_returned_files_arrive_with_the_end_and_on_every_later_attach(far: Far, shell: SSHShell) -> None:
    every_byte = bytes(range(256)) * 5
    paths = {f"{far.home}/a": every_byte, f"{far.home}/with a space": b"two\nlines\n", f"{far.home}/empty": b""}
    script = (
        f"open({far.home!r} + '/a', 'wb').write(bytes(range(256)) * 5)\n"
        f"open({far.home!r} + '/with a space', 'w').write('two\\nlines\\n')\n"
        f"open({far.home!r} + '/empty', 'w')\n"
        "print('said'); raise SystemExit(3)"
    )
    missing = f"{far.home}/never-made"
    job = far.job(far.name("j"), script, shell="python", returns=(*paths, missing))
    await shell.start(job)
    assert await end_of(shell, far.name("j")) == Exit(3, {**paths, missing: b""})
    assert await end_of(shell, far.name("j")) == Exit(3, {**paths, missing: b""})
    other = await far.connect()
    assert await end_of(other, far.name("j")) == Exit(3, {**paths, missing: b""})
    await other.close()


async def test_another_connection_that_waits_for_the_end_gets_the_files(far: Far, shell: SSHShell) -> None:
    script = f"until [ -e {far.home}/go ]; do sleep 0.02; done; echo late >{far.home}/file"
    await shell.start(far.job(far.name("j"), script, returns=(f"{far.home}/file",)))
    other = await far.connect()
    ends = [asyncio.create_task(end_of(there, far.name("j"))) for there in (shell, other)]
    await shell.run(f"touch {far.home}/go")
    assert await asyncio.gather(*ends) == [Exit(0, {f"{far.home}/file": b"late\n"})] * 2
    await other.close()


async def test_a_job_that_is_killed_returns_its_files(far: Far, shell: SSHShell) -> None:
    path = f"{far.home}/file"
    await shell.start(far.job(far.name("j"), f"echo early >{path}; echo up; sleep 30", returns=(path,), merged=False))
    items = shell.attach(far.name("j"))
    assert await anext(items) == Chunk(b"up\n", 3)
    await shell.kill(far.name("j"))
    assert [item async for item in items][-1] == Exit(143, {path: b"early\n"})


async def test_special_files_do_not_block_the_end(far: Far, shell: SSHShell) -> None:
    names = {
        "fifo": "mkfifo {}",
        "folder": "mkdir {}",
        "zero": "ln -s /dev/zero {}",
        "loop": "ln -s {} {}",
        "large": "head -c 3000000 /dev/zero >{}",
    }
    script = "\n".join(command.replace("{}", f"{far.home}/{name}") for name, command in names.items())
    await shell.start(far.job(far.name("j"), script, returns=tuple(f"{far.home}/{name}" for name in names)))
    ended = await end_of(shell, far.name("j"))
    assert {path.rpartition("/")[2]: len(content) for path, content in ended.files.items()} == {
        **dict.fromkeys(names, 0),
        "large": 1024 * 1024,
    }


async def test_unsafe_paths_are_rejected(far: Far, shell: SSHShell) -> None:
    for wrong in (("relative",), ("/two\nlines",), ("/nul\0",), tuple(f"/{number}" for number in range(17))):
        with pytest.raises(UsageError):
            await shell.start(far.job(far.name("j"), "true", returns=wrong))


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 1024 * 1024 - 1, 1024 * 1024, 5_000_000])
async def test_the_output_of_a_short_job_is_exact(far: Far, shell: SSHShell, size: int) -> None:
    for word, block in (("bytes", bytes(range(256))), ("text", b"\x01\x7f\x81\xff\xc3 \n"), ("nul", b"\0")):
        times = size // len(block) + 1
        script = f"import os\nblock = ({block!r} * {times})[:{size}]\nwhile block: block = block[os.write(1, block):]"
        job_id = far.name(word)
        await shell.start(far.job(job_id, script, shell="python"))
        wanted = (block * times)[:size]
        assert await followed(shell, job_id) == (wanted, b"", 0), word
        assert await followed(shell, job_id) == (wanted, b"", 0), word


async def test_a_background_process_that_prints_endlessly_does_not_delay_the_end(far: Far, shell: SSHShell) -> None:
    job_id = f"job-{secrets.token_hex(4)}"
    await shell.start(far.job(job_id, "while :; do echo more; done & exit 5"))
    async with asyncio.timeout(patient(10)):
        async for item in shell.attach(job_id):
            if isinstance(item, Exit):
                assert item.status == 5
    await shell.kill(job_id, grace_s=0.1)
