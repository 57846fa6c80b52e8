"""Every operator of the table against ONNX Runtime, its gradient against finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto
from torch import Tensor
from torch_cases import CASES, IDS, NOT_IN_ONNX_RUNTIME, Case, model_of, random_cases, session_of

from dlas.core.errors import UnsupportedError
from dlas.graph.torch_module import to_torch
from dlas.graph.torch_ops.table import BUILDERS

F = np.float32


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    """Signal to error."""
    error = np.sum((want.astype(float) - got) ** 2)
    return np.inf if error == 0 else 10 * np.log10(np.sum(want.astype(float) ** 2) / error)


def agree(given: Case) -> None:
    model, inputs, content = model_of(given)
    wanted = session_of(content).run(None, inputs)
    with torch.no_grad():
        answer = to_torch(model)(*[torch.from_numpy(a) for a in inputs.values()])
    answers = answer if isinstance(answer, tuple) else (answer,)
    for want, tensor in zip(wanted, answers, strict=True):
        got = tensor.numpy()
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if want.dtype == F and np.isfinite(want).all():
            assert decibels(want, got) >= 110
        else:
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("given", CASES, ids=IDS)
def test_agrees_with_onnx_runtime(given: Case) -> None:
    agree(given)


def test_every_operator_of_the_table_has_a_case() -> None:
    agree(CASES[0])  # fills the table
    missing = set(BUILDERS) - {c.kind for c in CASES} - {"Constant"}
    assert missing == NOT_IN_ONNX_RUNTIME


# Cases whose answer jumps: the gradient is that of the numbers as they would be without rounding, or none.
JUMPS = {"Round", "QuantizeLinear", "com.microsoft.QuantizeLinear", "DynamicQuantizeLinear"}


def directional(given: Case) -> tuple[float, float, dict[str, Tensor]]:
    """Derivative of a random sum of the outputs along a random direction, by the gradient and by differences."""
    model, inputs, _ = model_of(given)
    module = to_torch(model).double()
    feed = [torch.from_numpy(a) for a in inputs.values()]
    feed = [t.double().requires_grad_() if t.is_floating_point() else t for t in feed]
    leaves = [*module.parameters(), *(t for t in feed if t.dtype == torch.float64 and t.dim() != 1)]
    random = torch.Generator().manual_seed(3)
    if not leaves:
        return 0.0, 0.0, {}
    ways = [torch.randn(t.shape, generator=random, dtype=t.dtype) for t in leaves]

    def total() -> Tensor:
        answer = module(*feed)
        floats = [a for a in (answer if isinstance(answer, tuple) else (answer,)) if a.is_floating_point()]
        return sum(
            (a.double() * torch.linspace(0.5, 1.5, a.numel(), dtype=torch.float64).reshape(a.shape)).sum()
            for a in floats
        )  # type: ignore[return-value]

    value = total()
    if not isinstance(value, Tensor) or not value.requires_grad:
        return 0.0, 0.0, {}
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    slope = sum(float((g * d).sum()) for g, d in zip(grads, ways, strict=True) if g is not None)
    step, ends = 1e-6, []
    with torch.no_grad():
        for sign in (1, -2):
            for leaf, way in zip(leaves, ways, strict=True):
                leaf.add_(way, alpha=sign * step)
            ends.append(float(total()))
    names = [n for n, _ in module.named_parameters()]
    return slope, (ends[0] - ends[1]) / (2 * step), dict(zip(names, grads, strict=False))  # type: ignore[arg-type]


@pytest.mark.parametrize("given", CASES, ids=IDS)
def test_gradient_is_the_slope_and_reaches_every_weight(given: Case) -> None:
    if (
        given.kind in JUMPS
        or given.attributes.get("to") == TensorProto.FLOAT16
        or any(np.isnan(v.array).any() for v in given.inputs if hasattr(v, "array"))
    ):
        pytest.skip("its answer jumps, or its inputs are no numbers")
    slope, measured, grads = directional(given)
    assert slope == pytest.approx(measured, rel=1e-5, abs=1e-6)
    for name, grad in grads.items():
        assert grad is not None, name
        assert torch.isfinite(grad).all(), name
        assert grad.abs().sum() > 0, name


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("make", random_cases(), ids=lambda f: f.__name__)
def test_random_shapes_and_attributes(make: object, seed: int) -> None:
    assert callable(make)
    for attempt in range(20):  # some draws are not valid
        given = make(np.random.default_rng([seed, attempt]))
        if given is not None:
            agree(given)
            slope, measured, _ = directional(given)
            assert slope == pytest.approx(measured, rel=1e-4, abs=1e-5)
            return
    pytest.fail("no valid draw")


def test_a_network_without_any_gradient_says_what_stops_it() -> None:
    given = next(
        c for c in CASES if c.op == "Gather" and not isinstance(c.inputs[0], type(CASES[0].inputs[0]))
    )
    model, inputs, _ = model_of(given)
    module = to_torch(model).train()
    feed = [torch.from_numpy(a) for a in inputs.values()]
    assert module(*feed).requires_grad
    mask = Case("Greater", (np.array([1.0, 2.0], F), CASES[0].inputs[0].__class__(np.array([1.5, 1.5], F))))
    model, inputs, _ = model_of(mask)
    module = to_torch(model).train()
    feed = [torch.from_numpy(a) for a in inputs.values()]
    with pytest.raises(UnsupportedError, match=r"no gradient reaches a weight .* stopped by Greater 'node'"):
        module(*feed)
    with torch.no_grad():
        assert module(*feed).tolist() == [False, True]
    assert module.eval()(*feed).tolist() == [False, True]
