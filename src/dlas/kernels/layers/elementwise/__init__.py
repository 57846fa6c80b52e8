"""Operators that treat every element alike."""
