"""The HTTP API between the bots of the hosts that share a database: its signatures, and its client. `web` has the server."""
