"""A GitHub of our own with memory, and the demonstration that runs on it."""
