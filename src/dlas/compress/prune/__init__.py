"""Remove weights or channels."""
