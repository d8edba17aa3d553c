"""The web server: webhook, run pages, health and metrics."""
