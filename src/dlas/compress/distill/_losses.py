"""What a student learns from a teacher: where it looks (attention transfer) and how sure it is (distillation).

Attention transfer: Zagoruyko and Komodakis 2017 (arXiv:1612.03928), "Paying more attention to attention". Knowledge
distillation: Hinton et al. 2015 (arXiv:1503.02531).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from dlas.compress.losses import cross_entropy, divergence
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.graph.model import Model

if TYPE_CHECKING:
    import torch
    from torch import nn

ACTIVATIONS = {
    "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Sigmoid",
    "Softplus", "Swish", "Tanh",
}  # fmt: skip


def attention_map(values: torch.Tensor) -> torch.Tensor:
    """Where a layer looks: mean square over channels, as a unit vector.

    Args:
        values: ``(N, C, H, W)`` activations.

    Returns:
        ``(N, H * W) float32``.
    """
    from torch.nn import functional as F  # noqa: N812

    return F.normalize(values.float().square().mean(1).flatten(1))


def attention_transfer(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two attention maps: 0 where they are the same but for a positive factor.

    The larger of two maps of different size is averaged down to the smaller one.

    Args:
        student: ``(N, C, H, W)`` activations; gradients flow into these.
        teacher: ``(N, C', H', W')`` activations.
    """
    from torch.nn import functional as F  # noqa: N812

    teacher = teacher.detach()
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    if student.shape[2:] != (height, width):
        student = F.adaptive_avg_pool2d(student, (height, width))
    if teacher.shape[2:] != (height, width):
        teacher = F.adaptive_avg_pool2d(teacher, (height, width))
    return (attention_map(student) - attention_map(teacher)).square().mean()


class Distillation:
    """The loss of a student: ``(1 - alpha) CE + alpha T^2 KL + 3 beta / pairs * sum of attention differences``.

    A loss hook of ``training.train``; use it inside ``with loss.watching():``.

    Args:
        student: Module that is trained.
        teacher: Module that stays as it is, in eval mode.
        pairs: Value of the student and value of the teacher whose attention is compared, one pair per stage.
        alpha: Weight of the teacher's answers, 0 to 1.
        temperature: Softens answers.
        beta: Weight of attention.
        identity: Stands for the teacher where a training must know whether it is the same one.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        pairs: Sequence[tuple[str, str]],
        *,
        alpha: float = 0.0,
        temperature: float = 4.0,
        beta: float = 1000.0,
        identity: str = "",
    ) -> None:
        for name, value, low in (
            ("alpha", alpha, 0.0),
            ("beta", beta, 0.0),
            ("temperature", temperature, 1e-6),
        ):
            if not low <= value < math.inf:
                raise OptionError(f"distillation: {name}", value, f"a number >= {low:g}")
        if alpha > 1:
            raise OptionError("distillation: alpha", alpha, "a number >= 0 and <= 1")
        self._student, self._teacher, self._pairs = student, teacher, tuple(pairs) if beta else ()
        self._alpha, self._temperature, self._beta = alpha, temperature, beta
        self._near: Mapping[str, torch.Tensor] = {}
        self._far: Mapping[str, torch.Tensor] = {}
        self.__qualname__ = f"Distillation {alpha} {temperature} {beta} {self._pairs} {identity}"

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the activations of both networks."""
        near: Any = self._student.kept
        far: Any = self._teacher.kept
        with near([s for s, _ in self._pairs]) as self._near, far([t for _, t in self._pairs]) as self._far:
            yield

    def __call__(self, outputs: torch.Tensor, labels: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The loss of a batch; see the class."""
        import torch

        answers = None
        if self._pairs or self._alpha:
            narrow = any(t.dtype == torch.bfloat16 for t in self._near.values())
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                answers = self._teacher(inputs)
        loss = outputs.new_zeros((), dtype=torch.float32)
        if self._alpha < 1:
            loss = loss + (1 - self._alpha) * cross_entropy(outputs, labels)
        if self._alpha:
            far = answers[0] if isinstance(answers, tuple) else answers
            assert far is not None
            loss = loss + self._alpha * divergence(outputs, far, self._temperature)
        for near, far in self._pairs:
            share = 3 * self._beta / len(self._pairs)
            loss = loss + share * attention_transfer(self._near[near], self._far[far])
        return loss


def stage_ends(model: Model) -> list[tuple[str, tuple[int, int]]]:
    """The last activation before each change of the size of the feature maps, with that size; inputs do not count.

    Returns:
        Name and ``(height, width)`` of ``(N, C, H, W)`` values of more than one pixel, in graph order. Where a size has
        no activation behind an operator of :data:`ACTIVATIONS`, it is left out.
    """
    ends: dict[tuple[int, int], str] = {}
    for node in model.ir.graph:
        value = node.outputs[0]
        size = _size(value)
        if size is not None and node.op_type in ACTIVATIONS and size[0] * size[1] > 1:
            ends[size] = str(value.name)
    return [(name, size) for size, name in ends.items()]


def stage_pairs(student: Model, teacher: Model) -> list[tuple[str, str]]:
    """Which activations of two networks to compare: stages of equal size; else, from the last one back, in order.

    Raises:
        UnsupportedError: One of them has no feature maps to compare.
    """
    near, far = stage_ends(student), stage_ends(teacher)
    for model, ends in ((student, near), (teacher, far)):
        if not ends:
            raise UnsupportedError(
                f"{model.name} has no feature maps of known size behind an activation to compare attention at",
                "give attention=0 and alpha=0.9 to learn from the teacher's answers alone",
            )
    by_size = {size: name for name, size in far}
    same = [(name, by_size[size]) for name, size in near if size in by_size]
    if same:
        return same
    count = min(len(near), len(far))
    return [(s, t) for (s, _), (t, _) in zip(near[-count:], far[-count:], strict=True)]


def check_classes(student: Model, teacher: Model) -> None:
    """Raises DataError where the two networks do not tell the same number of classes apart."""
    counts = [m.outputs[0].shape[-1] if m.outputs[0].shape else None for m in (student, teacher)]
    if counts[0] != counts[1] and all(isinstance(c, int) for c in counts):
        raise DataError(
            f"the teacher {teacher.name} tells {counts[1]} classes apart, {student.name} {counts[0]}",
            "give a teacher of the same task (`--teacher FILE`)",
        )


def _size(value: ir.Value) -> tuple[int, int] | None:
    if value.shape is None or len(value.shape) != 4:
        return None
    height, width = value.shape[2], value.shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
