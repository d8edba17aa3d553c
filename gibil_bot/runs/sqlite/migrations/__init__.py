"""Numbered SQL files, applied in order, one transaction each; the database's `user_version` says which it has seen."""
