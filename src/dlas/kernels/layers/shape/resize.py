"""Maps of another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, Operand, kernels
from dlas.kernels.layers.shape._sampling import COORDINATES, NEAREST, Table, table
from dlas.kernels.layout import Layout, Storage


@kernels.register("resize")
class Resize(NativeKernel):
    """Nearest, linear and cubic along H and W: which inputs an output is made of is worked out once."""

    name = "resize"
    ops: ClassVar[tuple[str, ...]] = ("Resize", "Upsample")
    summary = "maps of another size"

    def refuses(self, node: Node, context: Context) -> str:
        """Batch or channels that change, sizes that the network computes, modes it does not know."""
        x, get = node.operand(0), node.attributes.get
        if not x.is_feature_map or x.shape[:2] != node.output.shape[:2]:
            return "it takes float32 feature maps and resizes H and W"
        if any(i is not None and i.constant is None for i in node.inputs[1:]):
            return "its size is computed by the network"
        if get("mode", "nearest") not in ("nearest", "linear", "cubic"):
            return f"its mode is {get('mode')}, it has nearest, linear and cubic"
        if _coordinates(node) not in COORDINATES or get("nearest_mode", "round_prefer_floor") not in NEAREST:
            return f"it does not know the coordinates {_coordinates(node)}, {get('nearest_mode')}"
        if get("antialias", 0) or get("keep_aspect_ratio_policy", "stretch") != "stretch":
            return "it does not smooth before it shrinks, and does not keep the ratio of the sides"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked, then plain."""
        return (Form.all(node, Layout.BLOCKED), Form.all(node, Layout.PLAIN))

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """One load per tap; plain maps are taken pixel by pixel."""
        taps = {"nearest": 1, "linear": 4, "cubic": 16}[node.attributes.get("mode", "nearest")]
        lanes = context.block if form.outputs[0] is Layout.BLOCKED else 1
        return 1e-6 + node.output.size * (1 + taps) * 5e-10 / lanes

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native layer with a table for the rows and one for the columns."""
        rows, columns = (_table(node, axis) for axis in (2, 3))
        attributes = {"rows": rows.inputs.ravel().tolist(), "columns": columns.inputs.ravel().tolist()}
        weights = (Operand.of(rows.weight), Operand.of(columns.weight))
        sampled = Node("Resize", node.name, attributes, (node.inputs[0], *weights), node.outputs)
        return super().prepare(sampled, (inputs[0], None, None), outputs, context)


def _coordinates(node: Node) -> str:
    default = "asymmetric" if node.op == "Upsample" else "half_pixel"
    return str(node.attributes.get("coordinate_transformation_mode", default))


def _table(node: Node, axis: int) -> Table:
    get = node.attributes.get
    old, new = node.operand(0).shape[axis], node.output.shape[axis]
    scales = node.constant(1 if node.op == "Upsample" else 2)
    factor = new / old
    if scales is not None and scales.size:
        axes = list(get("axes", range(4 - scales.size, 4)))
        factor = float(scales.ravel()[axes.index(axis)]) if axis in axes else 1.0
    nearest = get("nearest_mode", "floor" if node.op == "Upsample" else "round_prefer_floor")
    return table(
        old,
        new,
        factor,
        mode=get("mode", "nearest"),
        coordinates=_coordinates(node),
        nearest=nearest,
        cubic=float(get("cubic_coeff_a", -0.75)),
        exclude_outside=bool(get("exclude_outside", 0)),
    )
