"""What gibil costs, as ratios against something real that is measured in the same run. A command, not part of pytest."""
