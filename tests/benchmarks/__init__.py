"""What gibil costs, as ratios to real programs that are measured in the same run. A command, not part of pytest."""
