"""Which authorities of servers' certificates are trusted by clients other than GitHub's."""

from __future__ import annotations

import ssl

import httpx


def authorities() -> ssl.SSLContext:
    """Trust certifi's authorities, as for GitHub, and the system's, which may include that of a private network. Blocks."""
    context = httpx.create_ssl_context(trust_env=False)
    context.load_default_certs()
    return context
