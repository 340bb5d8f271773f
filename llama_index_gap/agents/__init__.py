"""Handing the search on: a tool for agents, and an MCP server."""
