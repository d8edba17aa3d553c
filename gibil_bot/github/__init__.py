"""What GitHub sends (webhooks, commands) and what is shown there (check runs, comments)."""
