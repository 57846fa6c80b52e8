"""PyTorch to TFLite by litert-torch, from an exported program with its example inputs."""

import importlib
from typing import Any


def convert(order: dict[str, Any]) -> None:
    """Carry out an order."""
    import torch

    tool = importlib.import_module("litert_torch")
    program = torch.export.load(order["source"])
    assert program.example_inputs is not None
    arguments = program.example_inputs[0]
    tool.convert(program.module(), arguments).export(order["target"])
