"""Across the layers: what does each choice cost?"""
