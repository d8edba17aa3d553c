"""How many files of gibil_bot a reader has to open to follow one delivery, and one `gibil run`.

    python -m tests.benchmarks.files_opened [--checkout DIR] [--list]

Runs the real bot and the real command as processes that record each file in which they enter a function (trace_hook):
the bot between the delivery of a `/gibil test` and the closed check run, and `gibil run NAME true` from its start to its end.
Files that only define types or constants don't count, nor do the local machines' daemon and the demonstration. `--checkout`:
another version of the project, whose dependencies this Python has.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOOK = Path(__file__).with_name("trace_hook")
WITHIN_S = 120.0
QUIET_S = 0.3
"""Pause before the delivery, so that the bot's start isn't counted."""
REPOSITORY = "ada/engine"
FILES = {"engine.py": "POWER = 1\n", ".gibil.yml": "tasks:\n  - name: compile\n    run: python3 -m compileall -q engine.py\n"}


@dataclass(frozen=True, slots=True)
class Trace:
    """Where the processes of one checkout record the files that they enter."""

    checkout: Path
    file: Path

    def environment(self, **more: str) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_", "PYTHON"))}
        own["PYTHONPATH"] = os.pathsep.join((str(HOOK), str(self.checkout)))
        return own | {"GIBIL_TRACE_FILE": str(self.file), "GIBIL_TRACE_ROOT": f"{self.checkout}/gibil_bot/"} | more

    def entered(self, pid: int, begin_s: float, end_s: float) -> list[str]:
        """Return the files of the package in which a process entered functions in this period."""
        root = self.checkout / "gibil_bot"
        lines = [line.split(" ", 2) for line in self.file.read_text().splitlines()]
        paths = {
            Path(path).relative_to(root) for number, at, path in lines if int(number) == pid and begin_s <= float(at) <= end_s
        }
        return sorted(str(path) for path in paths if path.parts[0] != "demo")


async def delivery(trace: Trace, folder: Path) -> list[str]:
    """Return the bot's files, from one comment to its completed check run."""
    from gibil_bot.demo.github_double import GitHubDouble  # from the checkout: see main

    secret = secrets.token_hex(16)
    async with GitHubDouble.start(folder / "github", webhook_secret=secret) as github:
        environment = trace.environment(
            HOME=str(folder),
            GIBIL_DATA_DIR=str(folder / "data"),
            GIBIL_PROVIDER="local",
            GIBIL_GITHUB_URL=github.url,
            GIBIL_GITHUB_APP_ID=str(github.app_id),
            GIBIL_GITHUB_PRIVATE_KEY=github.private_key_pem,
            GIBIL_GITHUB_WEBHOOK_SECRET=secret,
        )
        bot = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gibil_bot", "serve", "--port", "0", "--json",
            cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            assert bot.stdout is not None
            listening = await asyncio.wait_for(bot.stdout.readline(), WITHIN_S)
            await github.add_repository(REPOSITORY, FILES)
            number = await github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
            github.webhook_url = f"{_value(listening)['url']}/webhook"
            await asyncio.sleep(QUIET_S)
            begin_s = time.monotonic()
            github.comment(REPOSITORY, number, "ada", "/gibil test")

            def closed() -> Any:
                return next((run for run in github.check_runs(REPOSITORY, None) if run.status == "completed"), None)

            check = await github.wait_for(closed, WITHIN_S)
            end_s = time.monotonic()
            if check.conclusion != "success":
                raise RuntimeError(f"the check run is {check.conclusion}: {check.summary}")
        finally:
            if bot.returncode is None:
                bot.terminate()
            await bot.wait()
    return trace.entered(bot.pid, begin_s, end_s)


def command(trace: Trace, folder: Path) -> list[str]:
    """Return the files of `gibil run NAME true`, on an existing machine."""
    environment = trace.environment(HOME=str(folder), GIBIL_DATA_DIR=str(folder / "data"), GIBIL_PROVIDER="local")

    def gibil(*arguments: str) -> int:
        words = [sys.executable, "-m", "gibil_bot", *arguments]
        process = subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        if process.wait(WITHIN_S) != 0:
            raise RuntimeError(f"gibil {' '.join(arguments)} ended with {process.returncode}")
        return process.pid

    gibil("create", "--name", "traced")
    begin_s = time.monotonic()
    pid = gibil("run", "traced", "true")
    end_s = time.monotonic()
    gibil("destroy", "traced")
    return trace.entered(pid, begin_s, end_s)


def _value(line: bytes) -> dict[str, Any]:
    import json

    value = json.loads(line)
    assert isinstance(value, dict)
    return value


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder. At its end the daemon of its local machines is stopped; it would wait half a minute for more work."""
    with tempfile.TemporaryDirectory(prefix="gibil-files-") as name:
        try:
            yield Path(name)
        finally:
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if name.encode() in (process / "cmdline").read_bytes() and int(process.name) != os.getpid():
                        os.kill(int(process.name), signal.SIGTERM)
            ends_at = time.monotonic() + 10
            while any(_is_of(process, name) for process in Path("/proc").glob("[0-9]*")) and time.monotonic() < ends_at:
                time.sleep(0.05)


def _is_of(process: Path, name: str) -> bool:
    try:
        return name.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.files_opened", description=__doc__.partition("\n")[0])
    parser.add_argument("--checkout", type=Path, default=Path(__file__).parents[2], help="another version of the project")
    parser.add_argument("--list", action="store_true", help="print the files, too")
    options = parser.parse_args()
    checkout = options.checkout.resolve()
    if not (checkout / "gibil_bot" / "__main__.py").is_file():
        parser.error(f"{checkout} is not a checkout of gibil-bot")
    sys.path.insert(0, str(checkout))
    with _scratch() as folder:
        # In `folder`, because `python -m` would import the package of this checkout from its working directory.
        for what, files in (
            ("one delivery (the bot)", asyncio.run(delivery(Trace(checkout, folder / "delivery"), folder))),
            ("gibil run NAME true (the command)", command(Trace(checkout, folder / "command"), folder)),
        ):
            print(f"{what}: {len(files)} files")
            for file in files if options.list else ():
                print(f"  {file}")


if __name__ == "__main__":
    main()
