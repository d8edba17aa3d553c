"""Store of layers: disks of ended machines, read-only, that later machines have below their own disk.

<local>/layers/ID/     disk.img or disk/  manifest.json

A layer is moved here, never copied, and is usable at once. Its manifest is written in the background, after its data: a folder
without a valid manifest is therefore incomplete, and the next daemon removes it. Temporary names begin with a dot.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gibil_bot.errors import ProviderError, UsageError
from gibil_bot.model import LayerInfo
from gibil_bot.ports import LAYER_GONE
from gibil_bot.providers.local import syscalls as sc
from gibil_bot.providers.local.disk_images import IMAGE, Image, mount_read_only
from gibil_bot.providers.local.paths import LocalPaths
from gibil_bot.providers.local.rmtree import remove_tree

LAYER_ID = re.compile(r"[0-9a-f]{8,40}")
MOST_LAYERS = 8
"""Most layers below a machine. All are looked through for a file that the upper ones don't have."""
MOST_FORKED = 24
"""The same for a machine that was forked: each fork adds one. The kernel takes a page of mount options, 40 layers or so."""
FORK, TEMPLATE = "fork", "template"
IN_USE = "LAYER_IN_USE"

_FORMAT = 1
_MANIFEST = "manifest.json"
_KEPT_MOUNTS = 8
"""Unused images that stay mounted, because attaching and mounting one takes some milliseconds."""
_DETACHED_S = 2.0


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a layer's manifest.json. `digest` is that of the other fields."""

    format: int
    id: str
    parent: str | None
    """The layer below it."""
    depth: int
    """Number of layers from this one down."""
    base_tree: str
    """Name of the base tree that it is based on."""
    runtimes: tuple[str, ...]
    """The stored runtimes that its machine had: links in the layer may lead to them."""
    privilege: str
    base: int
    """First host uid of its owners, with privilege `root`."""
    image: bool
    """Whether it is a separate file system, or a folder."""
    size_mb: int
    created_at: datetime
    fingerprint: str
    """Changes if its file or its top folders change."""
    digest: str = ""
    kind: str = ""
    """See model.LayerInfo, as for the following."""
    template: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)

    def signed(self) -> Manifest:
        return msgspec.structs.replace(self, digest=self._digest())

    def is_intact(self) -> bool:
        return self.format == _FORMAT and self.digest == self._digest()

    def _digest(self) -> str:
        fields = msgspec.to_builtins(msgspec.structs.replace(self, digest=""))
        if not self.kind:  # an earlier version wrote the others without these
            for name in ("kind", "template", "labels"):
                del fields[name]
        return hashlib.sha256(msgspec.json.encode(fields)).hexdigest()


@dataclass(frozen=True, slots=True)
class LowerLayer:
    """A layer below a machine that is being created. `mount`: a new detached mount of its image; the caller closes it."""

    id: str
    base: int
    mount: int | None


