"""A double of GitHub with memory, and the demonstration that runs on it."""
