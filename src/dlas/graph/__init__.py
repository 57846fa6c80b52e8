"""The network as data: the Model, its formats in and out, and what can be computed on its graph.

Every other room works on :class:`dlas.graph.model.Model`; ``formats/`` brings files in and out, ``passes`` rewrites
graphs, ``analysis`` counts, ``reference`` says what the numbers should be.
"""
