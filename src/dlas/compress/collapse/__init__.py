"""Merge layers that are linear in sequence."""
