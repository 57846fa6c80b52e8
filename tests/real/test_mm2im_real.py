"""The DCGAN generator with its transposed convolutions on the accelerator: LiteRT's bytes, at both levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas.graph.format import load_model
from dlas.hardware.accelerator import accelerator_for
from dlas.kernels.extension import native
from dlas.runtime.offload import Offloaded

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


@pytest.mark.parametrize("level", ["tlm", pytest.param("rtl", marks=pytest.mark.slow)])
def test_dcgan_equals_litert(level: str, data_folder: Path) -> None:
    litert = pytest.importorskip("ai_edge_litert.interpreter", reason="the oracle is LiteRT")
    path = data_folder / "models" / "gan" / "dcgan_gen.tflite"
    theirs = litert.Interpreter(str(path), experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF)
    theirs.allocate_tensors()
    ours = Offloaded(load_model(path), accelerator_for("mm2im"), level=level)
    placed = [layer for layer in ours.layers if layer.op == "QConvTranspose"]
    assert len(placed) == 3
    assert not any(layer.reason for layer in placed)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = rng.standard_normal((1, 100)).astype(np.float32)
        theirs.set_tensor(theirs.get_input_details()[0]["index"], x)
        theirs.invoke()
        (found,) = ours.run({ours.executable.signature.inputs[0].name: x}).values()
        np.testing.assert_array_equal(found, theirs.get_tensor(theirs.get_output_details()[0]["index"]))
    shares = [layer.cycles.macs / layer.macs for layer in placed]
    np.testing.assert_allclose(shares, [0.687, 0.836, 0.916], atol=5e-4)  # what padding does not crop
    assert ours.cycles.utilisation > 0.9
    ours.close()
