"""Commits from a machine or a local folder: checked, and pushed to their remote."""
