"""TensorFlow's words for padding, ``SAME`` and ``VALID``, as the numbers that ONNX wants; for any number of axes."""

from __future__ import annotations

from collections.abc import Sequence


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after one axis for TensorFlow's ``SAME`` padding."""
    reach = (kernel - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return total // 2, total - total // 2


def explicit_pads(
    padding: str, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """ONNX ``pads`` (all begins, then all ends) of a window over an image of ``size``.

    Raises:
        ValueError: A window, stride or dilation below one.
    """
    _check(kernel, strides, dilations)
    if padding == "VALID":
        return [0] * (2 * len(kernel))
    pairs = [same_padding(*axis) for axis in zip(size, kernel, strides, dilations, strict=True)]
    return [before for before, _ in pairs] + [after for _, after in pairs]


def transposed_pads(
    padding: str,
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    target: Sequence[int],
) -> tuple[list[int], list[int]]:
    """ONNX ``pads`` and ``output_padding`` of a transposed convolution whose result is to have the size ``target``.

    Raises:
        ValueError: A window, stride or dilation below one.
    """
    _check(kernel, strides, dilations)
    begins, ends, extra = [], [], []
    for n, k, s, d, wanted in zip(size, kernel, strides, dilations, target, strict=True):
        total = (n - 1) * s + (k - 1) * d + 1 - wanted
        begin = max(total, 0) // 2 if padding == "SAME" else 0
        begins.append(begin)
        ends.append(max(total - begin, 0))
        extra.append(max(begin - total, 0))
    return [*begins, *ends], extra


def _check(kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> None:
    if min(*kernel, *strides, *dilations) < 1:
        raise ValueError(f"kernel {list(kernel)}, strides {list(strides)}, dilations {list(dilations)}")
