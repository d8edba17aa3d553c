"""Engines: one YAML file each, which says how an agent's command-line program is installed, started and understood."""
