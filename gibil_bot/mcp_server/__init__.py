"""Machines for agents over MCP: the tools of `gibil mcp`, on the same functions as the command line and the SDK."""
