"""Plumbing every room uses; imports nothing from the layers above it and no heavy library."""
