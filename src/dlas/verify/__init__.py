"""Across the layers: is the deployed network still right?"""
