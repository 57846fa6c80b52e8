"""Recurrent operators of tflite files, from zero state, against LiteRT's own kernels."""

from __future__ import annotations

import numpy as np
import pytest
from tflite_maker import File, agree, feeds_of, run_litert, run_onnx, sqnr

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import from_bytes

UNITS, FEATURES, STEPS = 6, 4, 5
TANH, RELU, RELU6 = 4, 1, 3


def hybrid(f: File, *shape: int) -> int:
    """int8 weights with one scale."""
    return f.constant(f.rng.integers(-127, 128, shape).astype(np.int8), (0.01, 0))


def lstm_inputs(f: File, x: int, *, batch: int, coupled=False, peephole=False, outputs=UNITS, projection=False,
                norm=False, weights=None, peepholes_in=("input", "forget", "output")) -> list[int]:  # fmt: skip
    make = weights or File.weights
    features = int(f.tensors[x].shape[-1])

    def gates(*shape: int, kind=make) -> list[int]:
        return [-1 if n == 0 and coupled else kind(f, *shape) for n in range(4)]

    t = [x, *gates(UNITS, features), *gates(UNITS, outputs)]
    t += [f.weights(UNITS) if peephole and not (n == 0 and coupled) else -1 for n in range(3)]
    t += gates(UNITS, kind=File.weights)
    t += [make(f, outputs, UNITS), f.weights(outputs)] if projection else [-1, -1]
    t += [f.tensor((batch, outputs), variable=True), f.tensor((batch, UNITS), variable=True)]
    if norm:
        t += gates(UNITS, kind=File.weights)
    return t


def sequence(
    batch=2, time_major=False, function=TANH, clip=0.0, projection_clip=0.0, outputs=UNITS, **fields
):
    def build(f: File) -> None:
        shape = (STEPS, batch) if time_major else (batch, STEPS)
        x = f.input((*shape, FEATURES))
        t = lstm_inputs(f, x, batch=batch, outputs=outputs, **fields)
        o = f.options("UnidirectionalSequenceLSTM", fusedActivationFunction=function, cellClip=clip,
                      projClip=projection_clip, timeMajor=time_major)  # fmt: skip
        f.add("UNIDIRECTIONAL_SEQUENCE_LSTM", t, [f.output((*shape, outputs))], o, version=2)

    return build


def step(**fields):
    def build(f: File) -> None:
        t = lstm_inputs(f, f.input((2, FEATURES)), batch=2, **fields)
        o = f.options("LSTM", fusedActivationFunction=TANH)
        f.add("LSTM", t, [f.output((2, UNITS))], o)

    return build


def basic(f: File) -> None:
    x, h = f.input((2, FEATURES)), f.tensor((2, UNITS), variable=True)
    c = f.tensor((2, UNITS), variable=True)
    w, b = f.weights(4 * UNITS, FEATURES + UNITS), f.weights(4 * UNITS)
    outputs = [
        f.output((2, UNITS)),
        f.tensor((2, UNITS)),
        f.tensor((2, FEATURES + UNITS)),
        f.tensor((2, 4 * UNITS)),
    ]
    f.add(
        "LSTM",
        [x, h, w, b, c],
        outputs,
        f.options("LSTM", fusedActivationFunction=TANH, kernelType=1),
        version=2,
    )


def both_ways(merge=False, linked=False, time_major=False, **fields):
    def build(f: File) -> None:
        shape = (STEPS, 2) if time_major else (2, STEPS)
        x = f.input((*shape, FEATURES))
        halves = [lstm_inputs(f, x, batch=2, **fields) for _ in range(2)]
        t = [x, *halves[0][1:18], *halves[1][1:18], *halves[0][18:20], *halves[1][18:20]]
        t += [f.input((*shape, FEATURES)) if linked else -1, *[-1] * 8]
        o = f.options("BidirectionalSequenceLSTM", fusedActivationFunction=TANH, mergeOutputs=merge,
                      timeMajor=time_major)  # fmt: skip
        outputs = [(*shape, 2 * UNITS)] if merge else [(*shape, UNITS)] * 2
        f.add("BIDIRECTIONAL_SEQUENCE_LSTM", t, [f.output(s) for s in outputs], o, version=2)

    return build


