"""ONNX operators as PyTorch calls. These modules import torch; only ``dlas.graph.torch_module`` imports them, lazily.

A builder, registered under its operator type, reads a node once and returns the call that computes it. The call
receives the node's inputs by position (None where one is absent or was read as a constant by the builder).
"""
