"""Fuzzing of everything that reads files: mutated sound files must be refused in one line or read rightly.

``corpus.py`` makes the sound files, ``mutate.py`` changes them, ``probes.py`` reads them and compares the answers, and
``engine.py`` runs that in a worker process. A new format takes part as soon as it is registered.
"""

from dlas.testing.fuzz.engine import Finding, Fuzzer, Tally, table

__all__ = ["Finding", "Fuzzer", "Tally", "table"]
