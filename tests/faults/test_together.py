"""Two processes with one cache at the same time: each step is done once."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults_bench import Bench, Outcome

COMPRESS = [
    "compress",
    "net.onnx",
    "channel:ratio=0.3,finetune_epochs=4,batch_size=8,lr=0.01",
    "--data",
    "rows.npz",
]
RUN = ["run", "net.onnx", "--data", "rows.npz", "--backend", "onnxruntime", "--threads", "1", "--quick"]


def both(first: Bench, second: Bench, words: list[str], other: list[str]) -> list[Outcome]:
    children = [(first, first.start(*words)), (second, second.start(*other))]
    found = []
    for bench, child in children:
        child.wait(300)
        found.append(bench.outcome(child))
        found[-1].assert_well()
    return found


@pytest.fixture
def second(bench: Bench, tmp_path: Path) -> Bench:
    """A place beside the other with the same cache."""
    other = Bench(tmp_path / "second").fill()
    other.env["DLAS_CACHE"] = str(bench.cache)
    return other


@pytest.mark.slow  # tests/explore/test_shared_study.py shares steps in every run
def test_two_compressions_train_once(bench: Bench, second: Bench) -> None:
    done = both(bench, second, [*COMPRESS, "-o", "a.onnx"], [*COMPRESS, "-o", "b.onnx"])
    assert sum("epoch 1 of" in d.errors for d in done) == 1
    assert (bench.files / "a.onnx").read_bytes() == (second.files / "b.onnx").read_bytes()
    assert bench.leftovers() == second.leftovers() == []


@pytest.mark.slow
def test_two_studies_share_their_steps(bench: Bench, second: Bench) -> None:
    one = [*RUN, "--compress", "float16", "--compress", "magnitude:sparsity=0.5", "--out", "out"]
    other = [*RUN, "--compress", "magnitude:sparsity=0.5", "--compress", "int8", "--out", "out"]
    done = both(bench, second, one, other)
    steps = [line.split(" ", 3)[-1] if "/" in line else line for d in done for line in d.errors.splitlines()]
    for shared in (
        "import net.onnx",
        "prepare the rows",
        "compress: magnitude:sparsity=0.5",
        "judge on the data",
    ):
        made = sum(shared in step for step in steps)
        assert made == (4 if shared == "judge on the data" else 1), (shared, made)
    assert len(bench.finished()) == len(second.finished()) == 3
    assert bench.leftovers() == second.leftovers() == []
