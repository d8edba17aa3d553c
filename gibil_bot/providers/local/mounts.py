"""File systems of a machine: overlays, devices and /proc, which PID 1 mounts in its own mount namespace.

Paths are relative to the local folder: so they need no escaping in mount options, and with privilege `root` PID 1 has no
permission to look up the absolute paths.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TypedDict

from gibil_bot.providers.local import proc_views, proxy_settings
from gibil_bot.providers.local import syscalls as sc
from gibil_bot.providers.local.route import NAMESERVER

_HOSTS = "127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n"
_TERMINALS = 256
"""Terminals of a machine. The host has 4096 for all users (kernel.pty.max)."""
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class LayerRequest(TypedDict):
    """A read-only layer below the machine's disk."""

    id: str
    base: int
    """The first host uid of its owners, with privilege `root` only."""
    mounted: bool
    """It is an image, whose detached mount is passed as a descriptor; otherwise it is a folder."""


class SpawnRequest(TypedDict):
    """What the daemon requests from the fork server. It holds no secret."""

    name: str
    privilege: str
    local: str
    """Absolute path of the local folder; the machine's folder is machines/NAME in it."""
    base_tree: str
    """Name of the base tree's folder in the local folder."""
    pieces: list[tuple[str, bool]]
    python: tuple[str, str] | None
    pids: int
    memory_mb: int
    disk_mb: int
    disk: str
    """`memory`: a tmpfs of disk_mb; `image`: a mounted file system that is passed as a descriptor; `folder`: a folder of the
    host, where a file has at most disk_mb and the daemon limits the total."""
    weight: str
    """How jobs yield the processors to the host's programs: by a control group (`group`) or by `nice`."""
    cpus: list[int]
    """The processors that it sees and uses."""
    listeners: list[tuple[str, int]]
    """Loopback addresses that PID 1 listens on in addition to the proxy's."""
    allowed: list[tuple[str, int | None]]
    """IPv4 networks that the operator allows, with a port or None for all (route.py)."""
    base: int
    """The first host uid of the machine's range, with privilege `root` only."""
    layers: list[LayerRequest]
    """Uppermost first."""
    runtimes: str
    """Name of the folder with the stored runtimes in the local folder; empty if there are none."""


class Stage:
    """The current step, for the error message if it fails."""

    now = "starting"


