"""Layouts that weights are packed into: compressed rows, 4-bit codes, powers of two and blocks with shared scales.

Each module packs, checks and unpacks one layout; what a kernel computes from it stands in ``kernels/reference``.
"""
