"""Conformance suites: inherit one, name a member, and it is proved right.

``backends.BackendSuite``, ``methods.MethodSuite`` and ``formats.FormatSuite`` are pytest classes; ``models`` holds tiny
networks. A suite is inherited in a test module::

    class TestMine(BackendSuite):
        backend = "mine"
"""
