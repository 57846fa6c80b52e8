"""Ternary weights: scales, layers and training."""
