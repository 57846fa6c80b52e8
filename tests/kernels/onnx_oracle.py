"""Single ONNX nodes run by ONNX Runtime without optimisation: the oracle for the NumPy references."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx.helper as oh


def run_node(
    op: str,
    inputs: Mapping[str, np.ndarray | None],
    outputs: int = 1,
    *,
    domain: str = "",
    opset: int = 21,
    **attributes: Any,
) -> list[np.ndarray]:
    """What ONNX Runtime computes for one node; an input that is None is left out."""
    import onnxruntime as ort

    given = {name: value for name, value in inputs.items() if value is not None}
    names = [f"y{i}" for i in range(outputs)]
    node = oh.make_node(op, [n if n in given else "" for n in inputs], names, domain=domain, **attributes)
    graph = oh.make_graph(
        [node],
        "one",
        [
            oh.make_tensor_value_info(n, oh.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for n, v in given.items()
        ],
        [oh.make_empty_tensor_value_info(n) for n in names],
    )
    sets = [oh.make_opsetid("", opset)] + ([oh.make_opsetid(domain, 1)] if domain else [])
    model = oh.make_model(graph, opset_imports=sets, ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, given))


def near(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> None:
    """Same shape and dtype, and the largest difference small against the largest value."""
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if expected.size:
        bound = tolerance * max(1.0, float(np.abs(expected).max()))
        assert float(np.abs(found - expected).max()) <= bound
