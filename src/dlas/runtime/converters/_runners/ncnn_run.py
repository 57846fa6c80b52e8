"""Run an ncnn network on rows: ``source`` is the ``.param`` file, ``rows`` an ``.npy`` file ``(N, C, H, W)``."""

import importlib
from typing import Any


def convert(order: dict[str, Any]) -> None:
    """Carry out an order; the answers ``(N, ...)`` go to ``target``, an ``.npy`` file."""
    import numpy as np

    ncnn = importlib.import_module("ncnn")
    net = ncnn.Net()
    net.opt.num_threads = 1
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    strict = order["options"]["strict"]
    weights = order["source"][: -len(".param")] + ".bin"
    for part, load, path in (
        ("network", net.load_param, order["source"]),
        ("weights", net.load_model, weights),
    ):
        code = load(path)
        if code != 0 and strict:
            raise NotImplementedError(f"ncnn cannot load the {part}: code {code}")
    found = []
    for row in np.load(order["rows"]):
        extractor = net.create_extractor()
        extractor.input("in0", ncnn.Mat(np.ascontiguousarray(row)))
        code, answer = extractor.extract("out0")
        if code != 0 and strict:
            raise RuntimeError(f"extract returned {code}")
        found.append(np.array(answer))
    np.save(order["target"], np.stack(found))
