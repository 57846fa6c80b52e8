"""Each attack against what can be worked out by hand, and against other code for the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from attack_nets import SIDE, hardest, linear, margin, network, samples_of, victim_of
from onnx import helper

from dlas.core.errors import OptionError, UnknownNameError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.verify.attack.attack import (
    Job,
    NoGradientError,
    attack_for,
    attacks,
    margins,
    parse_attacks,
    parse_eps,
    within,
)
from dlas.verify.attack.attacks.nes import estimated
from dlas.verify.attack.attacks.square import SquareOptions, _side
from dlas.verify.attack.pixels import Pixels, pixels_of
from dlas.verify.attack.victim import Victim

OURS = ("fgsm", "pgd", "square", "nes")


@pytest.mark.parametrize("name", ["fgsm", "pgd:steps=8", "pgd:steps=8,random_start=false"])
def test_a_white_box_finds_the_worst_point_of_a_linear_network(name: str) -> None:
    model, weight = linear()
    victim, job = victim_of(model, samples_of(model, 12))
    changed = attack_for(name).run(victim, job)
    taken = margin(model, job.samples, job.labels) - margin(model, changed, job.labels)
    assert taken == pytest.approx(hardest(job, weight), rel=1e-4)


def test_square_comes_close_to_the_worst_point_of_a_linear_network() -> None:
    model, weight = linear()
    victim, job = victim_of(model, samples_of(model, 6), eps=0.02)
    changed = attack_for("square:queries=1500").run(victim, job)
    before, after = margin(model, job.samples, job.labels), margin(model, changed, job.labels)
    kept = after > 0  # a sample that is lost is left alone
    best = before - hardest(job, weight)
    assert kept.any()
    assert np.all(after[kept] - best[kept] <= 0.05 * hardest(job, weight))
    assert np.array_equal(after <= 0, best <= 0)


def test_square_does_what_a_plain_loop_does() -> None:
    """The same search written down sample by sample, pixel by pixel, with the same draws."""
    model, _ = linear(channels=3, seed=3)
    victim, job = victim_of(model, samples_of(model, 4), eps=0.005)
    options = SquareOptions(queries=60)
    changed = attack_for("square:queries=60").run(victim, job)

    def plain(x: np.ndarray, label: int, row: int) -> np.ndarray:
        draw = np.random.default_rng([0, row])
        eps = np.float32(job.eps)

        def lost(image: np.ndarray) -> float:
            return float(margins(victim.scores(image[None]), np.array([label]))[0])

        best = np.empty_like(x)
        signs = draw.choice((-1, 1), (3, 1, SIDE))
        for c, i, j in np.ndindex(x.shape):
            best[c, i, j] = min(1, max(0, x[c, i, j] + eps * np.float32(signs[c, 0, j])))
        lowest = lost(best)
        for query in range(1, options.queries):
            if lowest <= 0:
                break
            side = _side(query, options, (SIDE, SIDE))
            top, left = draw.integers(0, SIDE - side + 1), draw.integers(0, SIDE - side + 1)
            for _ in range(10):
                tried, signs = best.copy(), draw.choice((-1, 1), (3, 1, 1))
                for c in range(3):
                    for i in range(top, top + side):
                        for j in range(left, left + side):
                            tried[c, i, j] = min(1, max(0, x[c, i, j] + eps * np.float32(signs[c, 0, 0])))
                if np.abs(tried - best).max() > 1e-7:
                    break
            if (now := lost(tried)) < lowest:
                best, lowest = tried, now
        return best

    for i in range(4):
        expected = plain(job.samples[i], int(job.labels[i]), int(job.rows[i]))
        assert np.array_equal(changed[i], expected), i


def test_the_squares_shrink_as_published() -> None:
    # Halvings of the area after 10, 50, 200 ... of 10,000 queries; share 0.8 of a 32 x 32 image.
    options = SquareOptions(queries=10_000)
    sides = [_side(q, options, (32, 32)) for q in (1, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001)]
    assert sides == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]


def test_the_estimated_gradient_is_that_of_a_linear_network() -> None:
    model, weight = linear()
    victim, job = victim_of(model, samples_of(model, 3))
    draws = job.generators(0)
    found = estimated(victim, job.samples, job.labels, draws, 4000, 0.01).reshape(3, -1)
    other = 1 - job.labels
    exact = (weight[:, job.labels] - weight[:, other]).T
    # The estimate's variance per entry is (|w|^2 + w_i^2) / pairs.
    spread = np.sqrt(((exact**2).sum(1, keepdims=True) + exact**2) / 4000)
    assert np.all(np.abs(found - exact) < 5 * spread)
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.98


def test_nes_comes_close_to_the_worst_point_of_a_linear_network() -> None:
    model, weight = linear()
    victim, job = victim_of(model, samples_of(model, 6), eps=0.02)
    changed = attack_for("nes:queries=4000,samples=200").run(victim, job)
    before, after = margin(model, job.samples, job.labels), margin(model, changed, job.labels)
    best = before - hardest(job, weight)
    assert np.array_equal(after <= 0, best <= 0)
    kept = after > 0
    assert kept.any()
    assert np.all(after[kept] - best[kept] <= 0.1 * hardest(job, weight))


@pytest.mark.parametrize("name", OURS)
def test_no_attack_goes_beyond_eps_or_leaves_the_range(name: str) -> None:
    model, _ = linear(channels=3)
    rng = np.random.default_rng(5)
    x = rng.uniform(0, 1, (8, 3, SIDE, SIDE)).astype(np.float32)
    x[0], x[1] = 0, 1
    data = Dataset("edges", x, rng.integers(0, 2, 8))
    victim, job = victim_of(model, data, eps=8 / 255)
    few = {"square": "square:queries=40", "nes": "nes:queries=100"}.get(name, name)
    changed = attack_for(few).run(victim, job)
    assert changed.dtype == np.float32
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert np.abs(changed - x).max() <= 8 / 255 + 1e-6
    assert np.abs(changed - x).max() > 0


@pytest.mark.parametrize("name", ["pgd:steps=3", "square:queries=30", "nes:queries=90"])
def test_what_becomes_of_a_row_depends_on_the_seed_and_on_no_other_row(name: str) -> None:
    model, _ = linear(channels=3)
    victim, job = victim_of(model, samples_of(model, 10), eps=0.003)
    whole = attack_for(name).run(victim, job)
    half = attack_for(name).run(victim, job.take(np.arange(5, 10)))
    assert np.array_equal(whole[5:], half)
    other = attack_for(name, seed=7).run(victim, job)
    assert not np.array_equal(whole, other)


def test_restarts_go_on_with_the_rows_that_are_left() -> None:
    model, _ = linear()
    victim, job = victim_of(model, samples_of(model, 10), eps=0.01)
    one = attack_for("pgd:steps=1,step=0.05").run(victim, job)
    many = attack_for("pgd:steps=1,step=0.05,restarts=8").run(victim, job)

    def lost(changed: np.ndarray) -> np.ndarray:
        return margin(model, changed, job.labels) <= 0

    assert np.all(lost(many) >= lost(one))
    assert np.array_equal(many[lost(one)], one[lost(one)])


def test_the_margin_has_a_slope_where_the_cross_entropy_is_flat() -> None:
    _, weight = linear()
    sure = network(1000 * weight, -500 * weight.sum(0))
    victim, job = victim_of(sure, samples_of(sure, 8))
    assert victim.slopes.flat(job.samples, job.labels) > 0
    flat = attack_for("pgd:random_start=false").run(victim, job)
    steep = attack_for("pgd:random_start=false,loss=margin").run(victim, job)
    taken = margin(sure, job.samples, job.labels) - margin(sure, steep, job.labels)
    assert taken == pytest.approx(1000 * hardest(job, weight), rel=1e-3)
    assert np.any(margin(sure, flat, job.labels) > margin(sure, steep, job.labels))


def test_a_softmax_at_the_end_does_not_hide_the_gradient() -> None:
    # Margins of 20 and more: behind the softmax they are 1.0 in float32, and the slope is gone.
    _, weight = linear()
    plain, covered = (network(10 * weight, -5 * weight.sum(0), softmax=s) for s in (False, True))
    victim, job = victim_of(plain, samples_of(plain, 8))
    hidden, _ = victim_of(covered, samples_of(plain, 8))
    assert np.array_equal(attack_for("fgsm").run(hidden, job), attack_for("fgsm").run(victim, job))
    x, labels = torch.from_numpy(job.samples), torch.from_numpy(job.labels)
    assert torch.equal(hidden.slopes.gradient(x, labels), victim.slopes.gradient(x, labels))
    assert hidden.scores(job.samples).sum(1) == pytest.approx(1)


def test_normalisation_happens_behind_the_attack() -> None:
    """eps is of the pixel, whatever scale, mean and deviation a network asks for."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (6, SIDE, SIDE, 3), np.uint8)
    data = Dataset("pixels", pixels, rng.integers(0, 2, 6))
    weight = 0.002 * rng.normal(size=(3 * SIDE**2, 2)).astype(np.float32)
    found = {}
    for name, fields in {
        "unit": {"scale": 1 / 255},
        "imagenet": {"scale": 1 / 255, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
        "bytes": {"scale": 1.0},
        "bgr": {"scale": 1.0, "colour": "BGR", "mean": (104.0, 117.0, 123.0)},
    }.items():
        steps = Preprocessing(height=SIDE, width=SIDE, **fields)  # type: ignore[arg-type]
        model = replace(network(weight, np.zeros(2)), preprocessing=steps)
        space, samples = pixels_of(model, data)
        assert space.fed(samples) == pytest.approx(prepare(data, model), rel=1e-5, abs=1e-4), name
        assert np.array_equal(space.fed_tensor(torch.from_numpy(samples)).numpy(), space.fed(samples)), name
        victim, job = victim_of(model, data)
        changed = attack_for("fgsm").run(victim, job)
        assert np.abs(changed - samples).min() == pytest.approx(0.1, abs=1e-6), name
        found[name] = space.shared(changed)
        assert found[name].shape == (6, SIDE, SIDE, 3)
        assert np.array_equal(space.own(found[name]), changed)
    assert np.array_equal(found["unit"], found["bytes"])  # a linear network's signs are those of its weights
    assert np.array_equal(found["unit"], found["imagenet"])
    assert not np.array_equal(found["unit"], found["bgr"])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_an_integer_input_is_rounded_on_the_way_in_and_lets_the_gradient_through(dtype: str) -> None:
    zero = -128 if dtype == "int8" else 0
    space = Pixels(
        (1, 2, 2), 0, (0, 1, 2, 3), False, np.float32(1), np.zeros(1, np.float32), np.ones(1, np.float32), dtype,
        (1 / 255, zero), ("image",),
    )  # fmt: skip
    values = np.array([[[[0.0, 0.5], [0.1234, 1.0]]]], np.float32)
    fed = space.fed(values)
    assert fed.dtype == dtype
    assert fed.ravel().tolist() == [zero, zero + 128, zero + 31, zero + 255]
    x = torch.from_numpy(values).requires_grad_()
    carried = space.fed_tensor(x)
    assert np.array_equal(carried.detach().numpy(), fed.astype(np.float32))
    carried.sum().backward()
    assert x.grad is not None
    assert x.grad.numpy() == pytest.approx(255)


def test_a_network_without_slope_says_so() -> None:
    """Only a comparison with the samples is left: no gradient can pass."""

    def cut(name: str) -> list[object]:
        return [
            helper.make_node("Greater", ["x", "half"], ["over"]),
            helper.make_node("Cast", ["over"], [name], to=1),
        ]

    _, weight = linear()
    model = network(weight, -0.5 * weight.sum(0), cut, {"half": np.float32([0.5])})  # type: ignore[arg-type]
    victim, job = victim_of(model, samples_of(model, 4))
    for name in ("fgsm", "pgd"):
        with pytest.raises(NoGradientError, match="no gradient reaches the input"):
            attack_for(name).run(victim, job)
    assert attack_for("square:queries=20").run(victim, job).shape == job.samples.shape


def test_a_gradient_that_is_no_number_is_refused() -> None:
    def root(name: str) -> list[object]:  # of zero: infinite slope, times zero
        return [
            helper.make_node("Sub", ["x", "x"], ["none"]),
            helper.make_node("Sqrt", ["none"], ["root"]),
            helper.make_node("Add", ["x", "root"], [name]),
        ]

    _, weight = linear()
    model = network(weight, -0.5 * weight.sum(0), root)  # type: ignore[arg-type]
    victim, job = victim_of(model, samples_of(model, 4))
    with pytest.raises(NoGradientError, match="gradient of 4 of 4 samples is not a number"):
        attack_for("pgd").run(victim, job)


def test_square_refuses_what_is_no_image() -> None:
    model, _ = linear()
    victim, job = victim_of(model, samples_of(model, 2))
    flat = Job(job.samples.reshape(2, -1), job.labels, job.eps, job.rows)
    with pytest.raises(UnsupportedError, match="square needs images; the samples are"):
        attack_for("square").run(victim, flat)


def test_a_network_of_one_score_is_no_classifier() -> None:
    model, _ = linear()
    victim, job = victim_of(model, samples_of(model, 2))
    alone = Victim("alone", victim.pixels, lambda x: np.zeros((len(x), 1)), victim.twin)
    with pytest.raises(UnsupportedError, match="only classifiers can be attacked"):
        alone.scores(job.samples)


def test_margins_of_odd_scores() -> None:
    scores = np.array([[2.0, 1.0], [1.0, 1.0], [np.nan, 0.0], [0.0, np.inf]])
    found = margins(scores, np.array([0, 0, 1, 1]))
    assert found[0] == 1
    assert found[1] == 0
    assert found[2] == -np.inf
    assert found[3] == np.inf


def test_what_is_brought_back_stays_near() -> None:
    job = Job(np.full((1, 2), 0.05, np.float32), np.zeros(1, np.int64), 0.1, np.zeros(1, np.int64))
    assert within(np.array([[-1.0, 3.0]]), job)[0] == pytest.approx([0.0, 0.15])


@pytest.mark.parametrize(
    ("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (0.5, 0.5), ("1", 1.0), (8 / 255, 8 / 255)]
)
def test_eps_is_read(text: str | float, value: float) -> None:
    assert parse_eps(text) == value


@pytest.mark.parametrize("text", ["0", "-1/255", "8", "1/0", "nan", "inf", "eight", "", "8/255/2"])
def test_a_bad_eps_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"eps = .*expected a number above 0 and at most 1"):
        parse_eps(text)


def test_attacks_are_read_with_their_options() -> None:
    found = parse_attacks("fgsm,pgd:steps=7,step=0.5,square:seed=3,fgsm", seed=9)
    assert [a.spelled() for a in found] == ["fgsm", "pgd:seed=9,step=0.5,steps=7", "square:seed=3"]
    assert {"fgsm", "pgd", "square", "nes", "autopgd", "boundary", "hopskipjump"} <= set(attacks.names())


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("fsgm", UnknownNameError, "unknown attack 'fsgm': did you mean 'fgsm'"),
        ("pgd:step_size=1", UnknownNameError, "unknown option of pgd"),
        ("pgd:steps=0", OptionError, "pgd: steps = 0"),
        ("square:queries=many", OptionError, "square: queries"),
        ("", OptionError, "attacks = '' is not accepted"),
    ],
)
def test_bad_attacks_are_refused(text: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        parse_attacks(text)


def test_a_model_of_two_inputs_is_refused() -> None:
    model, _ = linear()
    proto = model.to_proto()
    second = proto.graph.input.add()
    second.CopyFrom(proto.graph.input[0])
    second.name = "other"
    two = Model.from_proto(proto, "two")
    with pytest.raises(UnsupportedError, match="linear has 2 inputs"):
        pixels_of(two, samples_of(model, 2))
