"""What every row gets: a scratch folder and the peers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers import Peers


@dataclass(frozen=True, kw_only=True)
class Context:
    scratch: Path
    peers: Peers

    def folder(self, name: str) -> Path:
        """A folder of that name; it goes when the benchmark ends."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
