"""Layer 3, model optimisation: every method takes a Model (and data) and returns a Model.

One folder per family (``prune``, ``quantize``, ...), one module per method; ``method.py`` is the contract.
"""
