"""The SQLite store: `store` opens it; `inbox`, `runs`, `outbox` and `ledger` are the four stores with their SQL."""
