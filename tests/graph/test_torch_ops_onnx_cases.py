"""The cases that ship with ONNX itself, as a second opinion: every one is run, or refused for a reason listed here."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from dlas.core.errors import UnsupportedError
from dlas.graph.model import Model
from dlas.graph.torch_module import to_torch
from dlas.graph.torch_ops.table import held

# Operators without a translation: exactly these, by the reason.
NO_TRANSLATION = {
    "written by exporters of operator sets from 23 on only; the expansions into older operators run": {
        "ai.onnx.preview.FlexAttention",
        "TensorScatter",
        "SwiGLU",
        "LinearAttention",
        "RotaryEmbedding",
        "Attention",
        "CausalConvWithState",
    },
    "control flow: the list of calls is straight": {"Loop", "Scan", "If"},
    "its answer is drawn at random": {"RandomUniformLike", "Bernoulli"},
    "a loss or a step of training, which PyTorch takes itself": {
        "ai.onnx.preview.training.Adam",
        "ai.onnx.preview.training.Adagrad",
        "SoftmaxCrossEntropyLoss",
        "NegativeLogLikelihoodLoss",
        "ai.onnx.preview.training.Momentum",
    },
    "values that are no tensors": {
        "SequenceLength",
        "SequenceEmpty",
        "SequenceInsert",
        "OptionalGetElement",
        "SequenceMap",
        "SplitToSequence",
        "OptionalHasElement",
    },
    "works on text": {"StringConcat", "RegexFullMatch", "StringSplit", "StringNormalizer", "TfIdfVectorizer"},
    "classical learning, no layer of a network": {
        "ai.onnx.ml.TreeEnsemble",
        "ai.onnx.ml.ArrayFeatureExtractor",
        "ai.onnx.ml.Binarizer",
        "ai.onnx.ml.LabelEncoder",
    },
    "features are taken before the network": {
        "BlackmanWindow",
        "MelWeightMatrix",
        "HammingWindow",
        "STFT",
        "HannWindow",
        "DFT",
    },
    "no network of the corpus and no importer makes it": {
        "RoiAlign",
        "MaxUnpool",
        "DeformConv",
        "ImageDecoder",
        "Unique",
    },
}
# Uses that are refused, by the words they are refused with: number of cases.
REFUSED = {
    "BatchNormalization: training mode is not supported: it is the module's own": 2,
    "Col2Im: 3 spatial dimensions": 1,
    "Dropout: input 2 must be a constant": 6,  # training mode as an input
    "Identity: 'opt_in' is not a tensor": 1,
    "Identity: 'x' is not a tensor": 1,
    "dtype FLOAT4E2M1 is not known to torch": 12,
    "dtype FLOAT4E2M1 is not supported": 2,
    "dtype FLOAT8E4M3FN is not known to torch": 18,
    "dtype FLOAT8E4M3FN is not supported": 4,
    "dtype FLOAT8E4M3FNUZ is not known to torch": 18,
    "dtype FLOAT8E5M2 is not known to torch": 18,
    "dtype FLOAT8E5M2 is not supported": 2,
    "dtype FLOAT8E5M2FNUZ is not known to torch": 18,
    "dtype FLOAT8E8M0 is not known to torch": 4,
    "dtype INT2 is not known to torch": 6,  # casts to it; quantising to it is known
    "dtype INT4 is not known to torch": 6,
    "dtype STRING is not known to torch": 2,
    "dtype UINT2 is not known to torch": 6,
    "dtype UINT4 is not known to torch": 6,
    "dtype UINT64 is not known to torch": 21,
}
# Cases with another answer than ONNX wants.
ROUNDED = "the aligned corners are those of the output as it is, as in ONNX Runtime, not of its size before rounding"
DIFFERENT = {
    "test_resize_downsample_scales_cubic_align_corners": ROUNDED,
    "test_resize_downsample_scales_linear_align_corners": ROUNDED,
}


pytestmark = pytest.mark.slow  # making the cases alone takes ten seconds


def tensor(value: Any) -> torch.Tensor:
    return held(numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value))


def array(value: Any) -> np.ndarray:
    """An expected answer, in a dtype NumPy can compare."""
    found = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    kind = {"int2": np.int8, "int4": np.int8, "uint2": np.uint8, "uint4": np.uint8, "bfloat16": np.float32}
    return found.astype(kind.get(str(found.dtype), found.dtype))


def compare(case: Any, module: torch.nn.Module) -> None:
    for inputs, outputs in case.data_sets:
        with torch.no_grad():
            answer = module(*map(tensor, inputs))
        answers = answer if isinstance(answer, tuple) else (answer,)
        for made, wanted in zip(answers, outputs, strict=True):
            # answers in half precision are as good as their last bits
            coarse = {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(made.dtype, 0)
            got = (made.float() if made.dtype == torch.bfloat16 else made).numpy()
            want = array(wanted)
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            np.testing.assert_allclose(
                got, want, rtol=max(case.rtol, coarse), atol=max(case.atol, coarse / 10)
            )


@pytest.fixture(scope="module")
def outcome() -> tuple[Counter[str], Counter[str], dict[str, str], int]:
    """Operators without translation, refusals, and cases with another answer; number of cases that agree."""
    unknown: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    different: dict[str, str] = {}
    right = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the expected answers, which hold infinities
        cases = collect_testcases(None)
    for case in cases:
        try:
            compare(case, to_torch(Model.from_proto(case.model)))
            right += 1
        except UnsupportedError as error:
            head, _, operators = error.message.partition("no translation of ")
            if operators:
                unknown.update(operators.split(", "))
            else:
                found = re.findall(r"(\w+) '[^']*': ([^;]+)", head)
                refused.update({why if why.startswith("dtype") else f"{kind}: {why}" for kind, why in found})
        except AssertionError as error:
            different[case.name] = str(error)
    return unknown, refused, different, right


def test_operators_without_translation_are_these(outcome: Any) -> None:
    assert set(outcome[0]) == set().union(*NO_TRANSLATION.values())


def test_refused_uses_are_these(outcome: Any) -> None:
    assert dict(outcome[1]) == REFUSED


def test_other_answers_are_these(outcome: Any) -> None:
    assert set(outcome[2]) == set(DIFFERENT), outcome[2]


def test_most_cases_agree(outcome: Any) -> None:
    assert outcome[3] >= 1300
