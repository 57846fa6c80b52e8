"""Faults in the attributes of operators."""
