"""Why this box cannot forge, in the kernel's words, and every way out, one line each."""

from __future__ import annotations

import errno
from pathlib import Path

from gibil_bot.errors import ProviderError, Unavailable
from gibil_bot.providers.local.init_client import SpawnFailed

_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


def explain(failed: SpawnFailed, privilege: str, data_dir: str) -> ProviderError:
    """Unavailable when the box forbids it, a plain ProviderError when something merely ran out."""
    said = f"no machine can be forged here (tier {privilege}): {failed.stage}: {failed.text}"
    namespaces = "namespace" in failed.stage or "map" in failed.text
    # user namespaces answer ENOSPC when their *number* is bounded to 0 or used up (user_namespaces(7))
    if failed.number in _EXHAUSTED and not (namespaces and failed.number == errno.ENOSPC):
        return ProviderError(f"a machine could not be forged: {failed.stage}: {failed.text}; free some and try again")
    return Unavailable(said, tuple(_ways_out(failed, privilege, data_dir)))


def _ways_out(failed: SpawnFailed, privilege: str, data_dir: str) -> list[str]:
    ways = []
    if privilege == "root":
        ways.append("in a container: start it with --privileged, or run gibil on the box itself (forging needs CAP_SYS_ADMIN)")
        if "idmapped" in failed.stage:
            ways.append("idmapped mounts need Linux 5.19 and /usr and the data directory on ext4, xfs, btrfs or tmpfs")
        ways.append("or run as an ordinary user: tier `user` asks less of the box")
    else:
        ways.append("run with sudo: tier `root` needs no permission for user namespaces")
        if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
            ways.append("Ubuntu's AppArmor forbids it: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
            ways.append(
                "or allow one Python only: copy it into your venv and load an AppArmor profile "
                "`profile gibil /PATH/OF/THE/COPY flags=(unconfined) { userns, }`"
            )
        if _sysctl("kernel/unprivileged_userns_clone") == "0":
            ways.append("Debian's switch forbids it: sudo sysctl -w kernel.unprivileged_userns_clone=1")
        if _sysctl("user/max_user_namespaces") == "0":
            ways.append("user namespaces are bounded to none: sudo sysctl -w user.max_user_namespaces=10000")
        if len(ways) == 1:
            ways.append("in a container: start it with --privileged, or run gibil on the box itself (/proc must not be masked)")
    if "overlays" in failed.stage:
        ways.append(f"overlay file systems may not work on the file system of {data_dir}: set GIBIL_DATA_DIR to a local disk")
    return ways


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
