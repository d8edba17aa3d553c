"""Base tree: the small read-only tree under the overlays of all machines of a data directory, in addition to the host's /usr.

It holds what a machine may read of the host besides /usr: the world-readable parts of /etc and of the package manager's data.
With privilege `user` it also holds every *directory* of /usr, empty and owned by our user: an overlay takes the owner of a
merged directory from its topmost layer, so apt can add files where the host's directories belong to root.

It is built once per data directory under a temporary name and renamed, and again under another name when the packages change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gibil_bot.providers.local.rmtree import remove_tree
from gibil_bot.scripts.runtimes import LOCAL_TOOL_PATH, runtime_tool
from gibil_bot.scripts.templates import text as script_text
from gibil_bot.scripts.tool_settings import tool_files

FORMAT = 6
"""Increased whenever the content that is built here changes."""

# fmt: off
_DIRECTORIES = (
    "boot", "dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "tmp", "usr", "var",
    "var/cache", "var/cache/apt/archives/partial", "var/cache/debconf", "var/cache/ldconfig", "var/lib",
    "var/lib/apt/lists/partial", "var/lib/dpkg", "var/lib/misc", "var/log", "var/log/apt", "var/mail", "var/spool",
    "var/tmp",
)
# fmt: on
_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_REMEMBERED = ("/var/lib/dpkg", "/var/lib/apt", "/var/lib/pam", "/var/lib/python", "/var/lib/ucf")

_CERTIFICATE_FOLDERS = (
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
)
"""Where administrators of Debian, Fedora and Arch add certificates."""
_CERTIFICATE_BYTES = 256 * 1024

_POLICY = "#!/bin/sh\n# No service manager runs in here: packages must not start daemons.\nexit 101\n"


class Piece(NamedTuple):
    """A directory of the host that a machine sees through its own overlay."""

    path: str
    optional: bool
    """It is a mount point on the host. If it can't be a layer of an overlay, the machine doesn't have it."""


class PythonOutside(NamedTuple):
    """A Python installation outside /usr that machines see, because the host has no other."""

    prefix: str
    executable: str


class Layout(NamedTuple):
    """What machines see of this host."""

    pieces: tuple[Piece, ...]
    opened: tuple[str, ...]
    """Directories of the host with mounts below them, which can't be layers of an overlay and are rebuilt."""
    python: PythonOutside | None


