"""Registering the MCP server with clients."""
