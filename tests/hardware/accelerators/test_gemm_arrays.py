"""Matrix-product accelerators: model and RTL agree, schedules cover everything, what does not fit is said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dlas.core.errors import CheckFailedError, DlasError, OptionError, UnknownNameError
from dlas.hardware.accelerator import Accelerator, DoesNotFitError, accelerator_for, accelerators
from dlas.hardware.accelerators._gemm.geometry import Geometry
from dlas.hardware.accelerators._gemm.product import Lowered
from dlas.hardware.accelerators._gemm.schedule import Schedule
from dlas.hardware.verification import require, verify
from dlas.kernels.kernel import Node, Operand
from dlas.kernels.reference.quantized import conv2d
from dlas.kernels.reference.requantize import Requantization
from dlas.kernels.reference.shift_add import shift_products

SMALL = "weight_kib=4,input_kib=2"
RTL = [f"vm:units=2,{SMALL}", f"vm-shift:units=1,method=apot,{SMALL}", "sa:rows=4,weight_kib=8,input_kib=4"]
SLOW_RTL = [
    f"vm:units=1,rounding=single,{SMALL}",
    "sa:weight_kib=8,input_kib=4",
    f"vm-shift:units=1,method=msq,{SMALL}",
    f"vm-shift:units=1,method=po2,{SMALL}",
    f"vm-shift:units=1,method=po2,semantics=tflite,{SMALL}",
]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("choice", [*RTL, *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW_RTL)])
def test_model_and_rtl_agree(choice: str) -> None:
    found = verify(accelerator_for(choice))
    assert found.passed, found.failures[:5]
    assert "equal to its RTL on 200" in require(accelerator_for(choice))


def test_an_accelerator_that_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = accelerator_for(RTL[0])
    cycles = Schedule.cycles
    monkeypatch.setattr(Schedule, "cycles", lambda self: {**cycles(self), "total": cycles(self)["total"] + 1})
    found = verify(accelerator, trials=2)
    assert not found.passed
    assert "total is" in found.failures[0]
    with pytest.raises(CheckFailedError, match="is not its RTL"):
        require(accelerator)
    monkeypatch.undo()
    verify(accelerator, trials=2)


@pytest.mark.parametrize("choice", ["vm:units=1", "vm:units=4", "sa"])
def test_products_are_those_of_the_reference(choice: str, random: np.random.Generator) -> None:
    accelerator = accelerator_for(choice)
    for _ in range(20):
        node, x = accelerator.trial(random)
        if node.op != "QConv":
            continue
        a, weight, bias = node.attributes, node.constant(1), node.constant(2)
        assert weight is not None
        factors = Requantization(
            np.array(a["multipliers"]), np.array(a["shifts"]), np.zeros(0), a["y_zero_point"], a["act_min"],
            a["act_max"], a["rounding"],
        )  # fmt: skip
        wanted = conv2d(
            x.transpose(0, 2, 3, 1), weight.transpose(0, 2, 3, 1), bias, factors, x_zero_point=a["x_zero_point"],
            strides=a["strides"], pads=a["pads"],
        )  # fmt: skip
        found, cycles = accelerator.layer(node).run(x, "tlm")
        np.testing.assert_array_equal(found, wanted.transpose(0, 3, 1, 2))
        assert cycles.macs == node.macs
        assert 0 < cycles.utilisation <= 1


@pytest.mark.parametrize("method", ["apot", "msq", "po2"])
def test_shifts_multiply_by_the_levels(method: str, random: np.random.Generator) -> None:
    accelerator = accelerator_for(f"vm-shift:method={method}")
    node, _ = accelerator.trial(random)
    product = accelerator.lowered(node).product  # type: ignore[attr-defined]
    from dlas.hardware.accelerators._vm_shift.levels import METHODS

    ones = shift_products(np.ones(1, np.int64), product.codes, METHODS[method])
    np.testing.assert_array_equal(ones, product.weights)
    weight = node.constant(1)
    assert weight is not None
    # One factor per filter explains its int8 numbers to half a step.
    flat = Lowered.of(node).product.weights.astype(float)
    factor = np.abs(flat).max(1) / np.abs(product.weights).max(1)
    assert np.abs(product.weights * factor[:, None] - flat).max() <= 1.0


def test_int8_semantics_of_powers_of_two_are_those_of_the_file(random: np.random.Generator) -> None:
    shift, plain = accelerator_for("vm-shift:method=po2,semantics=tflite"), accelerator_for("vm")
    for _ in range(10):
        node, x = shift.trial(random)
        found, wanted = (a.layer(node).run(x, "tlm")[0] for a in (shift, plain))
        np.testing.assert_array_equal(found, wanted)


def test_halves_of_bytes_and_twice_the_weights_per_word(random: np.random.Generator) -> None:
    node, x = accelerator_for("vm-shift").trial(random)
    half, whole = (accelerator_for(c).layer(node).run(x, "tlm")[1] for c in ("vm-shift", "vm"))
    assert half.counters["compute"] == whole.counters["compute"]
    assert half.counters["load_weights"] < whole.counters["load_weights"]


def test_weights_of_nine_bits_take_their_input_twice(random: np.random.Generator) -> None:
    """uint8 weights less their zero point go from -255 to 255."""
    node, x = accelerator_for("vm").trial(random)
    weight = node.constant(1)
    assert weight is not None
    wide = random.integers(-255, 256, weight.shape).astype(np.int16)
    node = dataclasses.replace(node, inputs=(node.inputs[0], Operand.of(wide), *node.inputs[2:]))
    lowered = Lowered.of(node)
    assert len(lowered.again)
    columns = wide.transpose(0, 2, 3, 1) if wide.ndim == 4 else wide
    rows = lowered.rows(x).astype(np.int64)
    depth = rows.shape[1] - len(lowered.again)
    np.testing.assert_array_equal(
        rows @ lowered.product.weights.T.astype(np.int64),
        rows[:, :depth] @ columns.reshape(len(wide), -1).T.astype(np.int64),
    )


def test_a_schedule_covers_every_channel_once_and_counts_every_word(random: np.random.Generator) -> None:
    g = Geometry(2, 4, 4, 4, 3, weight_words=64, input_words=64, channel_slots=64)
    for _ in range(50):
        pixels, depth, channels = (int(random.integers(1, n)) for n in (60, 120, 90))
        s = Schedule(g, pixels, depth, channels)
        assert sum(s.groups) == s.blocks
        assert max(s.groups) * s.words <= g.weight_words // 2
        counted = s.cycles()
        assert counted["compute"] <= counted["total"]
        spans = s.spans()
        assert all(first <= last for _, _, first, last in spans)
        assert max(last for *_, last in spans) == counted["total"] - 1 + s.interval - s.steps


def test_what_does_not_fit_names_the_buffer() -> None:
    with pytest.raises(DoesNotFitError, match="weight buffer") as caught:
        Schedule(Geometry(1, 4, 4, 4, 3, weight_words=64), 4, 2000, 4)
    assert caught.value.needed > caught.value.available
    with pytest.raises(DoesNotFitError, match="input buffer"):
        Schedule(Geometry(1, 4, 4, 4, 3, input_words=64), 4, 2000, 4)


def test_what_is_refused_says_why(random: np.random.Generator) -> None:
    vm = accelerator_for("vm")

    def changed(**attributes: object) -> Node:
        return dataclasses.replace(node, attributes={**node.attributes, **attributes})

    while (node := vm.trial(random)[0]).op != "QConv":
        pass
    assert vm.refuses(node) == ""
    assert "grouped" in vm.refuses(changed(group=2))
    assert "single" in vm.refuses(changed(rounding="single"))
    assert "2**30" in vm.refuses(changed(shifts=(31,)))
    deep = Operand.of(np.zeros((1, 66_001, 1, 1), np.int8))
    assert "66001" in vm.refuses(dataclasses.replace(node, inputs=(node.inputs[0], deep, None)))
    noise = Operand.of(random.integers(-127, 128, node.operand(1).shape).astype(np.int8))
    reason = accelerator_for("vm-shift").refuses(
        dataclasses.replace(node, inputs=(node.inputs[0], noise, None))
    )
    assert "not on the levels of apot" in reason


def test_names_and_options() -> None:
    assert {"vm", "sa", "vm-shift"} <= set(accelerators.names())
    assert all(issubclass(member, Accelerator) for _, member in accelerators.members())
    with pytest.raises(UnknownNameError, match="vm"):
        accelerator_for("vn")
    with pytest.raises(OptionError, match="units"):
        accelerator_for("vm:units=3")


def test_a_design_that_never_ends_is_told() -> None:
    accelerator = accelerator_for(RTL[0])
    accelerator.fast = False  # as `verify` builds it
    with pytest.raises(DlasError, match="no end after 1000 cycles"):
        accelerator.simulator.run(np.zeros((3, 2), np.uint64), 1, limit=1000)
