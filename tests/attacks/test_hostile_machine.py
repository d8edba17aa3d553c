"""The client bounds what a machine sends in bytes and time, and checks its numbers."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator

import pytest

from gibil_bot.errors import GibilError, MachineLost, SSHError, UsageError
from gibil_bot.machines.tools import file_scripts
from gibil_bot.machines.tools.stats import read_stats
from gibil_bot.machines.tools.stray_processes import read_tagged
from gibil_bot.model import Exit, Job
from gibil_bot.ssh import channel, connection
from gibil_bot.ssh.answers import BadAnswer, decimal, exit_status, last_line, number, printable, timestamp
from gibil_bot.ssh.client import connect
from gibil_bot.ssh.job_requests import JOB_STATUS, SERVER_VERSION
from gibil_bot.ssh.jobs import JobFollower, read_jobs
from tests.doubles.hostile import Process, hostile_shell, speaker
from tests.doubles.patience import patient
from tests.doubles.sshd import new_key

BLOCK = bytes(128 * 1024)
HUGE = ("9999999999999999", "9" * 5000, "-1", "256", "1e3", "٣", " 7", "0x10", "")


async def _endless(process: Process) -> None:
    while True:
        process.stdout.write(BLOCK)
        await process.stdout.drain()


async def _endless_errors(process: Process) -> None:
    while True:
        process.stderr.write(BLOCK)
        await process.stderr.drain()


async def _never_ends(process: Process) -> None:
    await process.channel.wait_closed()


@pytest.mark.parametrize("handler", [_endless, _endless_errors])
async def test_an_endless_answer_ends_with_a_clear_error(handler: object) -> None:
    async with hostile_shell(handler) as shell:  # type: ignore[arg-type]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.monotonic()
        with pytest.raises(SSHError, match="more than 1 MiB"):
            await shell.run("true", timeout_s=120)
        assert time.monotonic() - began < patient(60)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # kB
        assert not shell.is_closed, "one command's answer does not end the connection"


async def test_the_caller_limits_the_stored_part_of_an_answer() -> None:
    async def five(process: Process) -> None:
        process.stdout.write(b"12345")
        process.exit(0)

    async with hostile_shell(five) as shell:
        assert (await shell.run("true", most_bytes=5)).stdout == b"12345"
        with pytest.raises(SSHError, match="more than 4 bytes"):
            await shell.run("true", most_bytes=4)


async def test_streamed_output_is_unlimited_and_a_raising_callback_ends_the_command() -> None:
    seen = 0

    def take(stream: str, data: bytes) -> None:
        nonlocal seen
        seen += len(data)
        if seen > 4 * 1024 * 1024:
            raise UsageError("enough")

    async with hostile_shell(_endless) as shell:
        with pytest.raises(UsageError, match="enough"):
            await shell.run("true", timeout_s=120, on_output=take, keep_output=False)
    assert seen < 32 * 1024 * 1024


async def test_a_kill_with_an_endless_answer_ends() -> None:
    async with hostile_shell(_endless) as shell:
        with pytest.raises(SSHError):
            await shell.kill("job-1")


async def test_a_channel_that_is_never_closed_ends_after_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 4254, 5.3: a party that receives SSH_MSG_CHANNEL_CLOSE must send one back. This one doesn't."""
    monkeypatch.setattr(channel, "_LINGER_S", 0.05)
    monkeypatch.setattr(channel, "_CLOSES_S", 0.05)

    async def stays_open(process: Process) -> None:
        far = process.channel
        far._close_send = lambda: None  # type: ignore[method-assign]
        far._send_request(b"exit-status", (7).to_bytes(4, "big"))
        await asyncio.Event().wait()

    async with hostile_shell(stays_open) as shell:
        async with asyncio.timeout(patient(30)):
            assert (await shell.run("true")).exit_status == 7


async def test_an_exit_status_of_32_bits_is_reduced_to_8() -> None:
    async def odd(process: Process) -> None:
        process.channel._send_request(b"exit-status", (4_294_967_295).to_bytes(4, "big"))
        process.close()

    async with hostile_shell(odd) as shell:
        assert (await shell.run("true")).exit_status == 255


async def test_an_upload_that_the_machine_does_not_read_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibil_bot.ssh.shell._STALLS_S", 0.2)
    monkeypatch.setattr("gibil_bot.ssh.shell._CLEANUP_S", 0.2)

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield BLOCK

    async def reads_nothing(process: Process) -> None:
        process.channel.pause_reading()
        await process.channel.wait_closed()

    async with hostile_shell(reads_nothing) as shell:
        async with asyncio.timeout(patient(30)):
            with pytest.raises(MachineLost, match="nothing happened"):
                await shell.put("/tmp/x", pieces())
            with pytest.raises(MachineLost, match="nothing happened"):
                await shell.put("/tmp/x", b"abc")


