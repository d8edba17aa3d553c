"""GitHub over HTTP: the client, its requests and limits, and the publisher of notifications."""
