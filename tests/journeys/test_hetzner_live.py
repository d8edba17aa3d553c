"""The script for a live run (live/hetzner.py), run with the double: what it reports, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_routes import Fault
from tests.doubles.hetzner_state import State
from tests.doubles.patience import patient

SCRIPT = Path(__file__).parent.parent / "live" / "hetzner.py"


@pytest.fixture
async def double() -> AsyncIterator[HetznerDouble]:
    async with hetzner_double(State(stopping_s=0.05, deleting_s=0.05, locked_longer_s=0.02)) as double:
        yield double
        double.api.findings.clear()  # it sends invalid requests to see the responses


async def start(double: HetznerDouble, *arguments: str) -> asyncio.subprocess.Process:
    env = {
        "HCLOUD_TOKEN": double.token,
        "HCLOUD_READONLY_TOKEN": double.api.readonly_token,
        "HCLOUD_ENDPOINT": double.endpoint,
    }
    words = (sys.executable, "-I", str(SCRIPT), "--pause", "0.01", *arguments)
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*words, env=env, stdin=pipe, stdout=pipe, stderr=pipe)


async def run(double: HetznerDouble, *arguments: str, answer: str = "") -> tuple[int | None, str, str]:
    process = await start(double, *arguments)
    async with asyncio.timeout(patient(60)):
        out, err = await process.communicate(answer.encode())
    return process.returncode, out.decode(), err.decode()


def is_empty(double: HetznerDouble) -> bool:
    state = double.state
    return not (state.servers or state.primary_ips or state.firewalls or state.ssh_keys)


@pytest.mark.parametrize("auto_delete", [True, False])
async def test_all_questions_are_answered_and_nothing_remains(double: HetznerDouble, auto_delete: bool) -> None:
    double.state.auto_delete = auto_delete
    status, out, err = await run(double, answer="yes\n")
    assert (status, err) == (0, "")
    assert out.index("EUR net") < out.index("Type yes") < out.index("Q1 ")
    assert 'Q1 firewall that doesn\'t exist: [422, {"code": "invalid_input"' in out
    assert 'token, POST /ssh_keys {}: [401, {"code": "token_readonly"' in out
    assert '"image has incompatible architecture"' in out
    assert "Q4 address: [[" in out
    assert ", 423]" in out, "the server is locked right after its creation"
    assert "status, locked, firewalls, DELETE" in out
    assert 'Q5 the name 123: [200, "123"]' in out
    assert 'Q5 after rebuild while it was off: status, locked: ["off"' in out
    assert out.endswith("Everything that was created is deleted.\n")
    assert double.token not in out
    assert double.api.readonly_token not in out
    assert is_empty(double)


@pytest.mark.parametrize("kind", ["server", "key"])
async def test_a_project_that_is_not_empty_is_not_changed(double: HetznerDouble, kind: str) -> None:
    if kind == "server":
        await double.state.create_server({"name": "shop", "server_type": "cx23", "image": "debian-12", "location": "nbg1"})
    else:
        double.state.ssh_keys[1] = {"id": 1, "name": "mine", "public_key": "ssh-ed25519 AAAA", "labels": {}}
    status, out, err = await run(double, "--yes")
    assert (status, out) == (1, "")
    assert "use an empty one" in err
    assert not [call for call in double.api.calls if not call.startswith("GET ")]


@pytest.mark.parametrize("answer", ["no\n", ""])
async def test_without_confirmation_nothing_is_created(double: HetznerDouble, answer: str) -> None:
    status, out, _err = await run(double, answer=answer)
    assert status == 1
    assert "EUR net" in out
    assert not [call for call in double.api.calls if not call.startswith("GET ")]


async def until_it_creates_a_server(double: HetznerDouble, fault: Fault) -> asyncio.subprocess.Process:
    """Start the script; return when the request for its first valid server meets the fault."""
    first = Fault("POST", "/firewalls", late=True, hang=asyncio.Event())
    double.api.faults.append(first)
    process = await start(double, "--yes")
    async with asyncio.timeout(patient(60)):
        while first.times:
            await asyncio.sleep(0.005)
        double.api.faults.append(fault)
        assert first.hang is not None
        first.hang.set()
        while fault.times:
            await asyncio.sleep(0.005)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_script_stopped_while_it_creates_a_server_deletes_it(double: HetznerDouble, number: signal.Signals) -> None:
    """The server is deleted even if the request takes effect after the signal."""
    fault = Fault("POST", "/servers", late=True, hang=asyncio.Event())
    process = await until_it_creates_a_server(double, fault)
    process.send_signal(number)
    assert fault.hang is not None
    fault.hang.set()
    async with asyncio.timeout(patient(60)):
        out, err = await process.communicate()
    assert process.returncode == 1
    assert f"stopped by {number.name}" in err.decode()
    assert out.decode().endswith("Everything that was created is deleted.\n")
    assert is_empty(double)


async def test_a_server_whose_creation_had_no_response_is_deleted(double: HetznerDouble) -> None:
    process = await until_it_creates_a_server(double, Fault("POST", "/servers", status=504, after=True))
    async with asyncio.timeout(patient(60)):
        _out, err = await process.communicate()
    assert process.returncode == 1
    assert "cannot create a" in err.decode()
    assert is_empty(double)
