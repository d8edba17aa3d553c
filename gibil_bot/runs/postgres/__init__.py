"""The store of several bots: ports.Store in one PostgreSQL database."""
