"""A task on a local machine can't change another task's recorded result: PID 1 started it, and reports its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gibil_bot.model import Chunk, Exit
from gibil_bot.ssh import shell as machine_shell
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import Far, end_of, far_machine

pytestmark = pytest.mark.usefixtures("local_machines")

FORGE = """
i=0
while [ $i -lt 100 ]; do
    for f in /proc/[0-9]*/fd/1 /proc/[0-9]*/fd/2; do
        p=${f#/proc/}; p=${p%%/*}
        [ $p = $$ ] || [ $p = 1 ] || printf 'gibil:exit 0 0\\n' 2>/dev/null >"$f"
    done 2>/dev/null
    sleep 0.02
    i=$((i + 1))
done
exit 7
"""
FAKE = """#!/bin/sh
echo gibil:started >&2
echo gibil:exit 0 0 >&2
exit 0
"""


@pytest.fixture
async def far(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Far]:
    async with far_machine("local", tmp_path_factory) as machine:
        yield machine


async def result(shell: SSHShell, job_id: str) -> Exit:
    return await end_of(shell, job_id, within_s=60)


async def test_an_end_written_into_the_followed_stream_is_not_believed(far: Far, shell: SSHShell) -> None:
    await shell.start(far.job("job-1", FORGE, shell="sh"))
    assert (await result(shell, "job-1")).status == 7
    assert (await shell.wait("job-1")).status == 7


async def test_replaced_tools_do_not_change_a_later_jobs_result(far: Far, shell: SSHShell) -> None:
    await shell.put("/root/fake", FAKE.encode(), mode=0o755)
    tools = "bash setsid flock tail stat base64 tee head mkdir sleep cat"
    await shell.start(far.job("job-1", f"for t in {tools}; do rm -f /usr/bin/$t; cp /root/fake /usr/bin/$t; done; exit 0"))
    assert (await result(shell, "job-1")).status == 0
    await shell.start(far.job("job-2", "exit 5", shell="/usr/bin/dash -e {0}"))
    assert (await result(shell, "job-2")).status == 5
    assert (await shell.wait("job-2")).status == 5


async def test_a_rewritten_record_does_not_change_the_result(far: Far, shell: SSHShell) -> None:
    record = "$HOME/.gibil/jobs/job-1/rc"
    script = f"(while :; do echo '0      ' 1<>{record}; sleep 0.01; done) & sleep 0.3; exit 6"
    await shell.start(far.job("job-1", script))
    assert (await result(shell, "job-1")).status == 6
    other = await far.connect()
    try:
        assert (await result(other, "job-1")).status == 6
    finally:
        await other.close()


async def test_a_job_whose_files_are_removed_keeps_its_result(far: Far, shell: SSHShell) -> None:
    await shell.start(far.job("job-1", "rm -rf $HOME/.gibil; sleep 0.3; exit 4"))
    assert (await result(shell, "job-1")).status == 4


async def test_a_job_is_never_started_twice_whatever_happens_to_its_files(far: Far, shell: SSHShell) -> None:
    await shell.start(far.job("job-1", "echo ran >>/root/ran; rm -rf $HOME/.gibil; exit 4"))
    assert (await result(shell, "job-1")).status == 4
    await shell.start(far.job("job-1", "echo ran >>/root/ran; exit 0"))
    assert (await result(shell, "job-1")).status == 4
    assert (await shell.run("cat /root/ran")).stdout == b"ran\n"


async def test_links_and_pipes_instead_of_a_jobs_files_block_nothing(far: Far, shell: SSHShell) -> None:
    jobs = "$HOME/.gibil/jobs"
    await shell.run(
        f"mkdir -p {jobs}/a {jobs}/b; mkfifo {jobs}/.a.lock {jobs}/b/out {jobs}/b/pid; ln -s /root/victim {jobs}/a/out"
    )
    for name in ("a", "b", "c"):
        try:
            await shell.start(far.job(name, "echo words; exit 3"))
        except Exception as error:
            assert "could not start job" in str(error)  # noqa: PT017
        else:
            assert (await result(shell, name)).status == 3
    assert (await shell.run("test -e /root/victim")).exit_status != 0


async def test_a_job_that_stops_its_recorder_ends_when_it_ends(far: Far, shell: SSHShell) -> None:
    script = 'echo before; kill -STOP $(cat "$HOME/.gibil/jobs/$GIBIL_JOB/pid"); head -c 300000 /dev/zero; echo after; exit 4'
    await shell.start(far.job("job-1", script))
    async with asyncio.timeout(60):
        items = [item async for item in shell.attach("job-1")]
    assert isinstance(items[-1], Exit)
    assert (items[-1].status, items[-1].output_cut) == (4, False)
    output = b"".join(item.data for item in items if isinstance(item, Chunk))
    assert output.startswith(b"before\n")
    assert output.endswith(b"after\n")


async def test_a_process_that_stops_the_tools_of_later_jobs_does_not_block_them(
    far: Far, shell: SSHShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_shell, "_SILENT_S", 1.0)
    stopper = (
        "(while :; do for p in /proc/[0-9]*; do read -r n <$p/comm; case $n in tail|flock) kill -STOP ${p#/proc/};; esac; done;"
        " sleep 0.01; done) >/dev/null 2>&1 & exit 0"
    )
    await shell.start(far.job("job-1", stopper))
    assert (await result(shell, "job-1")).status == 0
    await shell.start(far.job("job-2", "sleep 0.5; exit 5"))
    assert (await result(shell, "job-2")).status == 5
    await shell.start(far.job("job-3", "sleep 0.5; exit 6"))
    async with asyncio.timeout(60):
        assert (await shell.wait("job-3")).status == 6


@pytest.mark.parametrize(
    "script",
    [
        "exec 9>/root/.gibil/jobs/.job-2.lock; flock 9; setsid sleep 60 & exit 0",
        "cd /root/.gibil/jobs; mkdir job-2; mkfifo job-2/pid job-2/out job-2/rc; exit 0",
        "cd /root/.gibil/jobs; mkdir job-2; cd job-2; echo 1 >pid; echo no >out; echo no >err; echo 0 >rc; exit 0",
        "cd /root/.gibil/jobs; touch job-2; mkdir .job-2.lock; exit 0",
        "rm -rf /root/.gibil; echo no >/root/.gibil; exit 0",
        "mv /root/.gibil/jobs /root/other; ln -s /proc/self /root/.gibil/jobs; exit 0",
    ],
)
async def test_a_file_in_the_way_of_a_later_jobs_folder_is_moved_away(far: Far, shell: SSHShell, script: str) -> None:
    await shell.start(far.job("job-1", script))
    assert (await result(shell, "job-1")).status == 0
    await shell.start(far.job("job-2", "echo own; exit 5"))
    async with asyncio.timeout(60):
        items = [item async for item in shell.attach("job-2")]
    assert [item.data for item in items if isinstance(item, Chunk)] == [b"own\n"]
    assert isinstance(items[-1], Exit)
    assert (items[-1].status, items[-1].output_cut) == (5, False)
