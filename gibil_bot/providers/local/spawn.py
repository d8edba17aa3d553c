"""Creating a machine: namespaces, mounts, devices and network, in the order that the kernel requires.

This runs in children of the fork server, never in a process with an event loop or a secret. The first child enters the
namespaces and exits at once. The second is PID 1 of the machine and becomes a child of the fork server, which is a subreaper:
so one process waits for all machines, and a PDEATHSIG ends each of them with the fork server.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Sequence
from typing import NoReturn

from gibil_bot.providers.local import init, mounts, route, seccomp
from gibil_bot.providers.local import syscalls as sc
from gibil_bot.providers.local.fd_passing import close_others
from gibil_bot.providers.local.mounts import SpawnRequest, Stage, write_file
from gibil_bot.providers.local.usage_poller import MEMORY_MOUNTS

IDS = 65536
"""Number of user and group ids of a machine with privilege `root`."""

DOCKER_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
"""chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap:
what docker leaves to a container's root. Without SYS_ADMIN a job cannot remount a read-only bind writable."""

SEND_FDS_S = 5.0

_ISOLATION = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP | sc.CLONE_NEWNET


def enter(
    request: SpawnRequest, control: socket.socket, go: int, report: int, keep: tuple[int, ...], disks: Sequence[int] = ()
) -> NoReturn:
    """Run the first child: enter the namespaces, fork PID 1, report its pid, and exit.

    `go` is readable once this process has ended. `keep`: descriptors of locks, which stay open as long as the machine exists.
    `disks`: detached mounts: of the machine's disk if that is an image, then of the layers that are images.
    """
    try:
        Stage.now = "setting limits"
        sc.new_session_keyring()
        # With 0 a core_pattern that is a pipe would start the host's crash handler, as root; 1 stops that too (core(5)).
        _bound(resource.RLIMIT_CORE, 1)
        if request["disk"] == "folder":
            _bound(resource.RLIMIT_FSIZE, request["disk_mb"] * 1024**2)
        os.sched_setaffinity(0, request["cpus"])
        os.chdir(request["local"])
        if request["privilege"] == "root":
            _enter_as_root(request, list(disks))
        else:
            _enter_as_user()
        # Not earlier: the kernel stores the limit with which a user namespace was created, and compares it with *all* processes
        # of that user on the host. Set inside the namespace, it counts only this machine's processes.
        _bound(resource.RLIMIT_NPROC, request["pids"])
        Stage.now = "starting PID 1"
        pid = os.fork()
        if pid == 0:
            _run(request, control, go, keep)
        os.write(report, str(pid).encode())
        os._exit(0)
    except BaseException as error:
        _fail(control, error)


def _bound(kind: int, value: int) -> None:
    _soft, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _enter_as_user() -> None:
    Stage.now = "entering a user namespace"
    become_owner(_ISOLATION)


def become_owner(isolation: int = 0) -> None:
    """Become root of a new user namespace with only our own user, which may access our own files whatever their modes."""
    uid, gid = os.getuid(), os.getgid()
    sc.unshare(sc.CLONE_NEWUSER | isolation)
    write_file("/proc/self/setgroups", "deny")
    write_file("/proc/self/uid_map", f"0 {uid} 1")
    write_file("/proc/self/gid_map", f"0 {gid} 1")


def _enter_as_root(request: SpawnRequest, disks: list[int]) -> None:
    """Enter as root. The file systems are mounted first, because only root of the host may create idmapped mounts."""
    Stage.now = "creating a user namespace"
    namespace = _user_namespace(request["base"])
    folder = f"machines/{request['name']}"
    Stage.now = "entering a mount namespace"
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    if request["disk"] == "image":
        Stage.now = "mounting the machine's disk"
        disk = disks.pop(0)
        sc.move_mount(disk, f"{folder}/disk")
        os.close(disk)
    os.chown(f"{folder}/disk", request["base"], request["base"])
    Stage.now = "mounting idmapped file systems"
    mounts.mount_points(folder, overlays=len(request["pieces"]) + 2, layers=len(request["layers"]))
    _mount_layers(request, folder, disks)
    sources = [(f"{request['base_tree']}/root", False), *request["pieces"]]
    if request["python"]:
        sources.append((request["python"][0], False))
    numbered = [(str(number), *source) for number, source in enumerate(sources)]
    if request["runtimes"]:
        numbered.append(("runtimes", request["runtimes"], False))
    for number, source, optional in numbered:
        try:
            fd = sc.open_tree(source)
            sc.mount_setattr(fd, sc.MOUNT_ATTR_IDMAP | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_RDONLY, user_namespace=namespace)
            sc.move_mount(fd, f"{folder}/mnt/{number}")
            os.close(fd)
        except OSError:
            if not optional:
                raise
            os.rmdir(f"{folder}/mnt/{number}")
    Stage.now = "becoming root of the machine"
    sc.setns(namespace, sc.CLONE_NEWUSER)
    os.close(namespace)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    Stage.now = "entering namespaces"
    sc.unshare(_ISOLATION)


