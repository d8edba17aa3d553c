"""`python -m tests.benchmarks`: a table of what gibil costs compared with real peers, measured now on this computer."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if not __package__:  # `python tests/benchmarks`
    sys.path[0] = str(Path(__file__).parents[2])

from tests.benchmarks import (
    row_agent,
    row_busy,
    row_calls,
    row_cli,
    row_cold,
    row_commit,
    row_database,
    row_door,
    row_fork,
    row_idle,
    row_layer,
    row_machine,
    row_proxy,
    row_run,
    row_sdk,
    row_second,
    row_ssh,
    row_warm,
)
from tests.benchmarks.comparison import Comparison, LeftOut, table
from tests.benchmarks.context import Context
from tests.benchmarks.peers import Peers

ROWS: dict[str, Callable[[Context], list[Comparison]]] = {
    "webhook": row_door.webhook,
    "busy": row_busy.busy,
    "database": row_database.database,
    "start": row_door.start,
    "run": row_run.run,
    "machine": row_machine.machine,
    "layer": row_layer.layer,
    "second": row_second.second,
    "idle": row_idle.idle,
    "command": row_ssh.command,
    "output": row_ssh.output,
    "first-command": row_ssh.first_command,
    "cold": row_cold.cold,
    "warm": row_warm.warm,
    "calls": row_calls.calls,
    "commit": row_commit.commit,
    "fork": row_fork.fork,
    "agent": row_agent.agent,
    "sdk": row_sdk.sdk,
    "proxy": row_proxy.proxy,
    "help": row_cli.help_text,
}


def machine() -> dict[str, object]:
    """Return the kind of computer, not its name."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?"
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "root": os.geteuid() == 0,
        "load_before": round(os.getloadavg()[0], 2),
    }


def main() -> int:
    """Return 0 if every measurable aim was met."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--json", type=Path, help="write everything that was measured, every sample, to this file")
    parser.add_argument("--peers", type=Path, help="keep the installed peers in this folder")
    arguments = parser.parse_args()
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    comparisons: list[Comparison] = []
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="gibil-bench-") as scratch:
        peers = Peers((arguments.peers or Path(scratch) / "peers").absolute())
        for name in arguments.only or ROWS:
            begun = time.perf_counter()
            folder = Path(scratch) / name
            try:
                measured = ROWS[name](Context(scratch=folder, peers=peers))
            except LeftOut as reason:
                left_out[name] = str(reason)
                print(f"\n{name}: left out: {reason}", flush=True)
            else:
                comparisons += measured
                print(f"\n{name} ({time.perf_counter() - begun:.0f} s)\n{table(measured)}", flush=True)
    if arguments.json is not None:
        rows = [comparison.as_json() for comparison in comparisons]
        arguments.json.write_text(json.dumps({"machine": about, "rows": rows, "left_out": left_out}, indent=2) + "\n")
    return 0 if all(comparison.met is not False for comparison in comparisons) else 1


if __name__ == "__main__":
    sys.exit(main())
