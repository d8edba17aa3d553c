"""The SQLite store: `store` opens it; `inbox`, `runs` and `outbox` are the three stores with their SQL."""
