"""Faults in stored weights."""
