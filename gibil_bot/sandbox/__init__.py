"""Machines for people and agents: asked for at a prompt, from a program or over MCP; used; burned."""
