"""Architectures, one module each; found by their file name."""
