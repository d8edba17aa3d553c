"""What `gibil db` does: the state of the database, its migration, its check, and its export to PostgreSQL."""