def mount_points(folder: str, overlays: int, layers: int = 0) -> None:
    """Create the mount points in memory, because creating and removing directories on a busy disk takes milliseconds each."""
    sc.mount("mnt", f"{folder}/mnt", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=711,size=64k")
    for name in (
        "root",
        "runtimes",
        *(str(number) for number in range(overlays)),
        *(f"layer{number}" for number in range(layers)),
    ):
        os.mkdir(f"{folder}/mnt/{name}", 0o711)


def mount_overlays(request: SpawnRequest, *, has_route: bool) -> None:
    folder = f"machines/{request['name']}"
    if request["privilege"] == "user":
        mount_points(folder, overlays=0)
    if request["disk"] == "memory":
        options = f"size={request['disk_mb']}m,mode=700,nr_inodes={request['disk_mb'] * 256}"
        sc.mount("disk", f"{folder}/disk", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    etc = f"{folder}/disk/upper0/etc"
    os.makedirs(etc)
    write_file(f"{etc}/hostname", f"{request['name']}\n", os.O_CREAT)
    write_file(f"{etc}/hosts", _HOSTS.format(name=request["name"]), os.O_CREAT)
    if has_route:
        write_file(f"{etc}/resolv.conf", f"nameserver {NAMESERVER}\n", os.O_CREAT)
    else:
        proxy_settings.write(f"{folder}/disk/upper0")
    base_tree = request["base_tree"]
    as_root = request["privilege"] == "root"
    root = f"{folder}/mnt/root"
    lowest = [f"{folder}/mnt/0" if as_root else f"{base_tree}/root"]
    if request["runtimes"]:
        lowest.append(f"{folder}/mnt/runtimes" if as_root else request["runtimes"])
    _overlay(folder, 0, ":".join((*_layers(request, 0), *lowest)), root)
    for number, (path, optional) in enumerate(request["pieces"], start=1):
        lower = f"{folder}/mnt/{number}" if as_root else f"{base_tree}/trees{path}:{_escaped(path)}"
        try:
            target = real_directory(root, path, create=optional)
            _overlay(folder, number, ":".join((*_layers(request, number), lower)), target)
        except OSError:
            if not optional:
                raise
    # Layers have the file already, unless their tasks removed it.
    if as_root and ("/usr", False) in request["pieces"] and not request["layers"]:
        write_file(f"{folder}/mnt/root/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", os.O_CREAT, 0o755)
    if request["python"]:
        _show_python(request, *request["python"])


def real_directory(root: str, path: str, *, create: bool = False) -> str:
    """Return the directory at `path` in `root`. Raises OSError if it is missing, or if a part of it is not a directory.

    A layer was written by tasks: a symbolic link in it would lead out of `root`, to the host's files. Nothing changes the tree
    while a machine is being created, so checking each part is enough.
    """
    at = root
    for part in path.strip("/").split("/"):
        at = f"{at}/{part}"
        try:
            mode = os.lstat(at).st_mode
        except FileNotFoundError:
            if not create:
                raise
            os.mkdir(at)
            continue
        if not stat.S_ISDIR(mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), at)
    return at


def _layers(request: SpawnRequest, number: int) -> list[str]:
    """Return what the machine's layers have for one overlay, as far as they have anything."""
    machine = f"machines/{request['name']}"
    as_root = request["privilege"] == "root"
    found = []
    for index, layer in enumerate(request["layers"]):
        disk = f"{machine}/mnt/layer{index}" if as_root else f"layers/{layer['id']}/disk"
        if os.path.isdir(f"{disk}/upper{number}"):
            found.append(f"{disk}/upper{number}")
    return found


def _overlay(folder: str, number: int, lower: str, target: str) -> None:
    upper, work = f"{folder}/disk/upper{number}", f"{folder}/disk/work{number}"
    os.makedirs(upper, exist_ok=True)
    os.mkdir(work)
    # volatile: no disk is used after a crash, so nothing has to be synced (docs.kernel.org/filesystems/overlayfs.html)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile"
    sc.mount("overlay", target, "overlay", sc.MS_NODEV, options)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _show_python(request: SpawnRequest, prefix: str, executable: str) -> None:
    """Mount the host's only Python, which is outside /usr, read-only at its path, and link it as `python3`."""
    root = f"machines/{request['name']}/mnt/root"
    number = 1 + len(request["pieces"])
    source = f"machines/{request['name']}/mnt/{number}" if request["privilege"] == "root" else prefix
    real_directory(root, prefix, create=True)
    fd = sc.open_tree(source, recursive=request["privilege"] == "user")
    sc.mount_setattr(fd, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV, recursive=True)
    sc.move_mount(fd, root + prefix)
    os.close(fd)
    if not request["layers"]:
        os.makedirs(f"{root}/usr/local/bin", exist_ok=True)
        os.symlink(executable, f"{root}/usr/local/bin/python3")


def mount_system(request: SpawnRequest, root: str) -> list[int]:
    """Mount /proc, /sys, /dev and /run, and forbid further user namespaces, in which jobs would have all capabilities.

    Returns descriptors of the files that show the machine's share of the host (proc_views.py).
    """
    for name in ("proc", "sys", "dev", "run"):
        real_directory(root, name)
    Stage.now = "mounting /proc"
    quiet = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    sc.mount("proc", f"{root}/proc", "proc", quiet)
    try:
        sc.mount("sysfs", f"{root}/sys", "sysfs", quiet | sc.MS_RDONLY)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY):  # masked on this host; builds don't need it
            raise
    Stage.now = "mounting its share of /proc"
    views = proc_views.mount_views(root, request["cpus"], request["memory_mb"])
    Stage.now = "mounting devices"
    dev = f"{root}/dev"
    # Without nr_inodes a tmpfs accepts empty files, which no limit counts, up to half of the host's memory.
    sc.mount("dev", dev, "tmpfs", sc.MS_NOSUID | sc.MS_NOEXEC, "mode=755,size=64k,nr_inodes=1024")
    for name in _DEVICES:
        write_file(f"{dev}/{name}", "", os.O_CREAT)
        sc.mount(f"/dev/{name}", f"{dev}/{name}", None, sc.MS_BIND)
    os.mkdir(f"{dev}/pts")
    os.mkdir(f"{dev}/shm")
    group = ",gid=5" if request["privilege"] == "root" else ""
    terminals = f"newinstance,ptmxmode=0666,mode=620,max={_TERMINALS}{group}"
    sc.mount("devpts", f"{dev}/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, terminals)
    for name, target, mode, size in (
        ("shm", f"{dev}/shm", "1777", min(512, request["memory_mb"] // 4)),
        ("run", f"{root}/run", "755", min(256, request["memory_mb"] // 8)),
    ):
        options = f"mode={mode},size={size}m,nr_inodes={size * 64}"
        sc.mount(name, target, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    os.symlink("pts/ptmx", f"{dev}/ptmx")
    os.symlink("/proc/self/fd", f"{dev}/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{dev}/{name}")
    os.mkdir(f"{root}/run/lock")
    sc.set_hostname(request["name"])
    Stage.now = "forbidding further user namespaces"
    write_file(f"{root}/proc/sys/user/max_user_namespaces", "0")
    Stage.now = "limiting inotify"
    # The kernel counts these per user of the host, over all machines and the user's own programs.
    for counter, part in (("instances", 3), ("watches", 2)):
        try:
            with open(f"{root}/proc/sys/fs/inotify/max_user_{counter}") as file:
                most = int(file.read()) // part
            write_file(f"{root}/proc/sys/user/max_inotify_{counter}", str(most))
        except FileNotFoundError:
            continue  # a kernel without inotify, or without limits per namespace
    return views


def write_file(path: str, text: str, flags: int = 0, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | flags, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