def rnn_parts(f: File, weights=File.weights) -> list[int]:
    state = f.tensor((2, UNITS), variable=True)
    return [weights(f, UNITS, FEATURES), weights(f, UNITS, UNITS), f.weights(UNITS), state]


def rnn_step(f: File) -> None:
    f.add("RNN", [f.input((2, FEATURES)), *rnn_parts(f)], [f.output((2, UNITS))],
          f.options("RNN", fusedActivationFunction=TANH))  # fmt: skip


def rnn(function=TANH, time_major=False, weights=File.weights):
    def build(f: File) -> None:
        shape = (STEPS, 2) if time_major else (2, STEPS)
        o = f.options("SequenceRNN", fusedActivationFunction=function, timeMajor=time_major)
        x = f.input((*shape, FEATURES))
        f.add("UNIDIRECTIONAL_SEQUENCE_RNN", [x, *rnn_parts(f, weights)], [f.output((*shape, UNITS))], o)

    return build


def rnn_both_ways(merge=False, linked=False):
    def build(f: File) -> None:
        x = f.input((2, STEPS, FEATURES))
        t = [x, *rnn_parts(f), *rnn_parts(f), f.input((2, STEPS, FEATURES)) if linked else -1, -1, -1]
        o = f.options("BidirectionalSequenceRNN", fusedActivationFunction=TANH, mergeOutputs=merge)
        outputs = [(2, STEPS, 2 * UNITS)] if merge else [(2, STEPS, UNITS)] * 2
        f.add("BIDIRECTIONAL_SEQUENCE_RNN", t, [f.output(s) for s in outputs], o)

    return build


def svdf(rank=2, bias=True, weights=File.weights):
    def build(f: File) -> None:
        filters, memory = UNITS * rank, 7
        t = [f.input((2, FEATURES)), weights(f, filters, FEATURES), f.weights(filters, memory)]
        t += [f.weights(UNITS) if bias else -1, f.tensor((2, filters * memory), variable=True)]
        f.add("SVDF", t, [f.output((2, UNITS))], f.options("SVDF", rank=rank, fusedActivationFunction=RELU))

    return build


CASES = {
    "lstm": sequence(),
    "lstm time first": sequence(time_major=True),
    "lstm coupled": sequence(coupled=True),
    "lstm peephole": sequence(peephole=True),
    "lstm coupled peephole": sequence(coupled=True, peephole=True),
    "lstm projected": sequence(projection=True, outputs=3),
    "lstm projected clipped": sequence(projection=True, outputs=3, clip=0.3, projection_clip=0.2),
    "lstm normalised": sequence(norm=True),
    "lstm everything": sequence(norm=True, projection=True, peephole=True, coupled=True, outputs=3, clip=0.5),
    "lstm relu": sequence(function=RELU),
    "lstm relu6": sequence(function=RELU6),
    "lstm step": step(),
    "lstm step peephole": step(peephole=True),
    "lstm basic": basic,
    "both ways": both_ways(),
    "both ways merged": both_ways(merge=True, time_major=True),
    "both ways peephole": both_ways(peephole=True),
    "both ways linked": both_ways(linked=True),
    "rnn step": rnn_step,
    "rnn": rnn(),
    "rnn time first": rnn(time_major=True),
    "rnn relu": rnn(RELU),
    "rnn relu6": rnn(RELU6),
    "rnn plain": rnn(0),
    "rnn both ways": rnn_both_ways(),
    "rnn both ways merged": rnn_both_ways(merge=True),
    "svdf": svdf(),
    "svdf rank 1": svdf(1, False),
}


@pytest.mark.parametrize("name", CASES)
def test_first_call_as_litert_runs_it(name: str) -> None:
    file = File(5)
    CASES[name](file)
    model = agree(file)
    assert any("state starts at zero" in n for n in model.history[-1].notes)


HYBRIDS = {
    "lstm": lambda w: sequence(weights=w),
    "lstm coupled": lambda w: sequence(weights=w, coupled=True),
    "lstm projected": lambda w: sequence(weights=w, projection=True, outputs=3),
    "rnn": lambda w: rnn(weights=w),
    "svdf": lambda w: svdf(weights=w),
}


def widened(f: File, *shape: int) -> int:
    """The numbers that :func:`hybrid` stands for."""
    return f.constant(f.rng.integers(-127, 128, shape).astype(np.float32) * np.float32(0.01))


