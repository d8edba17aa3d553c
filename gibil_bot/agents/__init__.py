"""Agents that work on pull requests: engines, context, transcripts, budgets, and the proxy that holds the models' keys."""
