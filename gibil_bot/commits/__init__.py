"""Commits from a machine or a folder of this host, checked, and pushed to where they belong."""
