"""How a machine comes to be: namespaces, layers, devices, network, in the order that the kernel insists on.

Runs in the forger's children and never in a process that holds an event loop or a secret. The first child enters the
namespaces and is gone again at once; the second is PID 1 of the machine and the forger's own child from then on (the
forger is a subreaper), so one process waits for all and one PDEATHSIG holds the chain together.

Paths below the local folder are relative to it: they need no escaping in mount options, and in tier `root` PID 1 could
not look them up from the top (its host uid is nobody there).
"""

from __future__ import annotations

import errno
import json
import os
import resource
import select
import signal
import socket
from typing import NoReturn, TypedDict

from gibil_bot.machines.local import init, seccomp
from gibil_bot.machines.local import syscalls as sc

IDS = 65536
"""User and group ids of a machine in tier `root`."""

DOCKER_CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))
"""chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot mknod audit_write setfcap:
what docker leaves to a container's root. Without SYS_ADMIN a job cannot remount a read-only bind writable."""

PROXY = ("127.0.0.1", 3128)

_ISOLATION = sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP | sc.CLONE_NEWNET
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


class Order(TypedDict):
    """What the keeper asks of the forger: nothing in it is secret."""

    name: str
    tier: str
    local: str
    """The local folder, absolute; the machine's own is machines/NAME in it."""
    skeleton: str
    """Name of the skeleton's folder in the local folder."""
    pieces: list[tuple[str, bool]]
    python: tuple[str, str] | None
    cgroups: list[str]
    """cgroup.procs files to join."""
    pids: int
    disk_mb: int
    """Size of a disk in memory; 0: the disk is a folder."""
    listeners: list[tuple[str, int]]
    """Loopback addresses that PID 1 listens on beside the proxy's."""
    base: int
    """The first host uid of the machine's range, tier `root` only."""


class _Stage:
    """What is being done, for the one line that a person reads when it fails."""

    now = "starting"


def enter(order: Order, control: socket.socket, go: int, report: int, keep: tuple[int, ...]) -> NoReturn:
    """The first child: join the cgroups, enter the namespaces, fork PID 1, report its pid, vanish.

    `go` is readable once this process is gone; `keep` are descriptors (locks) that live as long as the machine.
    """
    try:
        _Stage.now = "joining the cgroup"
        for path in order["cgroups"]:
            _write(path, "0")
        _Stage.now = "setting limits"
        sc.new_session_keyring()
        _write("/proc/self/oom_score_adj", "500")  # when the whole box runs out of memory, machines go first
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _bound(resource.RLIMIT_NPROC, order["pids"])
        os.chdir(order["local"])
        if order["tier"] == "root":
            _enter_as_root(order)
        else:
            _enter_as_user()
        _Stage.now = "starting PID 1"
        pid = os.fork()
        if pid == 0:
            _run(order, control, go, keep)
        os.write(report, str(pid).encode())
        os._exit(0)
    except BaseException as error:
        _fail(control, error)


def _bound(kind: int, value: int) -> None:
    _soft, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _enter_as_user() -> None:
    uid, gid = os.getuid(), os.getgid()
    _Stage.now = "entering a user namespace"
    sc.unshare(sc.CLONE_NEWUSER | _ISOLATION)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _enter_as_root(order: Order) -> None:
    """The layers are mounted while we are still root of the host: only that may make them idmapped."""
    _Stage.now = "making a user namespace"
    namespace = _user_namespace(order["base"])
    folder = f"machines/{order['name']}"
    os.chown(f"{folder}/disk", order["base"], order["base"])
    _Stage.now = "mounting idmapped layers"
    sc.unshare(sc.CLONE_NEWNS)
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    _mount_points(folder, layers=len(order["pieces"]) + 2)
    sources = [(f"{order['skeleton']}/root", False), *order["pieces"]]
    if order["python"]:
        sources.append((order["python"][0], False))
    for number, (source, optional) in enumerate(sources):
        try:
            fd = sc.open_tree(source)
            sc.mount_setattr(fd, sc.MOUNT_ATTR_IDMAP | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_RDONLY, user_namespace=namespace)
            sc.move_mount(fd, f"{folder}/mnt/{number}")
            os.close(fd)
        except OSError:
            if not optional:
                raise
            os.rmdir(f"{folder}/mnt/{number}")
    _Stage.now = "becoming root of the machine"
    sc.setns(namespace, sc.CLONE_NEWUSER)
    os.close(namespace)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _Stage.now = "entering namespaces"
    sc.unshare(_ISOLATION)


