"""Programs of the computer that runs the tests: a test that needs a missing one is skipped, with what to install."""

from __future__ import annotations

import shutil

import pytest

PACKAGES = {
    "apt-get": "apt",
    "curl": "curl",
    "dpkg-deb": "dpkg",
    "gpg": "gnupg",
    "jq": "jq",
    "make": "make",
    "node": "nodejs",
    "npm": "npm",
    "pgrep": "procps",
    "ps": "procps",
    "ssh-keygen": "openssh-client",
    "tmux": "tmux",
}
"""Program → Debian's package."""


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip if one of these programs is missing. Local machines have the host's programs, so this covers both."""
    missing = [program for program in programs if shutil.which(program) is None]
    packages = " ".join(dict.fromkeys(PACKAGES[program] for program in missing))
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is missing here: apt-get install {packages}")
