"""8-bit activations by powers of two in 4 bits, each looked up in a register and multiplied."""

from __future__ import annotations

from typing import Any, ClassVar

from dlas.kernels.formats.grids import po2
from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.dense._low_bit import PackedMatMul


@kernels.register("po2-gemv")
class Po2Gemv(PackedMatMul):
    """Inputs of ``MatMulPo2``: those of ``MatMulW4A8``, with the codes of ``grids.po2(zero=True)``.

    Attributes: ``K``, ``N``, ``group_size``, ``zero_point`` and ``zero`` (1: exponent 0 stands for 0).
    """

    name = "po2-gemv"
    ops: ClassVar[tuple[str, ...]] = ("MatMulPo2",)
    summary = "powers of two in 4 bits, decoded by a table in a register"
    bits = 4.0

    def refuses(self, node: Node, context: Context) -> str:
        """Without a code for 0 the largest value is 128, which no signed byte holds."""
        if not node.attributes.get("zero", 1):
            return "its table holds values up to 64, which codes without 0 exceed; po2-shift takes them"
        return super().refuses(node, context)

    def attributes(self, node: Node) -> dict[str, Any]:
        """The values of the codes as well."""
        return {**super().attributes(node), "table": po2(zero=True).table.tolist()}
