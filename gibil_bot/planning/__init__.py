"""YAML and an event in, a plan of what should be done out. Pure."""
