from __future__ import annotations

import numpy as np
import pytest
import torch

from dlas.compress.distill._losses import (
    Distillation,
    attention_map,
    attention_transfer,
    stage_ends,
    stage_pairs,
)
from dlas.compress.losses import cross_entropy, divergence
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.graph.model import Model
from dlas.graph.passes import tidy
from dlas.graph.torch_module import to_torch
from dlas.testing import models


def tidied(seed: int = 0) -> Model:
    graph = models.residual(seed).editable()
    tidy(graph)
    return Model(graph, "tidied")


def maps(seed: int = 0, *shape: int) -> torch.Tensor:
    return torch.randn(shape or (4, 6, 5, 7), generator=torch.Generator().manual_seed(seed))


def test_the_attention_of_a_network_and_itself_is_the_same_at_any_scale() -> None:
    a = maps()
    assert attention_transfer(a, a) == 0
    for k in (1e-3, 0.5, 40.0):
        assert float(attention_transfer(k * a, a)) == pytest.approx(0, abs=1e-12)
        other = maps(1)
        assert float(attention_transfer(k * a, other)) == pytest.approx(
            float(attention_transfer(a, other)), rel=1e-5
        )


def test_attention_is_the_mean_square_over_channels_as_a_unit_vector() -> None:
    a, b = maps(), maps(1)
    found = attention_map(a).numpy()
    want = np.square(a.numpy()).mean(1).reshape(4, -1)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    other = np.square(b.numpy()).mean(1).reshape(4, -1)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    assert float(attention_transfer(a, b)) == pytest.approx(float(np.square(want - other).mean()), rel=1e-5)


def test_maps_of_other_channels_and_sizes_are_compared() -> None:
    small = maps(0, 2, 3, 4, 4)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    wide = torch.cat([large, large], 1)
    for a, b in ((small, wide), (wide, small)):
        assert float(attention_transfer(a, b)) == pytest.approx(0, abs=1e-12)


def test_a_black_map_gives_a_finite_gradient() -> None:
    dark = torch.zeros(2, 3, 4, 4, requires_grad=True)
    attention_transfer(dark, maps(0, 2, 5, 4, 4)).backward()
    assert dark.grad is not None
    assert torch.isfinite(dark.grad).all()


def test_gradients_reach_the_student_alone() -> None:
    a, b = maps().requires_grad_(), maps(1).requires_grad_()
    attention_transfer(a, b).backward()
    assert a.grad is not None
    assert a.grad.abs().sum() > 0
    assert b.grad is None


def test_the_gradient_of_the_divergence_is_t_times_the_difference_of_probabilities() -> None:
    """``d/ds T^2 KL = T (softmax(s / T) - softmax(t / T)) / N``, and as autograd has it of the definition."""
    for temperature in (1.0, 4.0):
        s, t = maps(0, 8, 10).double().requires_grad_(), maps(1, 8, 10).double()
        value = divergence(s, t, temperature)
        value.backward()
        p, q = torch.softmax(s.detach() / temperature, 1), torch.softmax(t / temperature, 1)
        assert s.grad is not None
        torch.testing.assert_close(s.grad, temperature * (p - q) / 8, rtol=1e-4, atol=1e-6)
        again = s.detach().clone().requires_grad_()
        chance, sure = torch.softmax(again / temperature, 1), torch.softmax(t / temperature, 1)
        by_definition = temperature**2 * (sure * (sure.log() - chance.log())).sum(1).mean()
        by_definition.backward()
        assert value.item() == pytest.approx(by_definition.item(), rel=1e-5)
        torch.testing.assert_close(s.grad, again.grad, rtol=1e-4, atol=1e-6)
    assert float(divergence(t, t, 4.0)) == pytest.approx(0, abs=1e-7)


