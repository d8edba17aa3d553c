"""Why this host can't create machines, in the kernel's words, and every remedy, one line each."""

from __future__ import annotations

import errno
from pathlib import Path

from gibil_bot.errors import ProviderError, Unavailable
from gibil_bot.providers.local.init_client import SpawnFailed

_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE)


def explain(failed: SpawnFailed, privilege: str, data_dir: str) -> ProviderError:
    """Return Unavailable if the host forbids it, or ProviderError if it ran out of something."""
    message = f"this host can't create machines (privilege {privilege}): {failed.stage}: {failed.text}"
    namespaces = "namespace" in failed.stage or "map" in failed.text
    # user namespaces answer ENOSPC when their *number* is bounded to 0 or used up (user_namespaces(7))
    if failed.number in _EXHAUSTED and not (namespaces and failed.number == errno.ENOSPC):
        return ProviderError(f"cannot create a machine: {failed.stage}: {failed.text}; free resources and try again")
    return Unavailable(message, tuple(_remedies(failed, privilege, data_dir)))


def _remedies(failed: SpawnFailed, privilege: str, data_dir: str) -> list[str]:
    remedies = []
    if privilege == "root":
        remedies.append("in a container: start it with --privileged (CAP_SYS_ADMIN is needed), or run gibil on the host itself")
        if "idmapped" in failed.stage:
            remedies.append("idmapped mounts need Linux 5.19 and /usr and the data directory on ext4, xfs, btrfs or tmpfs")
        remedies.append("or run gibil as an ordinary user, which needs fewer privileges")
    else:
        remedies.append("run gibil with sudo: root needs no permission for user namespaces")
        if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
            remedies.append("Ubuntu's AppArmor forbids it: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
            remedies.append(
                "or allow one Python only: copy it into your venv and load an AppArmor profile "
                "`profile gibil /PATH/OF/THE/COPY flags=(unconfined) { userns, }`"
            )
        if _sysctl("kernel/unprivileged_userns_clone") == "0":
            remedies.append("Debian's kernel setting forbids it: sudo sysctl -w kernel.unprivileged_userns_clone=1")
        if _sysctl("user/max_user_namespaces") == "0":
            remedies.append("the limit of user namespaces is 0: sudo sysctl -w user.max_user_namespaces=10000")
        if len(remedies) == 1:
            remedies.append(
                "in a container: start it with --privileged, or run gibil on the host itself (/proc must not be masked)"
            )
    if "overlays" in failed.stage:
        remedies.append(
            f"overlay file systems may not work on the file system of {data_dir}: set GIBIL_DATA_DIR to a local disk"
        )
    return remedies


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
