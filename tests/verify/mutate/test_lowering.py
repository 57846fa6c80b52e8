"""Mutants of tensor programs on TVM: what is compiled anew, what the compiler removes, and the controls."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="TVM is not installed")

from dlas.core.errors import UnsupportedError
from dlas.core.worker import WorkerFailure, run_in_worker
from dlas.graph.reference import predict
from dlas.testing import models
from dlas.verify.mutate import mutate
from dlas.verify.mutate.mutation import ProgramMutation, Site, mutated, mutation_for
from dlas.verify.mutate.verdicts import Fate

ANSWERS = "dlas.verify.mutate.answers:answers"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("lowering") / "net.onnx"
    path.write_bytes(models.residual().to_bytes())
    return str(path)


@pytest.fixture(scope="module")
def programs(original: str) -> dict[str, str]:
    from dlas.verify.mutate import lowering

    return dict(lowering.programs(original))


def run(
    original: str, network: str = "", programs: dict[str, str] | None = None, level: str = "O2"
) -> np.ndarray:
    from dlas.verify.mutate import lowering

    x = {"image": models.images(4)}
    found = lowering.answers(f"tvm:opt={level}", "host", original, network or original, programs or {}, x)
    return found["logits"]


def apply(choice: str, programs: dict[str, str], at: int = 0) -> dict[str, str]:
    mutation = mutation_for(choice)
    assert isinstance(mutation, ProgramMutation)
    site = mutation.sites(programs)[at]
    return {site.node: mutation.apply(programs[site.node], site)}


def test_programs_come_in_the_order_of_their_first_call(programs: dict[str, str]) -> None:
    names = list(programs)
    assert names[0] == "conv2d"
    assert names[-1].startswith("add")
    assert names.index("conv2d") < names.index("relu") < names.index("max_pool2d") < names.index("matmul")
    assert all("T.prim_func" in script for script in programs.values())


@pytest.mark.parametrize("level", ["O0", "O2", "O3"])
def test_the_unchanged_network_answers_as_the_reference(original: str, level: str) -> None:
    assert np.allclose(run(original, level=level), predict(models.residual(), models.images(4)), atol=1e-4)


def test_a_mutant_of_the_graph_uses_the_code_that_is_there(original: str, tmp_path: Path) -> None:
    from dlas.verify.mutate import lowering

    mutant = mutated(models.residual(), mutation_for("scale-weights"), Site("conv2_Conv"))  # type: ignore[arg-type]
    path = tmp_path / "mutant.onnx"
    path.write_bytes(mutant.to_bytes())
    assert np.allclose(run(original, str(path)), predict(mutant, models.images(4)), atol=1e-4)
    assert lowering._last == {}  # other weights, the same programs
    mutant = mutated(models.residual(), mutation_for("relu-to-sigmoid"), Site("relu3_Relu"))  # type: ignore[arg-type]
    path.write_bytes(mutant.to_bytes())
    assert np.allclose(run(original, str(path)), predict(mutant, models.images(4)), atol=1e-4)
    assert 1 <= len(lowering._last) <= 2


def test_a_changed_program_changes_the_answers_and_only_for_that_mutant(
    original: str, programs: dict[str, str]
) -> None:
    before = run(original)
    assert np.abs(run(original, programs=apply("max-to-min", programs)) - before).max() > 0.1
    assert np.array_equal(run(original), before)


def test_code_that_stays_the_same_is_known(original: str, programs: dict[str, str]) -> None:
    from dlas.verify.mutate import lowering

    renamed = {"relu": programs["relu"].replace("v_i1", "channel")}
    assert np.array_equal(run(original, programs=renamed), run(original))
    run(original, programs=renamed)
    assert lowering.same_code("tvm:opt=O2", "host", original)
    run(original, programs=apply("max-to-min", programs))
    assert not lowering.same_code("tvm:opt=O2", "host", original)


def test_a_program_of_another_network_is_refused(original: str, programs: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="no program 'conv9' at O2"):
        run(original, programs={"conv9": programs["conv2d"]})
    # At O3 biases are reshaped before operators are lowered, so that there is nothing left to change.
    with pytest.raises(UnsupportedError, match=r"'reshape' (is another one )?at O3"):
        run(original, programs={"reshape": programs["reshape"]}, level="O3")


def test_a_script_that_tvm_refuses_is_a_refusal(original: str, programs: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match="TVM refuses"):
        run(original, programs={"relu": programs["relu"].replace("T.max(", "T.no_such_thing(")})


@pytest.mark.parametrize("change", ["scale", "subtract"])
def test_stored_values_moved_by_next_to_nothing_change_no_label(
    original: str, programs: dict[str, str], change: str
) -> None:
    before = run(original)
    for at in (0, 2, 5):
        after = run(original, programs=apply(f"store-value:change={change}", programs, at))
        assert (after.argmax(1) == before.argmax(1)).all()
        assert np.allclose(after, before, atol=1e-5)
        if change == "scale":  # 1.00000001 is 1 in float32
            assert np.array_equal(after, before)


@pytest.mark.slow
def test_fates_of_controls_and_of_programs_that_leave_their_buffers(tmp_path: Path) -> None:
    operators = "store-value:change=scale,store-value:change=subtract,max-to-min,shift-threshold,store-type:dtype=int8"
    found = mutate(
        models.residual(),
        operators=operators,
        max_mutants=5,
        paths="ort,tvm:O2",
        folder=tmp_path,
        jobs=1,
    )
    for result in found.mutants:
        name = str(result.mutant.mutation)
        assert result.fates["ort"].fate is Fate.UNSUPPORTED
        fate = result.fates["tvm:O2"]
        if name.startswith("store-value"):  # SV1 and SV2: no label may change
            assert fate.fate in (
                Fate.EQUIVALENT,
                Fate.COMPILED_AWAY,
                Fate.NEAR_EQUIVALENT,
                Fate.SCORE_KILLED,
            )
            assert fate.label_diff is not None
            assert fate.label_diff.value == 0
        if name == "store-value:change=scale":  # 1.00000001 is 1 in float32
            assert fate.fate in (Fate.EQUIVALENT, Fate.COMPILED_AWAY)
        if name == "shift-threshold":
            assert fate.fate is Fate.OUT_OF_BOUNDS
            assert "axis" in fate.reason
        if name == "max-to-min":
            assert fate.fate in (Fate.KILLED, Fate.DEGENERATE, Fate.SCORE_KILLED)
    assert found.score("ort") is None
    difference = (tmp_path / "mutants" / f"{found.mutants[0].mutant.name}.diff").read_text()
    assert sum(line.startswith("+ ") for line in difference.splitlines()) == 1


def test_a_segmentation_fault_in_compiled_code_ends_the_worker_only(
    original: str, programs: dict[str, str]
) -> None:
    x = {"image": models.images(1)}
    wild = programs["relu"].replace(", v_i3], T.float32", ", v_i3 * T.int64(99999999999)], T.float32")
    assert wild != programs["relu"]
    with pytest.raises(WorkerFailure, match=r"SIGSEGV|SIGBUS"):
        run_in_worker(
            ANSWERS, "tvm:opt=O0", "host", 1, 1, original, original, {"relu": wild}, x, timeout_s=300
        )
