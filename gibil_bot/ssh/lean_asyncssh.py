"""asyncssh without what we never use of it: half of its import, 80 ms of every command that talks to a machine.

While it is imported, asyncssh asks the linker (and, where that says no, a C compiler) for liboqs and libnettle, whose
algorithms are in none of our lists (ssh.py, local/door.py), and loads X.509 certificates, which none of our keys has. Both are
optional parts that it can do without: its crypto/__init__.py, public_key.py and mac.py expect their ImportError. Whoever has
imported asyncssh before has it whole.
"""

from __future__ import annotations

import ctypes.util
import sys

__all__ = ["asyncssh"]

_X509 = "asyncssh.crypto.x509"

if "asyncssh" not in sys.modules:
    _find_library = ctypes.util.find_library
    ctypes.util.find_library = lambda name: None
    sys.modules[_X509] = None  # type: ignore[assignment]  # import says ImportError to that
    try:
        import asyncssh
    finally:
        ctypes.util.find_library = _find_library
        del sys.modules[_X509]
else:
    import asyncssh
