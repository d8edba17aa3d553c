"""What servers of the Hetzner double boot: Debian's packages, and replacements of the vendor's image and mainboard.

The init system is a replacement, because local machines have no systemd: the part of `systemctl` that a first boot uses, which
follows the packages' own units. The mainboard's DMI data with Hetzner's name is one, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from pathlib import Path

from gibil_bot.providers.local.paths import locked
from tests.doubles.hetzner_computer import Computer, missing_tools
from tests.doubles.machines import Lodging, local_lodging
from tests.doubles.patience import patient

PACKAGES = ("cloud-init", "openssh-server", "iproute2")
_BUILT_WITHIN_S = 240

_IMAGE_CONFIG = """\
datasource_list: [Hetzner, None]
network: {config: disabled}
locale: false
resize_rootfs: false
growpart: {mode: 'off'}
preserve_hostname: true
"""

# A unit is a file of Debian's package or of cloud-init; a unit that ended is started again, as all used ones demand it.
_SYSTEMCTL = r"""#!/bin/sh
# The init system of this image: as much of systemctl as a first boot uses.
echo "$*" >>/run/systemctl.log
lines() {
    for folder in /etc/systemd/system /usr/lib/systemd/system; do
        test ! -e "$folder/$2" || { sed -n "s/^$1=-\{0,1\}//p" "$folder/$2"; return; }
    done
}
start() {
    command=$(lines ExecStart "$1")
    test -n "$command" || exit 5
    setsid -f sh -c "while :; do $command & echo \$! >'/run/units/$1'; wait \$!; sleep 0.1; done" \
        </dev/null >>"/var/log/$1.log" 2>&1
}
reload() {
    read -r MAINPID <"/run/units/$1" || exit 1
    export MAINPID
    lines ExecReload "$1" | while read -r command; do sh -c "$command" || exit 1; done
}
restart() { kill "$(cat "/run/units/$1")"; }
case $1 in
    poweroff) echo off >/run/power ;;
    start | reload | restart) "$1" "${2%.service}.service" ;;
    show) test ! -e "/run/units/${5%.service}.service" || echo active ;;
    enable) for unit; do :; done; echo "$unit" >>/etc/systemd/enabled; start "$unit" ;;
    boot) sort -u /etc/systemd/enabled 2>/dev/null | while read -r unit; do start "$unit"; done ;;
esac
"""

# The DMI data is in /sys if that exists, and otherwise in what dmidecode(8) reads.
_DMI = r"""#!/bin/sh
case $2 in
    system-manufacturer) echo Hetzner ;;
    system-serial-number) cat /etc/image-serial ;;