@pytest.mark.parametrize("answer", [*(word.encode() for word in HUGE), b"\xff" * 1000, bytes(1000)], ids=range(len(HUGE) + 2))
async def test_a_stored_size_that_is_not_a_number_is_a_machine_error(answer: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"

    async def odd(process: Process) -> None:
        await process.stdin.read()
        process.stdout.write(answer)
        process.exit(0)

    async with hostile_shell(odd) as shell:
        with pytest.raises((SSHError, MachineLost)):
            await shell.put("/tmp/x", pieces())


async def test_a_command_that_never_starts_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def first_item() -> None:
        async for _ in shell.attach("job-1"):
            raise AssertionError("no output can arrive")

    monkeypatch.setattr(connection, "_OPENS_S", 0.2)

    async with hostile_shell(_never_ends) as shell:
        shell._connection._connection.create_session = lambda *a, **k: asyncio.Event().wait()  # type: ignore[method-assign,assignment]
        with pytest.raises(MachineLost, match="did not start a command"):
            await asyncio.wait_for(first_item(), patient(30))


@pytest.mark.parametrize(
    "line",
    [b"gibil:exit 99999999999999999999 0", b"gibil:exit " + b"9" * 5000 + b" 0", b"gibil:exit -1 0", b"gibil:exit 256 0",
     b"gibil:exit 0 -1", b"gibil:exit 0 99999999999999999999", b"gibil:exit 0", b"gibil:rest 256", b"gibil:rest " + b"9" * 5000,
     "gibil:exit ٣ 0".encode(), b"gibil:exit 0x0 0", b"gibil:exit 0 0 0"],
)  # fmt: skip
def test_an_exit_line_with_numbers_out_of_bounds_is_ignored(line: bytes) -> None:
    follow = JobFollower.__new__(JobFollower)
    asyncio.run(_feed(follow, line + b"\n"))
    assert follow.exit_status is None


async def _feed(follow: JobFollower, data: bytes) -> None:
    follow.__init__("stdout", 0)  # type: ignore[misc]
    follow.on_data("stderr", data)


async def test_lines_of_one_byte_cost_no_more_than_their_bytes() -> None:
    follow = JobFollower("stdout", 0)
    began = time.process_time()
    for _ in range(300_000):
        follow.on_data("stderr", b"x")
        follow.on_data("stdout", b"x")
    assert time.process_time() - began < patient(20)
    assert len(follow._waiting) < 2000
    assert follow.take() == b"x" * 300_000


async def test_an_invalid_returned_file_is_read_as_empty() -> None:
    follow = JobFollower("stdout", 0)
    follow.on_data(
        "stderr", b"gibil:file !!!=== /a\ngibil:file " + "é".encode() * 99 + b" /b\ngibil:file YQ /c\ngibil:exit 0 0\n"
    )
    assert follow.exit_status == 0
    assert set(follow.files.values()) <= {b"", b"a"}


async def test_a_job_that_cannot_start_reports_it_in_one_short_line() -> None:
    async def chatty(process: Process) -> None:
        process.stderr.write(b"gibil:failed " + b"\x1b[31mno\rsuch " * 10_000 + b"\n")
        await process.channel.wait_closed()

    async with hostile_shell(chatty) as shell:
        with pytest.raises(GibilError) as caught:
            await shell.start(Job(id="job-1", script="true"))
    assert len(caught.value.message) < 1000
    assert caught.value.message.isprintable()


async def test_a_job_with_endless_output_uses_bounded_memory() -> None:
    async def floods(process: Process) -> None:
        process.stderr.write(b"gibil:started\n")
        await _endless(process)

    async with hostile_shell(floods) as shell:
        await shell.start(Job(id="job-1", script="true"))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen = 0
        async for item in shell.attach("job-1"):
            assert not isinstance(item, Exit)
            seen += len(item.data)
            await asyncio.sleep(0)  # a slow reader
            if seen > 128 * 1024 * 1024:
                break
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@pytest.mark.parametrize("words", HUGE)
def test_numbers_out_of_bounds_are_rejected(words: str) -> None:
    with pytest.raises(BadAnswer):
        exit_status(words)
    if words != "256":
        with pytest.raises(BadAnswer):
            number(words)
        with pytest.raises(BadAnswer):
            timestamp(words)


@pytest.mark.parametrize("words", ["nan", "inf", "-inf", "1e999", "9" * 400, "", "0x1p3", "1_000", "٣"])
def test_decimals_that_json_cannot_represent_are_rejected(words: str) -> None:
    with pytest.raises(BadAnswer):
        decimal(words)


def test_machine_output_in_a_message_is_one_printable_line() -> None:
    assert last_line(b"first\nsecond \x1b[31mred\x07\n\n") == "second  [31mred"
    assert last_line(b"") == "no reason given"
    assert last_line(b"\n \x00 \n", "exit status 3") == "exit status 3"
    assert len(last_line(b"x" * 10_000_000)) < 600
    assert printable("a\u202eb\nc") == "a b c"


@pytest.mark.parametrize("odd", [*HUGE[:7], "nan"])
def test_a_list_of_jobs_leaves_out_invalid_entries(odd: str) -> None:
    good = "job-1\0exited\0000\0001700000000\0001700000001\0true\0"
    for field in (2, 3, 4):
        fields = ["job-2", "exited", "0", "1700000000", "1700000001", "true"]
        fields[field] = odd if not (field > 2 and odd == "256") else "-1"
        answer = good + "\0".join(fields) + "\0"
        assert [job.id for job in read_jobs(answer.encode())] == ["job-1"]
    for name, status in (("../x", "exited"), ("a\x1b[2J", "exited"), ("job-2", "sleeping")):
        answer = good + "\0".join((name, status, "0", "1700000000", "1700000001", "true")) + "\0"
        assert [job.id for job in read_jobs(answer.encode())] == ["job-1"]


@pytest.mark.parametrize("answer", [b"", b"\0", b"5\x00x", b"9" * 5000 + b"\x001\0text\x000a\0x", b"-1\x005\0text\x000a\0x"])
def test_an_invalid_page_of_a_file_is_a_machine_error(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        file_scripts.read_page(answer, "/x", 1, 10)


@pytest.mark.parametrize("odd", ["9" * 400, "-5", "nan", ""])
def test_one_file_with_an_invalid_size_or_time_does_not_hide_the_others(odd: str) -> None:
    answer = f"f\0{odd}\0{odd}\0first\0\0f\x005\x001700000000.5\0second\0\0".encode()
    found, _ = file_scripts.read_entries(answer)
    assert [(entry.name, entry.size, entry.modified_s) for entry in found] == [("first", 0, 0), ("second", 5, 1700000000.5)]


@pytest.mark.parametrize("odd", ["9" * 5000, "-5", "nan", "1e999", "x"])
def test_invalid_numbers_of_stats_are_errors_without_a_traceback(odd: str) -> None:
    good = {
        "cpus": "2",
        "load": "1 2 3",
        "MemTotal:": "10",
        "MemAvailable:": "5",
        "disk": "1 1 1",
        "process": "1 0.5 10 5 init",
    }
    read_stats(_stats(good))
    for name, words in good.items():
        values = words.split(" ")
        for index in range(4 if name == "process" else len(values)):
            odd_values = [*values[:index], odd, *values[index + 1 :]]
            with pytest.raises((ValueError, LookupError)):
                read_stats(_stats({**good, name: " ".join(odd_values)}))


def _stats(values: dict[str, str]) -> bytes:
    return "".join(f"{name} {words}\n" for name, words in values.items()).encode()


def test_a_process_with_an_invalid_number_is_a_machine_error() -> None:
    with pytest.raises(BadAnswer):
        read_tagged(b"-1\0job\x001\0words\0\0")


async def _silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _byte_by_byte(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-x\r\n" + bytes(range(256)) * 400)
    await writer.drain()
    await reader.read()


async def _endless_banner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"hello\r\n" * 10_000)
        await writer.drain()


@pytest.mark.parametrize("speak", [_silent, _byte_by_byte, _garbage, _endless_banner])
async def test_a_server_that_is_not_ssh_is_reported_in_time(speak: object) -> None:
    client_key, _ = new_key()
    async with speaker(speak) as endpoint, asyncio.timeout(patient(30)):  # type: ignore[arg-type]
        with pytest.raises(GibilError) as caught:
            await connect(endpoint, client_key, timeout_s=1.0)
    assert "127.0.0.1" in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("answer", "status"),
    [(b"exit 8\n", 8), (b"exit 256\n", 3), (b"exit " + b"9" * 5000, 3), (b"unknown\n", 3), (b"", 3), (bytes(100_000), 3)],
    ids=range(6),
)
async def test_a_server_that_reports_the_end_of_jobs_is_believed_within_bounds(answer: bytes, status: int) -> None:
    """Also if every session reports a killed process. Otherwise the job's own files count."""

    async def knows(process: Process) -> None:
        process.stderr.write(b"gibil: the largest process was killed\n")
        if process.subsystem == JOB_STATUS:
            await process.stdin.read()
            process.stdout.write(answer)
        else:
            process.stderr.write(b"gibil:exit 3 0\n")
        process.exit(0)

    async with hostile_shell(knows, SERVER_VERSION) as shell, asyncio.timeout(patient(30)):
        assert [item async for item in shell.attach("job-1")] == [Exit(status)]
