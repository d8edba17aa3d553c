"""Numbered SQL files as in `sqlite/migrations`: the same number is the same schema."""
