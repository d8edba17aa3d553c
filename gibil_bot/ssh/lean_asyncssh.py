"""asyncssh without the parts that gibil never uses, which are half of its import time.

`gibil run NAME true` on a local machine, best of 20 runs each on two cores: 422 ms, and 538 ms with all of asyncssh
(processor time: 178 and 221 ms).

On import, asyncssh asks the linker (and then a C compiler) for liboqs and libnettle, whose algorithms are in neither of our
lists (ssh/client.py, providers/local/ssh_server.py), and loads X.509 certificates, which no key here has. Both are optional:
asyncssh's crypto/__init__.py, public_key.py and mac.py expect their ImportError. A process that imported asyncssh before this
module keeps all of it.

asyncssh also sends an SSH_MSG_IGNORE before every packet: a remedy for CBC (RFC 4251, 9.3.1), which isn't in our lists either.
Each of them wakes the other side.
"""

from __future__ import annotations

import ctypes.util
import sys
from typing import Any

__all__ = ["asyncssh"]

_X509 = "asyncssh.crypto.x509"

if "asyncssh" not in sys.modules:
    _find_library = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None
    sys.modules[_X509] = None  # type: ignore[assignment]  # makes its import raise ImportError
    try:
        import asyncssh
    finally:
        ctypes.util.find_library = _find_library
        del sys.modules[_X509]
else:
    import asyncssh

_send_packet = asyncssh.connection.SSHConnection.send_packet


def _send(self: Any, kind: int, *parts: bytes, **words: Any) -> None:
    if kind != asyncssh.constants.MSG_IGNORE:
        _send_packet(self, kind, *parts, **words)


asyncssh.connection.SSHConnection.send_packet = _send  # type: ignore[assignment, method-assign]
