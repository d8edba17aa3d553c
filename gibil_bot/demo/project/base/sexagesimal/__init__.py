"""Numbers in places of sixty."""
