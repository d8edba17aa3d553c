"""The scratch folder and the peers, which every row gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.peers import Peers


@dataclass(frozen=True, kw_only=True)
class Context:
    scratch: Path
    peers: Peers

    def folder(self, name: str) -> Path:
        """Return a folder with this name; it is deleted when the benchmark ends."""
        folder = self.scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder
