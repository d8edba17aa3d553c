"""The store in the SQL that SQLite and PostgreSQL both understand: the rows, the claims and their rules are written once."""
