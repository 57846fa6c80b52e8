"""Faults in scales, zero points and ranges of quantised networks."""
