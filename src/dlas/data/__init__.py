"""Layer 1, data sets and problem spaces: what the network is judged on.

A loader turns a file or folder into a Dataset of raw samples; ``preprocess`` brings samples into the form a Model
expects; ``metrics`` judge its answers.
"""
