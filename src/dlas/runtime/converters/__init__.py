"""Converters: somebody else's tools, each in a process of its own."""
