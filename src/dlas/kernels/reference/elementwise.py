"""Functions of single elements, by name, and arithmetic of two arrays; names and defaults are those of ONNX."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping

import numpy as np

from dlas.core.errors import OptionError, UnknownNameError
from dlas.kernels.arrays import check_broadcast, real


def activate(name: str, x: np.ndarray, **parameters: float) -> np.ndarray:
    """Apply one of ``ACTIVATIONS``.

    Args:
        name: Which.
        x: ``(...)`` float32.
        parameters: What it takes: ``clip(low, high)``, ``hard-sigmoid(alpha, beta)``, ``leaky-relu(alpha)``,
            ``elu(alpha)``.

    Returns:
        ``(...)`` float32.

    Raises:
        UnknownNameError: There is no such function.
        OptionError: It has no such parameter.
        ShapeError: ``x`` is no array of floats.
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    function = ACTIVATIONS[name]
    taken = list(inspect.signature(function).parameters)[1:]
    for parameter in parameters:
        if parameter not in taken:
            raise OptionError("parameter", parameter, f"one that {name} has: {', '.join(taken) or 'none'}")
    with np.errstate(over="ignore"):
        return np.asarray(function(real(x, "x"), **parameters)).astype(np.float32)


def combine(name: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Arithmetic of two arrays, one of ``BINARY``, with NumPy's broadcasting.

    Args:
        name: ``add``, ``sub``, ``mul``, ``div``, ``min`` or ``max``.
        a: ``(...)`` float32.
        b: ``(...)`` float32.

    Returns:
        Broadcast shape, float32.

    Raises:
        UnknownNameError: There is no such operation.
        ShapeError: The shapes do not broadcast.
    """
    if name not in BINARY:
        raise UnknownNameError("binary operation", name, BINARY)
    left, right = real(a, "a"), real(b, "b")
    check_broadcast(a, b)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(BINARY[name](left, right)).astype(np.float32)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """``1 / (1 + exp(-x))`` in the dtype of ``x``, without overflow."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.ravel().tolist()]).reshape(x.shape)


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _clip(x: np.ndarray, low: float = -math.inf, high: float = math.inf) -> np.ndarray:
    return np.minimum(np.maximum(x, low), high)


def _hard_sigmoid(x: np.ndarray, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return np.clip(alpha * x + beta, 0, 1)


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


def _silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def _leaky_relu(x: np.ndarray, alpha: float = 0.01) -> np.ndarray:
    return np.where(x < 0, alpha * x, x)


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS: Mapping[str, Callable[..., np.ndarray]] = {
    "relu": _relu,
    "clip": _clip,
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "hard-swish": _hard_swish,
    "hard-sigmoid": _hard_sigmoid,
    "silu": _silu,
    "leaky-relu": _leaky_relu,
    "elu": _elu,
    "gelu": _gelu,
    "gelu-tanh": _gelu_tanh,
    "erf": _erf,
}
"""Functions of a float64 array; further arguments are the parameters."""

BINARY: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
}
"""Operations of two float64 arrays that broadcast."""
