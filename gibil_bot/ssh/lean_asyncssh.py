"""asyncssh without the parts that are never used, which are half of its import.

`gibil run NAME true` on a local machine, best of 20 runs each on two cores: 422 ms, and 538 ms with the whole of asyncssh
(processor time: 178 and 221 ms).

While it is imported, asyncssh asks the linker (and, where that says no, a C compiler) for liboqs and libnettle, whose
algorithms are in neither list (ssh/client.py, providers/local/ssh_server.py), and loads X.509 certificates, which no key here
has. Both are optional parts: its crypto/__init__.py, public_key.py and mac.py expect their ImportError. A process that imported
asyncssh before keeps the whole.
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
