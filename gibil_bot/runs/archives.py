"""Prepared machines as archives: for providers whose machines have no layers, such as servers in a cloud.

An archive contains what commands have changed on a machine since it was ready. It is read over SSH while the machine continues,
stored on this computer as opaque bytes (opaque_files.py), and restored over SSH on a machine that has the commit and has run no
task. An archive doesn't need the one that its machine was restored from: it contains that, too.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from gibil_bot.errors import MachineLost, ProviderError, SSHError
from gibil_bot.model import LayerInfo
from gibil_bot.ports import LAYER_GONE, Shell
from gibil_bot.runs.opaque_files import Damaged, NotStored, OpaqueFile, OpaqueFiles
from gibil_bot.scripts import archive as scripts
from gibil_bot.ssh.answers import last_line

MOST_BYTES = 3 * 1024**3
LEAST_S = 10.0
"""Preparing that takes less isn't archived: archiving and restoring take some seconds."""
SAVE_S = 300.0
RESTORE_S = 600.0


class ArchiveStore:
    """The archives of one data directory. Implements ports.Archiving. `name`: the provider's name."""

    def __init__(self, folder: Path, name: str, *, most_bytes: int = MOST_BYTES, reserve_bytes: int = 1024**3) -> None:
        self.name = name
        self._files = OpaqueFiles(folder, most_bytes=most_bytes, reserve_bytes=reserve_bytes)

    async def layers(self) -> list[LayerInfo]:
        """See ports.Archiving."""
        return [_info(file) for file in await self._files.files()]

    async def delete_layer(self, layer_id: str) -> bool:
        """See ports.Archiving."""
        return await self._files.delete(layer_id)

    async def archive(self, shell: Shell, layer_id: str, parent: str | None, *, timeout_s: float = SAVE_S) -> LayerInfo:
        """See ports.Archiving."""
        depth = 1
        if parent is not None:
            depth += next((info.depth for info in await self.layers() if info.id == parent), 1)
        facts = {"parent": parent or "", "depth": str(depth)}
        try:
            return _info(await self._files.receive(shell, scripts.save_script(), layer_id, facts, timeout_s=timeout_s))
        except NotStored as error:
            raise ProviderError(f"archive {layer_id} isn't stored: {error.message}") from None

    async def restore(self, shell: Shell, layer_id: str) -> None:
        """See ports.Archiving."""
        try:
            await self._files.verified(layer_id)
            content = self._files.content(layer_id)
            done = await shell.run(scripts.restore_script(layer_id), stdin=content, timeout_s=RESTORE_S)
        except Damaged as error:
            await self.delete_layer(layer_id)
            raise ProviderError(f"archive {layer_id} can't be used: {error.message}", code=LAYER_GONE) from None
        except TimeoutError:
            raise SSHError(f"archive {layer_id} could not be restored within {RESTORE_S:.0f} s") from None
        if done.exit_status == 0:
            return
        reason = last_line(done.stderr, f"the script ended with status {done.exit_status}")
        if done.exit_status == scripts.OTHER:
            raise MachineLost("The machine was prepared in another way before the bot continued the run")
        await self.delete_layer(layer_id)
        if done.exit_status == scripts.OUTDATED:
            raise ProviderError(f"archive {layer_id} can't be used: {reason}", code=LAYER_GONE)
        raise SSHError(f"archive {layer_id} could not be restored: {reason}")

    async def restored(self, shell: Shell) -> str | None:
        """See ports.Archiving."""
        with contextlib.suppress(TimeoutError):
            return scripts.parse_restored((await shell.run(scripts.restored_script())).stdout)
        raise MachineLost("The machine doesn't answer")


def _info(file: OpaqueFile) -> LayerInfo:
    depth = file.facts.get("depth", "")
    return LayerInfo(
        id=file.name,
        parent=file.facts.get("parent") or None,
        depth=int(depth) if depth.isdecimal() else 1,
        size_mb=math.ceil(file.size / 1024**2),
        created_at=file.created_at,
    )