def test_the_divergence_of_probabilities_is_that_of_their_logits() -> None:
    s, t = maps(0, 8, 10), maps(1, 8, 10)
    want = divergence(s, t, 4.0)
    assert want > 0.1
    torch.testing.assert_close(divergence(torch.softmax(s, 1), torch.softmax(t, 1), 4.0), want)
    torch.testing.assert_close(divergence(torch.softmax(s, 1), t, 4.0), want)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.9, 0.0), (0.0, 1000.0), (0.3, 50.0)])
def test_the_loss_is_the_sum_that_the_paper_gives(alpha: float, beta: float) -> None:
    near, far = tidied(0), tidied(1)
    pairs = stage_pairs(near, far)
    student, teacher = to_torch(near), to_torch(far)
    loss = Distillation(student, teacher, pairs, alpha=alpha, beta=beta)
    x, y = torch.from_numpy(models.images(6)), torch.arange(6)
    with loss.watching():
        outputs = student(x)
        found = loss(outputs, y, x).item()
    kept_near, kept_far = student.kept, teacher.kept
    assert callable(kept_near)
    assert callable(kept_far)
    with kept_near([s for s, _ in pairs]) as a, kept_far([t for _, t in pairs]) as b:
        outputs, answers = student(x), teacher(x)
    attention = sum(attention_transfer(a[s], b[t]).item() for s, t in pairs)
    want = (
        (1 - alpha) * cross_entropy(outputs, y).item()
        + alpha * divergence(outputs, answers, 4.0).item()
        + 3 * beta / len(pairs) * attention
    )
    assert found == pytest.approx(want, rel=1e-4)


def test_a_student_that_is_the_teacher_pays_the_cross_entropy_alone() -> None:
    model = tidied()
    student, teacher = to_torch(model), to_torch(model)
    loss = Distillation(student, teacher, stage_pairs(model, model))
    x, y = torch.from_numpy(models.images(5)), torch.arange(5)
    with loss.watching():
        outputs = student(x)
        assert loss(outputs, y, x).item() == pytest.approx(cross_entropy(outputs, y).item(), abs=1e-6)


def test_another_teacher_or_weight_is_another_training() -> None:
    module = to_torch(tidied())
    names = {
        Distillation(module, module, [], beta=beta, identity=teacher).__qualname__
        for beta in (0.0, 1.0)
        for teacher in ("a", "b")
    }
    assert len(names) == 4


def test_bad_weights_are_refused() -> None:
    module = to_torch(tidied())
    for wrong in ({"alpha": 1.5}, {"beta": -1.0}, {"temperature": 0.0}, {"beta": float("nan")}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            Distillation(module, module, [], **wrong)


def test_labels_beyond_the_classes_are_refused() -> None:
    module = to_torch(tidied())
    loss = Distillation(module, module, [], beta=0.0)
    x = torch.from_numpy(models.images(2))
    with loss.watching(), pytest.raises(DataError, match="does not belong"):
        loss(module(x), torch.tensor([3, 10]), x)


def test_stages_end_where_the_size_changes() -> None:
    model = tidied()
    assert stage_ends(model) == [("relu2", (12, 12)), ("relu3", (3, 3))]
    assert stage_pairs(model, model) == [("relu2", "relu2"), ("relu3", "relu3")]


def test_networks_of_other_sizes_are_paired_from_the_end() -> None:
    import onnx_ir as ir

    def scaled(model: Model, factor: int, only: int = 2) -> Model:
        graph = model.editable()
        for node in list(graph.graph)[: None if only == 2 else 0]:
            value = node.outputs[0]
            if value.shape is not None and len(value.shape) == 4:
                dims = [d * factor if i > 1 and isinstance(d, int) else d for i, d in enumerate(value.shape)]
                value.shape = ir.Shape(dims)
        return Model(graph, "scaled")

    model = tidied()
    assert stage_pairs(model, scaled(model, 5)) == [("relu2", "relu2"), ("relu3", "relu3")]
    bare = model.editable()
    for node in bare.graph:
        node.outputs[0].shape = None
    with pytest.raises(UnsupportedError, match="no feature maps of known size"):
        stage_pairs(model, Model(bare, "bare"))