@pytest.mark.parametrize("name", HYBRIDS)
def test_integer_weights_stay_integer_and_mean_the_same(name: str) -> None:
    small, wide = File(6), File(6)
    HYBRIDS[name](hybrid)(small)
    HYBRIDS[name](widened)(wide)
    model = from_bytes(small.bytes(), "small")
    assert any("dynamic-range" in n for n in model.history[-1].notes)
    assert any(a.dtype == np.int8 and a.ndim >= 2 for a in model.initializers.values())
    feeds = feeds_of(small)
    got = run_onnx(model, feeds)
    for a, b in zip(run_litert(wide.bytes(), feeds), got, strict=True):
        assert sqnr(a, b) >= 120
    if name == "svdf":  # LiteRT wants the weights over time as integers too
        return
    for a, b in zip(run_litert(small.bytes(), feeds), got, strict=True):
        assert sqnr(a, b) >= 25  # LiteRT rounds what it multiplies to int8


def test_what_cannot_be_said_is_refused_by_name() -> None:
    f = File()
    rnn_both_ways(linked=True)(f)
    with pytest.raises(UnsupportedError, match="auxiliary input"):
        from_bytes(f.bytes(), "x")
    f = File()
    basics = rnn_parts(f)
    basics[3] = f.input((2, UNITS))
    f.add("RNN", [f.input((2, FEATURES)), *basics], [f.output((2, UNITS))], f.options("RNN"))
    with pytest.raises(UnsupportedError, match="not a variable"):
        from_bytes(f.bytes(), "x")


def integer_lstm(f: File, projection: bool = False) -> None:
    """int8 data and weights, int16 cell state, as post-training quantisation makes it."""
    x = f.input((1, STEPS, FEATURES), "int8", (0.02, 4))
    outputs = 3 if projection else UNITS
    hidden, y = (1 / 128, 0), (0.01, 2) if projection else (1 / 128, 0)

    def weights(*shape: int) -> int:
        return f.constant(f.rng.integers(-127, 128, shape).astype(np.int8), (0.008, 0))

    def bias() -> int:
        return f.constant(f.rng.integers(-3000, 3000, UNITS).astype(np.int32), (0.008 * 0.02, 0))

    t = [
        x,
        *(weights(UNITS, FEATURES) for _ in range(4)),
        *(weights(UNITS, outputs) for _ in range(4)),
        -1,
        -1,
        -1,
    ]
    t += [bias() for _ in range(4)]
    t += [weights(outputs, UNITS), -1] if projection else [-1, -1]
    t += [
        f.tensor((1, outputs), "int8", y, variable=True),
        f.tensor((1, UNITS), "int16", (2.0**-11, 0), variable=True),
    ]
    inside = [f.tensor((), "int16", (2.0**-12, 0)) for _ in range(4)] + [f.tensor((), "int8", hidden)]
    o = f.options("UnidirectionalSequenceLSTM", fusedActivationFunction=TANH)
    f.add("UNIDIRECTIONAL_SEQUENCE_LSTM", t, [f.output((1, STEPS, outputs), "int8", y)], o, version=3,
          intermediates=inside)  # fmt: skip


@pytest.mark.parametrize("projection", [False, True])
def test_integer_lstm_stays_within_its_own_rounding(projection: bool) -> None:
    file = File(7)
    integer_lstm(file, projection)
    model = agree(file, steps=3)
    assert any("integer LSTM" in n for n in model.history[-1].notes)


def test_integer_svdf() -> None:
    f = File(7)
    filters, memory = UNITS * 2, 5
    t = [f.input((1, FEATURES), "int8", (0.02, 0)),
         f.constant(f.rng.integers(-127, 128, (filters, FEATURES)).astype(np.int8), (0.01, 0)),
         f.constant(f.rng.integers(-3000, 3000, (filters, memory)).astype(np.int16), (2.0**-11, 0)),
         f.constant(f.rng.integers(-300, 300, UNITS).astype(np.int32), (2.0**-10 * 2.0**-11, 0)),
         f.tensor((1, filters * memory), "int16", (2.0**-10, 0), variable=True)]  # fmt: skip
    f.add("SVDF", t, [f.output((1, UNITS), "int8", (0.02, -128))], f.options("SVDF", rank=2, fusedActivationFunction=1),
          version=3)  # fmt: skip
    agree(f, steps=1)
