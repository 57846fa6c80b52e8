"""Softmax and the normalisations."""
