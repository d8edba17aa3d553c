"""The parts of the SQLite store: opening, the writing thread, and the SQL of each kind of row. `runs/store.py` joins them."""
