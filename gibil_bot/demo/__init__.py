"""A GitHub double with state, and the demonstration that runs on it."""
