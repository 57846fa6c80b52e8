"""Conformance suites: inherit one, name a member, and it is proved right."""
