"""Layer 5, systems software: back ends that compile a Model for a Target and run it.

``backend.py`` is the contract, ``backends/`` the members, ``session`` runs one of them in a worker process.
"""
