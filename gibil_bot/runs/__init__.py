"""The doing: from a stored delivery to a closed check run."""
