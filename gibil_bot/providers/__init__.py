"""What creates machines: the local provider and Hetzner Cloud, and what they share."""
