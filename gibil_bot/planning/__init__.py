"""Turns YAML and an event into a plan of what to do. Pure functions."""
