"""Ctrl-C at any moment of a command's start ends it without a Python traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.doubles.patience import patient

SCRIPT = """
import asyncio, os, signal, sys
from gibil_bot.cli.machine import run_async

real = asyncio.events.new_event_loop

def interrupted_while_it_is_made():
    os.kill(os.getpid(), signal.{signal})
    return real()

asyncio.runners.events.new_event_loop = interrupted_while_it_is_made

async def work():
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        print("cleaned up")
        raise

try:
    run_async(work())
except KeyboardInterrupt:
    print("interrupted")
os.kill(os.getpid(), signal.SIGINT)
print("never")
"""


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_a_signal_during_the_creation_of_the_loop_is_reported_once_after_cleanup(signal: str) -> None:
    command = [sys.executable, "-c", SCRIPT.replace("{signal}", signal) + "\n"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patient(30))
    *words, last = done.stderr.strip().splitlines()
    assert (done.stdout, last) == ("cleaned up\ninterrupted\n", "KeyboardInterrupt"), "and a later Ctrl-C works as before"
    assert not [word for word in words if "Warning" in word or "ignored" in word], done.stderr
