"""Faults in how a network is fed."""