esac
"""

PREPARE = """set -e
rm -rf /run/*
mkdir -p /run/lock /run/sshd /run/units /run/systemd/system /etc/systemd/system
mkfifo /run/power
chmod 755 /usr/local/sbin/systemctl /usr/local/sbin/dmidecode
ln -sf /bin/false /usr/local/bin/systemd-detect-virt
if test -d /sys/class/dmi/id; then
    mount -t tmpfs mainboard /sys/class/dmi/id
    echo Hetzner >/sys/class/dmi/id/sys_vendor
    cat /etc/image-serial >/sys/class/dmi/id/product_serial
fi
"""

# A disk on which overlays can be mounted, as on a VM: in memory, because the machine's own disk is an overlay. The host's
# control groups are visible, but none can be created: podman is configured without them. Contains images that were not pulled.
_CONTAINERS = """set -e
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /var/lib/containers /etc/containers
mount -t tmpfs disk /var/lib/containers
printf '[containers]\\ncgroups = "disabled"\\n' >/etc/containers/containers.conf
cat >/var/lib/containers/images.tar
podman load -q -i /var/lib/containers/images.tar 2>&1
"""

# There is no systemd to create control groups for it: dockerd creates them itself, below its group.
START_DOCKER = """set -e
podman rm -f -a -t 0
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir /sys/fs/cgroup/system
echo 0 >/sys/fs/cgroup/system/cgroup.procs
mkdir -p /var/lib/docker
mount -t tmpfs disk /var/lib/docker
printf '[Service]\\nExecStart=/usr/sbin/dockerd --exec-opt native.cgroupdriver=cgroupfs\\n' >/etc/systemd/system/docker.service
systemctl start docker.service
until docker info >/dev/null 2>&1; do sleep 0.1; done
docker load -q -i /var/lib/containers/images.tar
"""


class Image:
    """Packages that the host lacks, installed once by apt through the egress proxy and stored as a tar file."""

    def __init__(self, folder: Path) -> None:
        self._tar = folder / "image.tar"

    @property
    def tar(self) -> Path | None:
        return self._tar if self._tar.exists() and self._tar.stat().st_size else None

    async def build(self, lodging: Lodging) -> str | None:
        """Build the image; return None, or the reason why it can't be built here."""
        spec = lodging.spec("template", ttl_s=300, egress_allow=_mirrors(), tethered=True)
        machine = await lodging.provider.create(spec)
        try:
            # One `command -v` per name, because dash reads only the first.
            there = await lodging.run(machine, "command -v cloud-init && command -v ip && test -x /usr/sbin/sshd")
            if there.exit_status == 0:
                self._tar.touch()
                return None
            async with lodging.connect(machine) as connection, asyncio.timeout(patient(_BUILT_WITHIN_S)):
                done = await connection.run(
                    "touch /root/.before && sleep 0.05 && export DEBIAN_FRONTEND=noninteractive && apt-get -q update && "
                    f"apt-get -q -y --no-install-recommends install {' '.join(PACKAGES)}"
                )
                if done.exit_status != 0:
                    return f"apt-get cannot install {', '.join(PACKAGES)} here: {str(done.stderr).strip()[-300:]}"
                changed = "find / /usr -xdev -cnewer /root/.before ! -type d"
                not_these = " ".join(f"! -path '{path}/*'" for path in ("/proc", "/tmp", "/run", "/var/cache", "/var/lib/apt"))
                packed = await connection.run(f"{changed} {not_these} -print0 | tar -c --null -T - -f -", encoding=None)
                assert packed.exit_status == 0, packed.stderr
                assert isinstance(packed.stdout, bytes)
                draft = self._tar.with_suffix(".draft")
                await asyncio.to_thread(draft.write_bytes, packed.stdout)
                draft.rename(self._tar)
        except TimeoutError:
            return f"apt-get did not install {', '.join(PACKAGES)} within {_BUILT_WITHIN_S} s here"
        finally:
            await lodging.provider.destroy(machine.name)
        return None

    async def install(self, computer: Computer, serial: str, containers: Path | None) -> None:
        """Install it on a new disk; `serial` is for the mainboard, `containers` a file of container images (containers.py)."""
        if self.tar is not None:
            await computer.must("tar -x -C / -f -", await asyncio.to_thread(self.tar.read_bytes))
        for path, text in (
            ("/etc/image-serial", serial),
            ("/etc/cloud/cloud.cfg.d/99-image.cfg", _IMAGE_CONFIG),
            ("/usr/local/sbin/systemctl", _SYSTEMCTL),
            ("/usr/local/sbin/dmidecode", _DMI),
        ):
            await computer.must(f"mkdir -p {os.path.dirname(path)} && cat >{path}", text.encode())
        if containers is not None:
            await computer.must(_CONTAINERS, await asyncio.to_thread(containers.read_bytes))


def _mirrors() -> tuple[str, ...]:
    """Return the hosts of this host's apt sources; their addresses may not be public."""
    hosts: set[str] = set()
    for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        with contextlib.suppress(OSError):
            hosts |= set(re.findall(r"https?://([A-Za-z0-9.-]+)", path.read_text()))
    return tuple(sorted(f"{host}:{port}" for host in hosts for port in (80, 443)))


def image_for_tests(folder: Path, base_trees: Path) -> Image | str:
    """Return the image that all workers of a test run share, built by the first; or the reason why there is none."""
    if os.geteuid() != 0:
        return "servers of the Hetzner double are local machines of tier root: run these tests as root"
    if (missing := missing_tools()) is not None:
        return missing
    folder.mkdir(exist_ok=True)
    image, reason = Image(folder), folder / "reason"

    async def build() -> None:
        async with local_lodging(folder / "data", base_trees) as lodging:
            reason.write_text(await image.build(lodging) or "")

    with locked(folder / "lock", wait_s=300) as mine:
        assert mine
        if not reason.exists():
            asyncio.run(build())
    return reason.read_text() or image
