"""Machines in Hetzner Cloud."""