def mount_points() -> list[str]:
    """Return all mount points, from /proc/self/mountinfo, where spaces are octal escapes."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        fields = [line.split()[4] for line in lines]
    return [
        field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\") for field in fields
    ]


def package_sources() -> tuple[str, str]:
    """Return the content of /etc/os-release and of apt's source lists: where machines of this host get their packages from."""
    lists = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    return _text(Path("/etc/os-release")), "\n".join(_text(path) for path in lists)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def survey(privilege: str, mounts: Sequence[str] | None = None) -> Layout:
    """Return how the host's system is divided into overlays.

    With privilege `user` a directory with mounts below it can't be a layer of an overlay, because they are locked together.
    With privilege `root` it can, and those mounts get their own overlays.
    """
    mounts = mount_points() if mounts is None else mounts
    trees = ["/usr", *(f"/{name}" for name in _MERGED if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"))]
    pieces: list[Piece] = []
    opened: list[str] = []
    for tree in trees:
        below = sorted({point for point in mounts if point.startswith(tree + "/")})
        if privilege == "root":
            pieces.append(Piece(tree, optional=False))
            pieces += [Piece(point, optional=True) for point in below if os.path.isdir(point)]
        else:
            _cut(tree, below, pieces, opened, optional=False)
    return Layout(tuple(pieces), tuple(opened), _python_outside())


def _cut(path: str, mounts: Sequence[str], pieces: list[Piece], opened: list[str], *, optional: bool) -> None:
    if not any(point.startswith(path + "/") for point in mounts):
        pieces.append(Piece(path, optional))
        return
    opened.append(path)
    for entry in sorted(_entries(path), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            _cut(entry.path, mounts, pieces, opened, optional=entry.path in mounts)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []


def _python_outside() -> PythonOutside | None:
    if shutil.which("python3", path="/usr/local/bin:/usr/bin:/bin"):
        return None
    prefix = os.path.realpath(sys.base_prefix)
    executable = os.path.join(prefix, "bin", f"python3.{sys.version_info.minor}")
    return PythonOutside(prefix, executable) if os.path.exists(executable) and not prefix.startswith("/usr/") else None


class ToolSettings(NamedTuple):
    """The tools of machines and their configuration; see scripts/tool_settings.py."""

    ca_bundle: str = ""
    mirrors: tuple[tuple[str, str], ...] = ()


NO_SETTINGS = ToolSettings()


def name_of(privilege: str, layout: Layout, settings: ToolSettings = NO_SETTINGS) -> str:
    """Return the folder name of the base tree, which changes whenever the host's files that it is built from change."""
    seen = [FORMAT, runtime_tool(), privilege, repr(layout), repr(settings)]
    watched = ["/etc", *_CERTIFICATE_FOLDERS, "/etc/pip.conf", "/etc/passwd", "/etc/ssl/certs", "/etc/apt/sources.list.d"]
    dpkg = "/var/lib/dpkg/status"
    watched += (
        [dpkg] if os.path.exists(dpkg) else ["/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/share", "/usr/local/bin"]
    )
    for path in watched:
        try:
            seen.append(os.stat(path).st_mtime_ns)
        except OSError:
            seen.append(0)
    return f"skeleton-{privilege}-{hashlib.sha256(repr(seen).encode()).hexdigest()[:12]}"


def build(folder: Path, privilege: str, layout: Layout, settings: ToolSettings = NO_SETTINGS) -> None:
    """Build the base tree at `folder`; takes a second or two with privilege `user`. May be called by several processes."""
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    remove_tree(draft)
    root = draft / "root"
    root.mkdir(parents=True)
    for name in _DIRECTORIES:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, mode in (("tmp", 0o1777), ("var/tmp", 0o1777), ("root", 0o700)):
        (root / name).chmod(mode)
    for name in _MERGED:
        if os.path.islink(f"/{name}"):
            (root / name).symlink_to(os.readlink(f"/{name}"))
    (root / "var/run").symlink_to("/run")
    (root / "var/lock").symlink_to("/run/lock")
    _copy_public("/etc", root / "etc")
    for remembered in _REMEMBERED:
        if os.path.isdir(remembered):
            _copy_public(remembered, root / remembered[1:])
    for lock in ("lock", "lock-frontend"):
        (root / "var/lib/dpkg" / lock).unlink(missing_ok=True)
    _write_etc(root / "etc", privilege)
    _configure_tools(root, settings)
    tool = root / LOCAL_TOOL_PATH[1:]
    tool.parent.mkdir(parents=True, exist_ok=True)
    tool.write_text(runtime_tool())
    tool.chmod(0o755)
    for opened in layout.opened:
        _copy_files(opened, root / opened[1:])
    for piece in layout.pieces:
        (root / piece.path[1:]).mkdir(parents=True, exist_ok=True)
        directories = draft / "trees" / piece.path[1:]
        directories.mkdir(parents=True, exist_ok=True)
        if privilege == "user":
            _copy_directories(piece.path, directories)
    helpers = draft / "trees/usr/sbin" if Piece("/usr", optional=False) in layout.pieces else root / "usr/sbin"
    if privilege == "user":
        helpers.mkdir(parents=True, exist_ok=True)
        for name, text in (("policy-rc.d", _POLICY), ("gibil-own", script_text("own_package_files"))):
            (helpers / name).write_text(text)
            (helpers / name).chmod(0o755)
    draft.chmod(0o711)
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        remove_tree(draft)


def _write_etc(etc: Path, privilege: str) -> None:
    users = [line.split(":", 1)[0] for line in (etc / "passwd").read_text(errors="replace").splitlines() if ":" in line]
    files = {
        "shadow": "".join(f"{user}:*:19000:0:99999:7:::\n" for user in users),
        "gshadow": "root:*::\n",
        # Without a route, the egress proxy resolves names: failing at once is better than waiting for five seconds.
        "resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    }
    if (etc / "nsswitch.conf").is_file():
        files["nsswitch.conf"] = _with_plain_names((etc / "nsswitch.conf").read_text(errors="replace"))
    if (etc / "apt").is_dir():
        settings = 'APT::Install-Recommends "false";\nDpkg::Use-Pty "0";\n'
        if privilege == "user":
            settings += (
                'APT::Sandbox::User "root";\nDPkg::Pre-Install-Pkgs {"[ ! -x /usr/sbin/gibil-own ] || /usr/sbin/gibil-own";};\n'
            )
        (etc / "apt/apt.conf.d").mkdir(exist_ok=True)
        files["apt/apt.conf.d/99gibil"] = settings
    for name, text in files.items():
        (etc / name).unlink(missing_ok=True)  # it may be a link
        (etc / name).write_text(text)
    for name in ("shadow", "gshadow"):
        (etc / name).chmod(0o640)


def _configure_tools(root: Path, settings: ToolSettings) -> None:
    """Write the tools' configuration, for the operator's certificates and for those that the host trusts in addition."""
    if settings.ca_bundle:
        trust(root / "etc/ssl/certs", settings.ca_bundle)
    existing = {"/etc/pip.conf": _text(root / "etc/pip.conf")}
    for path, content in tool_files(host_certificates() + settings.ca_bundle, dict(settings.mirrors), existing).items():
        file = root / path[1:]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # it may be a link
        file.write_text(content)


def host_certificates() -> str:
    """Return the certificates in PEM that the host's administrator added to those of the distribution."""
    found = []
    for folder in _CERTIFICATE_FOLDERS:
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix in (".crt", ".pem") and path.is_file() and path.stat().st_size <= _CERTIFICATE_BYTES:
                text = _text(path)
                if "-----BEGIN CERTIFICATE-----" in text and "PRIVATE KEY" not in text:
                    found.append(f"{text.strip()}\n")
    return "".join(found)


def trust(folder: Path, pem: str) -> None:
    """Add certificates to the system's bundle, and as files whose names OpenSSL derives from their subjects."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "ca-certificates.crt").open("a") as bundle:
        bundle.write(pem)
    end = "-----END CERTIFICATE-----\n"
    for number, certificate in enumerate(f"{part}{end}" for part in pem.split(end) if part.strip()):
        file = folder / f"gibil-{number}.pem"
        file.write_text(certificate)
        # Without openssl on the host, programs that read the folder instead of the bundle don't find it.
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                ["openssl", "x509", "-noout", "-subject_hash", "-in", str(file)], capture_output=True, text=True, timeout=10
            )
            if done.returncode == 0:
                name = done.stdout.strip()
                free = next(f"{name}.{at}" for at in range(100) if not os.path.lexists(folder / f"{name}.{at}"))
                (folder / free).symlink_to(file.name)


def _with_plain_names(nsswitch: str) -> str:
    """Change the sources of host names to files and DNS: others (systemd-resolved, mDNS) are services of the host."""
    others = [line for line in nsswitch.splitlines() if not line.lstrip().startswith("hosts:")]
    return "\n".join([*others, "hosts: files dns", ""])


def _is_public(status: os.stat_result) -> bool:
    """Return whether every user of the host may read it: so no secret is copied, even if root builds the base tree."""
    if stat.S_ISDIR(status.st_mode):
        return status.st_mode & 0o005 == 0o005
    return stat.S_ISREG(status.st_mode) and bool(status.st_mode & 0o004)


def _copy_public(source: str, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for directory in _copy_files(source, target):
        _copy_public(directory, target / os.path.basename(directory))


def _copy_files(source: str, target: Path) -> list[str]:
    """Copy the public files and links directly in `source`; return its public directories."""
    target.mkdir(parents=True, exist_ok=True)
    directories = []
    for entry in _entries(source):
        copy = target / entry.name
        try:
            if entry.is_symlink():
                if not os.path.lexists(copy):
                    copy.symlink_to(os.readlink(entry.path))
                continue
            status = entry.stat(follow_symlinks=False)
            if not _is_public(status):
                continue
            if stat.S_ISDIR(status.st_mode):
                directories.append(entry.path)
            else:
                shutil.copyfile(entry.path, copy)
                copy.chmod(status.st_mode & 0o755)
        except (PermissionError, FileNotFoundError):
            continue  # changed meanwhile, or not readable despite its mode
    return directories


def _copy_directories(source: str, target: Path) -> None:
    waiting = [(source, str(target))]
    while waiting:
        here, there = waiting.pop()
        for entry in _entries(here):
            if not entry.is_dir(follow_symlinks=False):
                continue
            copy = f"{there}/{entry.name}"
            os.mkdir(copy, 0o755)
            if os.access(entry.path, os.R_OK | os.X_OK):
                waiting.append((entry.path, copy))
            else:
                # Merged with a directory that no user of the machine may read, it could not be listed or removed.
                os.setxattr(copy, "user.overlay.opaque", b"y")