def _user_namespace(base: int) -> int:
    """A user namespace that maps 0..65535 to base.., as a descriptor: some process has to enter it for a moment."""
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
            _write(f"/proc/{pid}/{ids}", f"0 {base} {IDS}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    finally:
        for fd in (ready_read, ready_write, done_read, done_write):
            os.close(fd)
        os.waitpid(pid, 0)


def _run(order: Order, control: socket.socket, go: int, keep: tuple[int, ...]) -> NoReturn:
    """PID 1: build what the machine sees, wait until the forger is our parent, and serve."""
    try:
        os.setsid()
        os.umask(0o022)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        _close_others({control.fileno(), go, *keep})
        _Stage.now = "mounting the machine's layers"
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        _layers(order)
        root = f"machines/{order['name']}/mnt/root"
        _system(order, root)
        _Stage.now = "changing the root"
        os.chdir(root)
        sc.pivot_root(".", ".")
        sc.unmount(".", sc.MNT_DETACH)
        os.chdir("/")
        _Stage.now = "setting up the network"
        sc.loopback_up()
        listeners = [_listen(*PROXY), *(_listen(host, port) for host, port in order["listeners"])]
        _Stage.now = "waiting for the forger"
        _await_parent(go)
        _Stage.now = "closing the machine's doors"
        sc.set_process_name("gibil-init")
        sc.drop_bounding_set(DOCKER_CAPABILITIES)
        sc.prctl(sc.PR_SET_DUMPABLE, 0)  # jobs have our uid: without this they could read and trace PID 1
        seccomp.install(pretend_root=order["tier"] == "user")
        message = json.dumps({"ready": len(listeners)}).encode()
        socket.send_fds(control, [message], [listener.fileno() for listener in listeners])
        for listener in listeners:
            listener.close()
    except BaseException as error:
        _fail(control, error)
    init.serve(control)


def _await_parent(go: int) -> None:
    """The forger writes when the first child is gone and we are its own child; from then on we die with it."""
    if os.read(go, 1) != b"1":
        os._exit(1)
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    poll = select.poll()
    poll.register(go, 0)
    if poll.poll(0):  # it holds the other end for as long as it lives: it died before the prctl
        os._exit(1)
    os.close(go)


def _mount_points(folder: str, layers: int) -> None:
    """In memory and in our own mount namespace: making and removing directories on a busy disk takes milliseconds each."""
    sc.mount("mnt", f"{folder}/mnt", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=711,size=64k")
    for name in ("root", *(str(number) for number in range(layers))):
        os.mkdir(f"{folder}/mnt/{name}", 0o711)


def _layers(order: Order) -> None:
    folder = f"machines/{order['name']}"
    if order["tier"] == "user":
        _mount_points(folder, layers=0)
    if order["disk_mb"]:
        options = f"size={order['disk_mb']}m,mode=700,nr_inodes={order['disk_mb'] * 256}"
        sc.mount("disk", f"{folder}/disk", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)
    etc = f"{folder}/disk/upper0/etc"
    os.makedirs(etc)
    _write(f"{etc}/hostname", f"{order['name']}\n", os.O_CREAT)
    _write(f"{etc}/hosts", f"127.0.0.1 localhost\n127.0.1.1 {order['name']}\n::1 localhost\n", os.O_CREAT)
    skeleton = order["skeleton"]
    as_root = order["tier"] == "root"
    _overlay(folder, 0, f"{folder}/mnt/0" if as_root else f"{skeleton}/root", f"{folder}/mnt/root")
    for number, (path, optional) in enumerate(order["pieces"], start=1):
        lower = f"{folder}/mnt/{number}" if as_root else f"{skeleton}/trees{path}:{_escaped(path)}"
        target = f"{folder}/mnt/root{path}"
        try:
            if optional and not os.path.isdir(target):
                os.makedirs(target)
            _overlay(folder, number, lower, target)
        except OSError:
            if not optional:
                raise
    if as_root and ("/usr", False) in order["pieces"]:
        _write(f"{folder}/mnt/root/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", os.O_CREAT, 0o755)
    if order["python"]:
        _python(order, *order["python"])


def _overlay(folder: str, number: int, lower: str, target: str) -> None:
    upper, work = f"{folder}/disk/upper{number}", f"{folder}/disk/work{number}"
    os.makedirs(upper, exist_ok=True)
    os.mkdir(work)
    # volatile: nobody needs this disk after a crash, so nothing is ever synced (docs.kernel.org/filesystems/overlayfs.html)
    options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,volatile"
    sc.mount("overlay", target, "overlay", sc.MS_NODEV, options)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _python(order: Order, prefix: str, executable: str) -> None:
    """The only Python of the box lies outside /usr: show it read-only where it is, as `python3`."""
    root = f"machines/{order['name']}/mnt/root"
    number = 1 + len(order["pieces"])
    source = f"machines/{order['name']}/mnt/{number}" if order["tier"] == "root" else prefix
    os.makedirs(root + prefix, exist_ok=True)
    fd = sc.open_tree(source, recursive=order["tier"] == "user")
    sc.mount_setattr(fd, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV, recursive=True)
    sc.move_mount(fd, root + prefix)
    os.close(fd)
    os.makedirs(f"{root}/usr/local/bin", exist_ok=True)
    os.symlink(executable, f"{root}/usr/local/bin/python3")


def _system(order: Order, root: str) -> None:
    """/proc, /sys, /dev, /run, and no user namespaces for jobs: in one of their own they would have all capabilities."""
    _Stage.now = "mounting /proc"
    quiet = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    sc.mount("proc", f"{root}/proc", "proc", quiet)
    try:
        sc.mount("sysfs", f"{root}/sys", "sysfs", quiet | sc.MS_RDONLY)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY):  # masked on this box: builds do without
            raise
    _Stage.now = "mounting devices"
    dev = f"{root}/dev"
    sc.mount("dev", dev, "tmpfs", sc.MS_NOSUID | sc.MS_NOEXEC, "mode=755,size=64k")
    for name in _DEVICES:
        _write(f"{dev}/{name}", "", os.O_CREAT)
        sc.mount(f"/dev/{name}", f"{dev}/{name}", None, sc.MS_BIND)
    os.mkdir(f"{dev}/pts")
    os.mkdir(f"{dev}/shm")
    group = ",gid=5" if order["tier"] == "root" else ""
    terminals = f"newinstance,ptmxmode=0666,mode=620{group}"
    sc.mount("devpts", f"{dev}/pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, terminals)
    sc.mount("shm", f"{dev}/shm", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=1777,size=512m")
    os.symlink("pts/ptmx", f"{dev}/ptmx")
    os.symlink("/proc/self/fd", f"{dev}/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{dev}/{name}")
    sc.mount("run", f"{root}/run", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755,size=256m")
    os.mkdir(f"{root}/run/lock")
    sc.set_hostname(order["name"])
    _Stage.now = "forbidding further user namespaces"
    _write(f"{root}/proc/sys/user/max_user_namespaces", "0")


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(128)
    return listener


def _close_others(keep: set[int]) -> None:
    """/proc/self/fd has the numbers; the directory's own descriptor is among them and gone already when we come to it."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            try:
                os.close(int(name))
            except OSError as error:
                if error.errno != errno.EBADF:
                    raise


def _write(path: str, text: str, flags: int = 0, mode: int = 0o644) -> None:
    fd = os.open(path, os.O_WRONLY | flags, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _fail(control: socket.socket, error: BaseException) -> NoReturn:
    number = error.errno if isinstance(error, OSError) else None
    path = f" ({error.filename})" if isinstance(error, OSError) and isinstance(error.filename, str) else ""
    text = f"{error.strerror}{path}" if isinstance(error, OSError) and error.strerror else repr(error)
    try:
        control.send(json.dumps({"failed": _Stage.now, "errno": number, "text": text}).encode())
    finally:
        os._exit(1)