def _mount_layers(request: SpawnRequest, folder: str, disks: list[int]) -> None:
    """Mount the layers read-only, with their owners mapped from the uids of the machine that wrote them to this one's."""
    namespaces: dict[int, int] = {}
    for number, layer in enumerate(request["layers"]):
        fd = disks.pop(0) if layer["mounted"] else sc.open_tree(f"layers/{layer['id']}/disk")
        attributes = sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_RDONLY
        if layer["base"] == request["base"]:
            sc.mount_setattr(fd, attributes)
        else:
            if layer["base"] not in namespaces:
                namespaces[layer["base"]] = _user_namespace(request["base"], first=layer["base"])
            sc.mount_setattr(fd, attributes | sc.MOUNT_ATTR_IDMAP, user_namespace=namespaces[layer["base"]])
        sc.move_mount(fd, f"{folder}/mnt/layer{number}")
        os.close(fd)
    for namespace in namespaces.values():
        os.close(namespace)


def _user_namespace(base: int, *, first: int = 0) -> int:
    """Return a descriptor of a user namespace that maps first… to base… A child enters it for a moment to create it."""
    ready_read, ready_write = os.pipe()
    done_read, done_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 0
        try:
            sc.unshare(sc.CLONE_NEWUSER)
        except OSError as error:
            status = error.errno or 1
        os.write(ready_write, bytes([status]))
        os.close(done_write)
        os.read(done_read, 1)
        os._exit(0)
    try:
        status = os.read(ready_read, 1)[0]
        if status:
            raise OSError(status, f"unshare(CLONE_NEWUSER): {os.strerror(status)}")
        for ids in ("uid_map", "gid_map"):
            write_file(f"/proc/{pid}/{ids}", f"{first} {base} {IDS}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        for fd in (ready_read, ready_write, done_read, done_write):
            os.close(fd)
        os.waitpid(pid, 0)


def _run(request: SpawnRequest, control: socket.socket, go: int, keep: tuple[int, ...]) -> NoReturn:
    """Run PID 1: mount the machine's file systems, wait until the fork server is the parent, and serve."""
    try:
        os.setsid()
        os.umask(0o022)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        close_others({control.fileno(), go, *keep})
        Stage.now = "setting up the network"
        sc.loopback_up()
        listeners = [_listen(*route.PROXY), *(_listen(host, port) for host, port in request["listeners"])]
        routed = route.set_up(request["allowed"])
        Stage.now = "mounting the machine's overlays"
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        mounts.mount_overlays(request, has_route=bool(routed))
        root = f"machines/{request['name']}/mnt/root"
        views = mounts.mount_system(request, root)
        Stage.now = "changing the root"
        os.chdir(root)
        sc.pivot_root(".", ".")
        sc.unmount(".", sc.MNT_DETACH)
        os.chdir("/")
        init.ENVIRONMENT.update(init.operators_environment())
        Stage.now = "opening the tables of its memory"
        memory = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in ("/proc/self/ns/mnt", *_memory_of(request))]
        sc.prctl(sc.PR_SET_DUMPABLE, 1)  # changing the user has closed /proc/self; no other process runs here yet
        priorities = init.JobPriorities(request["weight"] == "nice")
        Stage.now = "waiting for the fork server"
        _await_parent(go)
        Stage.now = "dropping privileges"
        sc.set_process_name("gibil-init")
        sc.drop_bounding_set(DOCKER_CAPABILITIES)
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # jobs have our uid, and could read and trace PID 1 otherwise
        seccomp.install(pretend_root=request["privilege"] == "user")
        sockets = [*listeners, *routed]
        message = json.dumps({"ready": len(sockets), "routed": len(routed), "views": len(views)}).encode()
        _send_fds(control, message, [*(each.fileno() for each in sockets), *views, *memory])
        for each in sockets:
            each.close()
        for fd in (*views, *memory):
            os.close(fd)
    except BaseException as error:
        _fail(control, error)
    init.serve(control, priorities)


def _memory_of(request: SpawnRequest) -> list[str]:
    """Return the paths that usage_poller.Memory reads: two tables, then every file system in memory."""
    in_memory = MEMORY_MOUNTS if request["disk"] == "memory" else MEMORY_MOUNTS[:-1]
    return ["/proc/sysvipc/shm", "/proc/sysvipc/msg", *in_memory]


def _send_fds(control: socket.socket, message: bytes, fds: list[int]) -> None:
    """Send descriptors; retried because the kernel limits how many of one user may be in transit, over all machines."""
    deadline = time.monotonic() + SEND_FDS_S
    while True:
        try:
            socket.send_fds(control, [message], fds)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _await_parent(go: int) -> None:
    """Wait until the fork server is our parent, which it reports on `go`. From then on we die with it."""
    if os.read(go, 1) != b"1":
        os._exit(1)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(go, 0)
    if poll.poll(0):  # it holds the other end as long as it runs, so it died before the prctl
        os._exit(1)
    os.close(go)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    return listener


def _fail(control: socket.socket, error: BaseException) -> NoReturn:
    number = error.errno if isinstance(error, OSError) else None
    path = f" ({error.filename})" if isinstance(error, OSError) and isinstance(error.filename, str) else ""
    text = f"{error.strerror}{path}" if isinstance(error, OSError) and error.strerror else repr(error)
    try:
        control.send(json.dumps({"failed": Stage.now, "errno": number, "text": text}).encode())
    finally:
        os._exit(1)