class LayerStore:
    """The layers of one data directory. Methods that are marked as blocking may run in threads, the others may not."""

    def __init__(self, paths: LocalPaths, privilege: str) -> None:
        self._paths, self._privilege = paths, privilege
        self._layers: dict[str, Manifest] = {}
        self._users: dict[str, frozenset[str]] = {}
        """machine → the layers below it"""
        self._used_at: dict[str, datetime] = {}
        self._unsealed: set[str] = set()
        self._mounts: dict[str, Image] = {}
        """Mounted images by layer, least recently used first."""
        self._mounting = threading.Lock()
        self._sealing = threading.Lock()

    def load(self) -> None:
        """Read the manifests, and remove everything else. Blocking; before any other method."""
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._paths.layers.iterdir()):
                manifest = self._read(folder)
                if manifest is None:
                    remove_tree(folder)
                else:
                    self._layers[manifest.id] = manifest
        for name in [name for name in self._layers if self._missing_below(name)]:
            remove_tree(self._folder(name))
            del self._layers[name]
        while forks := self.unused_forks():
            for name in forks:
                remove_tree(self._folder(name))
                del self._layers[name]

    def infos(self) -> list[LayerInfo]:
        """Return the layers of runs, oldest first."""
        return self._infos(lambda layer: not layer.kind)

    def kept(self) -> list[LayerInfo]:
        """Return the layers that are templates, oldest first."""
        return self._infos(lambda layer: layer.kind == TEMPLATE)

    def template(self, name: str) -> LayerInfo | None:
        return next((info for info in self.kept() if info.template == name), None)

    def unused_forks(self) -> list[str]:
        """Return the layers of forked machines that no machine and no other layer is based on."""
        used = frozenset[str | None]().union((layer.parent for layer in self._layers.values()), *self._users.values())
        return [layer.id for layer in self._layers.values() if layer.kind == FORK and layer.id not in used]

    def _infos(self, wanted: Callable[[Manifest], bool]) -> list[LayerInfo]:
        found = sorted(filter(wanted, self._layers.values()), key=lambda layer: (layer.created_at, layer.id))
        return [self._info(layer) for layer in found]

    def info(self, layer_id: str) -> LayerInfo | None:
        layer = self._layers.get(layer_id)
        return None if layer is None else self._info(layer)

    def _info(self, layer: Manifest) -> LayerInfo:
        size_mb = layer.size_mb
        if layer.kind == TEMPLATE:
            parent = layer.parent
            while parent is not None:
                below = self._layers[parent]
                size_mb, parent = size_mb + below.size_mb, below.parent
        return LayerInfo(
            id=layer.id, parent=layer.parent, depth=layer.depth, size_mb=size_mb, created_at=layer.created_at,
            kind=layer.kind, template=layer.template, labels=layer.labels,
        )  # fmt: skip

    def check_new(self, layer_id: str, parent: str | None, most: int = MOST_LAYERS) -> None:
        """Check that a layer of that name can be created on top of `parent`, of at most `most`. Raises UsageError."""
        if not LAYER_ID.fullmatch(layer_id):
            raise UsageError(f"{layer_id!r} is not a valid id of a layer: use 8 to 40 hexadecimal digits")
        if layer_id in self._layers:
            raise UsageError(f"a layer {layer_id} exists already; choose another id")
        if parent is not None and parent in self._layers and self._layers[parent].depth >= most:
            raise UsageError(f"the machine is based on {most} layers, which is the most; start from a plain machine")

    def use(self, machine: str, layer_id: str, base_tree: str, runtimes: frozenset[str] = frozenset()) -> tuple[str, ...]:
        """Return the layers below a machine, uppermost first, which aren't deleted until `release`. Raises ProviderError.

        `runtimes`: the stored runtimes that the machine has.
        """
        chain: list[Manifest] = []
        at: str | None = layer_id
        while at is not None:
            layer = self._layers.get(at)
            if layer is None or (layer.base_tree, layer.privilege) != (base_tree, self._privilege):
                raise gone(layer_id, "it doesn't exist" if layer is None else "the host's packages have changed since")
            if not runtimes.issuperset(layer.runtimes):
                raise gone(layer_id, "a runtime that it may use is no longer stored")
            chain.append(layer)
            at = layer.parent
        self._users[machine] = frozenset(layer.id for layer in chain)
        self._used_at |= {layer.id: datetime.now(UTC) for layer in chain}
        return tuple(layer.id for layer in chain)

    def hold(self, machine: str, layer_id: str) -> None:
        """Add a layer that is about to exist to those that aren't deleted until `release`."""
        self._users[machine] = self._users.get(machine, frozenset()) | {layer_id}

    def release(self, machine: str) -> None:
        self._users.pop(machine, None)

    def open(self, chain: Sequence[str]) -> list[LowerLayer]:
        """Check and mount the layers. Blocking. Raises OSError, and ProviderError with code LAYER_GONE for a damaged one."""
        opened: list[LowerLayer] = []
        try:
            for name in chain:
                layer = self._layers[name]
                if name not in self._unsealed and self._fingerprint(layer) != layer.fingerprint:
                    raise gone(chain[0], f"its files have changed (layer {name})")
                opened.append(LowerLayer(name, layer.base, self._mount(name) if layer.image else None))
        except BaseException:
            close_all(opened)
            raise
        return opened

    def adopt(
        self,
        layer_id: str,
        machine: Path,
        disk: Image | int,
        parent: str | None,
        base_tree: str,
        runtimes: frozenset[str] = frozenset(),
        kind: str = "",
        template: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> LayerInfo:
        """Move the disk of an ended machine to a new layer, which `seal` makes permanent. Blocking. Raises OSError.

        `machine` is its folder. `disk`: its mounted image, which the store closes from now on; or the size in MB of its folder
        `disk`. `runtimes`: the stored runtimes that the machine had.
        """
        image = disk if isinstance(disk, Image) else None
        draft = self._paths.layers / f".{layer_id}.{os.getpid()}"
        self._paths.layers.mkdir(mode=0o711, exist_ok=True)  # privilege `root`: PID 1 enters through here
        remove_tree(draft)
        draft.mkdir(mode=0o711)
        try:
            size_mb = disk if isinstance(disk, int) else 0
            if image is not None:
                image.move(draft / IMAGE)
                owner, used = os.fstat(image.folder), os.statvfs(image.folder)
                size_mb = (used.f_blocks - used.f_bfree) * used.f_frsize // 1024**2
            else:
                for work in (machine / "disk").glob("work*"):
                    remove_tree(work)
                (machine / "disk").rename(draft / "disk")
                owner = (draft / "disk").stat()
            draft.rename(self._folder(layer_id))
        except BaseException:
            remove_tree(draft)
            raise
        layer = Manifest(
            format=_FORMAT,
            id=layer_id,
            parent=parent,
            depth=1 if parent is None else self._layers[parent].depth + 1,
            base_tree=base_tree,
            runtimes=tuple(sorted(runtimes)),
            privilege=self._privilege,
            base=owner.st_uid if self._privilege == "root" else 0,
            image=image is not None,
            size_mb=size_mb,
            created_at=datetime.now(UTC),
            fingerprint="",
            kind=kind,
            template=template,
            labels=dict(labels or {}),
        )
        self._unsealed.add(layer_id)
        if image is not None:
            image.path = self._folder(layer_id) / IMAGE
            with self._mounting:
                self._mounts[layer_id] = image
        self._layers[layer_id] = layer
        return self._info(layer)

    def seal(self, layer_id: str) -> None:
        """Write the data of a new layer to the disk, then its manifest; those below it first. Blocking. Raises OSError."""
        with self._sealing:
            chain: list[str] = []
            at: str | None = layer_id
            while at is not None and at in self._layers:
                chain.append(at)
                at = self._layers[at].parent
            for each in reversed(chain):
                self._seal(each)

    def _seal(self, layer_id: str) -> None:
        layer = self._layers.get(layer_id)
        if layer is None or layer_id not in self._unsealed:
            return  # it was deleted meanwhile, or is permanent
        folder = self._folder(layer_id)
        if layer.image:
            with self._mounting:
                self._mounts[layer_id].freeze()
            _sync_file(folder / IMAGE)
        else:
            top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sc.syncfs(top)
            finally:
                os.close(top)
        layer = msgspec.structs.replace(layer, fingerprint=self._fingerprint(layer)).signed()
        if layer_id not in self._layers:
            return
        self._write(layer)
        self._layers[layer_id] = layer
        self._unsealed.discard(layer_id)

    def demote(self, layer_id: str) -> None:
        """Make a template a layer that is deleted with the last machine and layer based on it. Blocking. Raises OSError."""
        with self._sealing:
            layer = self._layers.get(layer_id)
            if layer is None:
                return
            layer = msgspec.structs.replace(layer, kind=FORK, template="")
            if layer_id not in self._unsealed:
                layer = layer.signed()
                self._write(layer)
            self._layers[layer_id] = layer

    def _write(self, layer: Manifest) -> None:
        folder = self._folder(layer.id)
        draft = folder / f".{_MANIFEST}"
        draft.write_bytes(msgspec.json.encode(layer))
        _sync_file(draft)
        draft.rename(folder / _MANIFEST)
        for path in (folder, self._paths.layers):
            _sync_file(path)

    def remove(self, layer_id: str) -> Callable[[], None] | None:
        """Forget a layer; return the blocking function that deletes its files, or None if the layer doesn't exist.

        Raises ProviderError with code IN_USE while a machine, or another layer, is based on it.
        """
        layer = self._layers.get(layer_id)
        if layer is None:
            return None
        above = [other.id for other in self._layers.values() if other.parent == layer_id]
        users = [name for name, chain in self._users.items() if layer_id in chain]
        if above or users:
            what = f"machine {users[0]}" if users else f"layer {above[0]}"
            raise ProviderError(f"layer {layer_id} is in use by {what}; delete that first", code=IN_USE)
        away = self._paths.layers / f".{layer_id}.{time.monotonic_ns():x}"
        try:
            self._folder(layer_id).rename(away)
        except OSError as error:
            raise ProviderError(f"layer {layer_id} cannot be deleted: {error.strerror or error}") from error
        del self._layers[layer_id]
        self._used_at.pop(layer_id, None)
        self._unsealed.discard(layer_id)

        def delete() -> None:
            with self._mounting:
                image = self._mounts.pop(layer_id, None)
            if image is not None:
                image.close()
            remove_tree(away)

        return delete

    def least_used(self, keep: str | None) -> str | None:
        """Return the layer that was used longest ago, of those that nothing uses; None if there is none. Not `keep`."""
        used = frozenset[str | None]().union({keep, *(layer.parent for layer in self._layers.values())}, *self._users.values())
        idle = [layer for layer in self._layers.values() if layer.kind != TEMPLATE and layer.id not in used | self._unsealed]
        return min(idle, key=lambda layer: self._used_at.get(layer.id, layer.created_at)).id if idle else None

    def outdated(self, base_trees: Iterable[str]) -> list[str]:
        """Return the layers that are based on none of these base trees, uppermost first. No machine can start from them.

        Without templates, which their users delete.
        """
        valid = set(base_trees)
        found = [layer for layer in self._layers.values() if layer.base_tree not in valid and layer.kind != TEMPLATE]
        return [layer.id for layer in sorted(found, key=lambda layer: -layer.depth)]

    def without_runtimes(self, stored: frozenset[str]) -> list[str]:
        """Return the layers whose machines had a runtime that isn't stored any more, uppermost first."""
        found = [layer for layer in self._layers.values() if not stored.issuperset(layer.runtimes) and layer.kind != TEMPLATE]
        return [layer.id for layer in sorted(found, key=lambda layer: -layer.depth)]

    def close(self) -> None:
        """Unmount everything. Blocking."""
        with self._mounting:
            while self._mounts:
                _name, image = self._mounts.popitem()
                image.unmount()

    def _folder(self, layer_id: str) -> Path:
        return self._paths.layer(layer_id)

    def _read(self, folder: Path) -> Manifest | None:
        """Return the manifest of an intact layer."""
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=Manifest)
            if not LAYER_ID.fullmatch(folder.name) or manifest.id != folder.name or not manifest.is_intact():
                return None
            return manifest if self._fingerprint(manifest) == manifest.fingerprint else None
        except (OSError, msgspec.DecodeError):
            return None

    def _missing_below(self, layer_id: str) -> bool:
        at: str | None = layer_id
        seen = 0
        while at is not None:
            if at not in self._layers or seen > MOST_LAYERS:
                return True
            at, seen = self._layers[at].parent, seen + 1
        return False

    def _fingerprint(self, layer: Manifest) -> str:
        """Return what changes when a layer is damaged or written to: cheap, without reading its content. Raises OSError."""
        folder = self._folder(layer.id)
        if layer.image:
            status = (folder / IMAGE).stat()
            return f"{status.st_size} {status.st_mtime_ns}"
        tops = sorted((folder / "disk").iterdir())
        return " ".join(f"{top.name}:{top.stat().st_mtime_ns}:{top.stat().st_uid}" for top in tops)

    def _mount(self, layer_id: str) -> int:
        """Return a new detached mount of a layer's image."""
        with self._mounting:
            image = self._mounts.pop(layer_id, None)
            if image is None:
                image = _mount_when_detached(self._folder(layer_id) / IMAGE)
            self._mounts[layer_id] = image
            used = frozenset[str]().union(*self._users.values())
            for idle in [name for name in self._mounts if name not in used | self._unsealed | {layer_id}][:-_KEPT_MOUNTS]:
                self._mounts.pop(idle).unmount()
            return image.another_mount()


def gone(layer_id: str, why: str) -> ProviderError:
    return ProviderError(f"layer {layer_id} can't be used: {why}; start from a plain machine", code=LAYER_GONE)


def close_all(layers: Iterable[LowerLayer]) -> None:
    for layer in layers:
        if layer.mount is not None:
            os.close(layer.mount)


def _mount_when_detached(path: Path) -> Image:
    """Mount an image read-only once no loop device has its file: an unmount ends in the background, and writes until then."""
    deadline = time.monotonic() + _DETACHED_S
    while _attached(path):
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"{path} is still mounted elsewhere")
        time.sleep(0.005)
    return mount_read_only(path)


def _attached(path: Path) -> bool:
    name = os.fsencode(os.path.realpath(path))
    for device in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if device.read_bytes().rstrip(b"\n") == name:
                return True
    return False


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
