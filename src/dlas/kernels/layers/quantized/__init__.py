"""Layers of 8-bit integers."""
