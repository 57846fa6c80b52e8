"""Converters: whatever happens to the tool becomes a result, and the target is whole or untouched."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlas.core.environments import SideEnvironment
from dlas.core.errors import UnknownNameError, UnsupportedError
from dlas.core.figure import Outcome
from dlas.runtime import converter as module
from dlas.runtime.converter import (
    HomeConverter,
    SideConverter,
    converter_for,
    converters,
    side_environment,
    side_environments,
)
from dlas.testing import models

# What dlas offers, by who runs it.
SIDE = {"onnx2tf", "litert-torch", "pnnx", "tflite2onnx"}
HOME = {"onnx-dynamo", "onnx-legacy", "tf2onnx", "tflite-converter"}


class Fake(SideConverter):
    """A tool whose script the test writes; this Python stands for the side environment's."""

    name = "fake"
    takes = (".onnx",)
    gives = (".tflite",)
    needs = "onnx"
    environment = "onnx2tf"
    reports = ("numpy", "no-such-distribution")

    def missing_for(self) -> str:
        return ""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script of :class:`Fake`."""
    monkeypatch.setattr(SideEnvironment, "interpreter", property(lambda self: Path(sys.executable)))
    script = tmp_path / "tool.py"
    monkeypatch.setattr(Fake, "runner", str(script))
    return script


@pytest.fixture
def net(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(models.residual().to_bytes())
    return path


def test_every_converter_is_known_and_says_what_it_takes() -> None:
    members = dict(converters.members())
    assert {n for n, m in members.items() if issubclass(m, SideConverter)} == SIDE
    assert {n for n, m in members.items() if issubclass(m, HomeConverter)} == HOME
    assert all(m.takes and m.gives and m.summary for m in members.values())


def test_every_side_converter_has_its_environments_and_every_environment_a_converter() -> None:
    wanted = {converter_for(n).side.name for n in SIDE} | {converter_for("onnx2tf:version=1.28").side.name}  # type: ignore[attr-defined]
    assert wanted == {e.name for e in side_environments()}
    for environment in side_environments():
        assert len(environment.pins) > 2
        assert all(v for v in environment.pins.values())
    assert side_environment("onnx2tf").pins["onnx2tf"] == "1.29.24"
    assert side_environment("onnx2tf-1.28").pins["onnx2tf"] == "1.28.8"
    assert "nvidia" not in " ".join(side_environment("litert-torch").pins)
    with pytest.raises(UnknownNameError, match="did you mean 'ncnn'"):
        side_environment("nccn")


def test_scripts_for_side_environments_do_without_dlas() -> None:
    folder = Path(module.__file__).with_name("converters") / "_runners"
    scripts = sorted(folder.glob("*.py"))
    assert len(scripts) >= 6
    for script in scripts:
        assert "dlas" not in script.read_text().replace("no dlas", ""), script.name


def test_a_tool_that_works(fake: Path, net: Path, tmp_path: Path) -> None:
    fake.write_text(
        "def convert(order):\n"
        "    data = open(order['source'], 'rb').read()\n"
        "    open(order['source'], 'wb').write(b'rewritten')\n"
        "    open(order['target'], 'wb').write(data[:10])\n"
    )
    before = net.read_bytes()
    done = Fake().convert(net, tmp_path / "out.tflite")
    assert done.status is Outcome.OK
    assert (tmp_path / "out.tflite").read_bytes() == before[:10]
    assert net.read_bytes() == before  # onnx2tf, for one, rewrites the file it is given
    assert done.versions["numpy"] == np.__version__
    assert done.versions["no-such-distribution"] == ""
    assert done.seconds > 0


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("raise ValueError('shape\\nmismatch')", Outcome.CRASH, "ValueError: shape mismatch"),
        ("raise NotImplementedError('no Resize')", Outcome.UNSUPPORTED, "no Resize"),
        ("import sys; sys.exit(1)", Outcome.CRASH, "exit code 1"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", Outcome.CRASH, "SIGSEGV"),
        ("import os; os._exit(7)", Outcome.CRASH, "exit code 7"),
        ("import time; time.sleep(60)", Outcome.TIMEOUT, "no end within 2 s"),
        ("pass", Outcome.CRASH, "wrote no .tflite file"),
        ("open(order['target'], 'wb').close()", Outcome.CRASH, "wrote no .tflite file"),
    ],
)
def test_what_goes_wrong_has_a_name(
    fake: Path, net: Path, tmp_path: Path, code: str, status: Outcome, words: str
) -> None:
    target = tmp_path / "out.tflite"
    target.write_bytes(b"old")
    fake.write_text(f"def convert(order):\n    print('last words', flush=True)\n    {code}\n")
    done = Fake().convert(net, target, timeout_s=2 if "sleep" in code else 60)
    assert (done.status, words in done.reason) == (status, True), done
    assert "last words" in done.stderr_tail
    assert ("SIGSEGV" in words) == (done.signal == "SIGSEGV")
    assert target.read_bytes() == b"old"
    assert done.versions.get("numpy") == np.__version__  # also of a process that died


def test_another_format_is_handed_over_as_onnx(fake: Path, tmp_path: Path, net: Path) -> None:
    from dlas.graph.format import load_model, save_model

    flat = tmp_path / "net.tflite"
    save_model(load_model(net), flat)
    fake.write_text(
        "def convert(order):\n"
        "    import onnx\n"
        "    onnx.checker.check_model(order['source'])\n"
        "    open(order['target'], 'w').write('x')\n"
    )
    done = Fake().convert(flat, tmp_path / "out.tflite")
    assert done.status is Outcome.OK, done
    assert "ONNX file that dlas makes" in done.notes[0]


def test_weights_beside_the_source_come_along(fake: Path, net: Path, tmp_path: Path) -> None:
    import onnx

    proto = onnx.load(net)
    folder = tmp_path / "apart"
    folder.mkdir()
    onnx.save(
        proto, folder / "big.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    fake.write_text(
        "def convert(order):\n"
        "    import onnx\n"
        "    proto = onnx.load(order['source'])\n"
        "    open(order['target'], 'w').write(str(len(proto.graph.initializer)))\n"
    )
    done = Fake().convert(folder / "big.onnx", tmp_path / "out.tflite")
    assert done.status is Outcome.OK, done
    assert int((tmp_path / "out.tflite").read_text()) == len(proto.graph.initializer)


def test_an_exported_program_never_reaches_a_tool_as_it_is(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PyTorch's own reader runs what a file tells it to; dlas reads it first, and hands over what it made itself.
    import zipfile

    monkeypatch.setattr(Fake, "needs", "torch")
    monkeypatch.setattr(Fake, "takes", (".pt2",))
    with zipfile.ZipFile(tmp_path / "bad.pt2", "w") as archive:
        archive.writestr("bad/models/model.json", "{}")
    fake.write_text(f"def convert(order):\n    open({str(tmp_path / 'reached')!r}, 'w').close()\n")
    done = Fake().convert(tmp_path / "bad.pt2", tmp_path / "out.tflite")
    assert done.status is Outcome.CRASH
    assert not (tmp_path / "reached").exists()


def test_endings_and_absence_are_told_before_any_work(tmp_path: Path, net: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"writes \.onnx"):
        converter_for("onnx-dynamo").convert(tmp_path / "a.th", tmp_path / "b.tflite")
    with pytest.raises(UnsupportedError, match=r"reads \.th"):
        converter_for("onnx-legacy").convert(tmp_path / "a.pt2", tmp_path / "b.onnx")
    # The cache of a test is empty: no side environment is there.
    with pytest.raises(UnsupportedError, match=r"--make-env onnx2tf-1\.28"):
        converter_for("onnx2tf:version=1.28").convert(net, tmp_path / "b.tflite")
    with pytest.raises(UnknownNameError, match="onnx2tf"):
        converter_for("onnx2tv")


@pytest.mark.slow
def test_torch_exporter(tmp_path: Path) -> None:
    import torch

    from dlas.graph.format import load_model
    from dlas.graph.reference import Reference

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten()).eval()
    x = torch.randn(1, 3, 8, 8)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "net.pt2")
    done = converter_for("onnx-dynamo").convert(tmp_path / "net.pt2", tmp_path / "net.onnx")
    assert done.status is Outcome.OK, done
    assert done.versions["torch"]
    model = load_model(tmp_path / "net.onnx")
    with Reference(model) as reference:
        (found,) = reference.run({model.inputs[0].name: x.numpy()}).values()
    np.testing.assert_allclose(found, net(x).detach().numpy(), atol=1e-5)


def test_a_damaged_source_is_a_result(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 not much")
    done = converter_for("onnx-dynamo").convert(tmp_path / "net.pt2", tmp_path / "net.onnx")
    assert done.status is Outcome.CRASH
    assert "net.pt2" in done.reason
    assert not (tmp_path / "net.onnx").exists()
