"""An optimiser for tests, each of whose passes is a way to go wrong; it enters itself when imported."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from dlas.core.options import option
from dlas.verify.passes.tool import PassTool, pass_tools

HARMLESS = ("nothing", "tidy", "round-a-little")
ALL = (
    *HARMLESS, "half-a", "half-b", "rename", "negate", "raise", "abort", "hang", "garbage", "ask-more", "more-outputs",
    "nan",
)  # fmt: skip


@dataclass(frozen=True)
class FakeOptions:
    """Which passes it runs by itself, and whether it is broken before any of them."""

    passes: str = option("+".join(HARMLESS), "names joined by +")
    always_negates: bool = option(False, "whatever the passes")


@pass_tools.register("fake")
class Fake(PassTool):
    name = "fake"
    summary = "ways to go wrong"
    Options = FakeOptions
    options: FakeOptions

    def passes(self, model: bytes) -> list[str]:
        return list(ALL)

    def bundle(self, model: bytes) -> list[str]:
        return self.options.passes.split("+")

    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        chosen = self.bundle(model) if passes is None else list(passes)
        proto = onnx.ModelProto.FromString(model)
        if "raise" in chosen:
            raise ValueError("no idea how to go on")
        if "abort" in chosen:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "hang" in chosen:
            time.sleep(60)
        if "garbage" in chosen:
            proto.graph.node[0].input[0] = "nowhere"
        if "ask-more" in chosen:
            weight = proto.graph.initializer.pop()
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            )
        if "more-outputs" in chosen:
            proto.graph.output.append(proto.graph.output[0])
            proto.graph.output[-1].name = "again"
            proto.graph.node.append(
                onnx.helper.make_node("Identity", [proto.graph.output[0].name], ["again"])
            )
        if "rename" in chosen:
            _rename(proto)
        # Each half negates the last layer, but only where the other has been: alone they leave it as it is.
        wrong = "negate" in chosen or {"half-a", "half-b"} <= set(chosen) or self.options.always_negates
        factor = np.nan if "nan" in chosen else -1 if wrong else 1 + 1e-7 * ("round-a-little" in chosen)
        weight = next(w for w in proto.graph.initializer if w.name in ("fc_w", "w"))
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(factor), weight.name)
        )
        return proto.SerializeToString(deterministic=True)


def _rename(proto: onnx.ModelProto) -> None:
    old, new = proto.graph.input[0].name, "x_0"
    proto.graph.input[0].name = new
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
