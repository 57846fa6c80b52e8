"""PyTorch modules straight into ONNX, for the networks that need no more than a list of well-known calls.

PyTorch's own exporter understands any program and takes seconds. Most networks are a sequence of convolutions, sums
and the like, whichever numbers go through them: :mod:`dlas.graph.torch_trace.trace` has ``torch.fx`` write that
sequence down, runs it with two sizes of the batch to learn shapes, and looks up what each call is in ONNX. Whatever is
not in the tables is left to PyTorch. These modules import torch; only ``dlas.graph.torch_export`` imports them, lazily.
"""
