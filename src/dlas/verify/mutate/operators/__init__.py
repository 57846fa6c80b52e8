"""Mutations, one file each, by what they change."""
