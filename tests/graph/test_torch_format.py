from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dlas.core.errors import DlasError, ModelError, OptionError, UnknownNameError, UnsupportedError
from dlas.graph.format import load_model
from dlas.graph.formats.torch import from_module
from dlas.graph.reference import predict
from dlas.models.architecture import architecture_for, architectures


class Touch:
    """A pickle that leaves a trace when it is run."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.place,))


@pytest.fixture(scope="module")
def digits() -> nn.Module:
    torch.manual_seed(0)
    return architecture_for("digits-cnn:width=4").build()


def save(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module.", "_orig_mod."])
def test_checkpoint_of_a_named_architecture(tmp_path: Path, digits: nn.Module, wrap: str) -> None:
    state = digits.state_dict()
    content: object = {"state_dict": state, "epoch": 3} if wrap == "state_dict" else state
    if wrap.endswith("."):
        content = {wrap + k: v for k, v in state.items()}
    path = save(content, tmp_path / "net.pth")
    model = load_model(path, architecture="digits-cnn:width=4")
    x = np.random.default_rng(1).random((3, 1, 8, 8), np.float32)
    with torch.no_grad():
        want = digits(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(predict(model, x), want, atol=1e-5)
    assert model.inputs[0].shape == ("N", 1, 8, 8)
    assert (model.inputs[0].name, model.outputs[0].name) == ("input", "logits")
    assert model.source["architecture"] == "digits-cnn:width=4"
    assert model.source["path"] == "net.pth"
    assert model.torch_module is not None
    assert "largest difference" in model.history[-1].notes[0]
    assert "conv3" in [n.name for n in model.ir.graph]


def test_architecture_is_recognised(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save(architecture_for("digits-cnn").build().state_dict(), tmp_path / "net.pt")
    model = load_model(path)
    assert model.source["architecture"] == "digits-cnn"
    assert model.preprocessing == architecture_for("digits-cnn").preprocessing
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("depth", [20, 110])
def test_only_what_can_fit_is_built(tmp_path: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlas.graph.formats import _torch_checkpoint

    built = []
    shapes = _torch_checkpoint._meta_shapes
    monkeypatch.setattr(_torch_checkpoint, "_meta_shapes", lambda build: built.append(1) or shapes(build))
    wanted = f"cifar-resnet:classes=7,depth={depth}"
    state = architecture_for(wanted).build().state_dict()
    found = _torch_checkpoint.assemble("net.pt", state, "", ())
    assert found.architecture == architecture_for(wanted).spelled()
    families = [member for _, member in architectures.members()]
    assert len(built) == len(families)  # one of each
    del state["layer1.0.conv1.weight"]  # no depth has that many blocks
    with pytest.raises(ModelError, match="fit no known architecture"):
        _torch_checkpoint.assemble("net.pt", state, "", ())
    others = sum(len(m.candidates()) for m in families)
    assert 2 * len(families) < len(built) <= len(families) + others


def test_unknown_weights_name_the_closest(tmp_path: Path, digits: nn.Module) -> None:
    state = {**digits.state_dict(), "extra.weight": torch.ones(2)}
    with pytest.raises(
        ModelError, match=r"closest: digits-cnn \(\d+ tensors differ: .*package.module:function"
    ):
        load_model(save(state, tmp_path / "net.pt"))


def test_weights_of_another_architecture_are_refused(tmp_path: Path, digits: nn.Module) -> None:
    path = save(digits.state_dict(), tmp_path / "net.pt")
    with pytest.raises(
        ModelError, match=r"does not fit digits-cnn:width=5: .*\[4, 1, 3, 3\] instead of \[5, 1, 3, 3\]"
    ):
        load_model(path, architecture="digits-cnn:width=5")
    with pytest.raises(UnknownNameError, match="digits-cnn"):
        load_model(path, architecture="digits-cn")


def test_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    path = save(net.state_dict(), tmp_path / "net.pt")
    model = load_model(path, architecture="my_own_net:build", shape="3x2x2")
    assert model.inputs[0].shape == ("N", 3, 2, 2)
    with pytest.raises(OptionError, match="3x32x32"):
        load_model(path, architecture="my_own_net:build")
    with pytest.raises(OptionError, match="AttributeError"):
        load_model(path, architecture="my_own_net:missing", shape="3x2x2")
    with pytest.raises(OptionError, match="positive sizes"):
        load_model(path, architecture="my_own_net:build", shape="3x-2")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name, zipped in (("new.pt", True), ("old.pt", False)):
        torch.save({"state_dict": Touch(trace)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ModelError, match="holds Python code"):
            load_model(tmp_path / name)
    assert not trace.exists()


def whole_module(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)


def truncated(path: Path) -> None:
    torch.save({"a": torch.randn(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def truncated_old(path: Path) -> None:
    torch.save({"a": torch.randn(1000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:700])


def noise(path: Path) -> None:
    path.write_bytes(b"\x80" + np.random.default_rng(0).bytes(400))


def empty_archive(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", bytes(2**26))


def no_weights(path: Path) -> None:
    torch.save({"epoch": 1, "best": 0.5}, path)


def a_list(path: Path) -> None:
    torch.save([torch.ones(2)], path)


def not_finite(path: Path) -> None:
    state = architecture_for("digits-cnn").build().state_dict()
    state["conv2.weight"][0, 0, 0, 0] = float("nan")
    torch.save(state, path)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (whole_module, "holds Python code"),
        (truncated, "truncated or damaged"),
        (truncated_old, "truncated or damaged"),
        (noise, "truncated or damaged"),
        (empty_archive, "truncated or damaged"),
        (bomb, "zip bomb"),
        (no_weights, "holds no weights: .*'epoch', 'best'"),
        (a_list, "holds no weights: its content is a list"),
        (not_finite, "'conv2.weight' holds NaN"),
    ],
)
def test_bad_files_are_one_line(tmp_path: Path, make: Callable[[Path], None], told: str) -> None:
    make(tmp_path / "bad.pt")
    with pytest.raises(ModelError, match=told) as caught:
        load_model(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    ).eval()
    shapes = ({0: torch.export.Dim("b")},)
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    torch.export.save(torch.export.export(net, (torch.randn(2, 1, 4, 4),), dynamic_shapes=shapes), path)
    return path, net


def test_exported_program(program: tuple[Path, nn.Module]) -> None:
    path, net = program
    model = load_model(path)
    assert model.inputs[0].shape == ("N", 1, 4, 4)
    assert "as the network could not be traced: it is an exported program" in model.history[-1].notes[-1]
    x = np.random.default_rng(1).random((3, 1, 4, 4), np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(predict(model, x), net(torch.from_numpy(x)).numpy(), atol=1e-5)


@pytest.mark.parametrize(("option", "value"), [("architecture", "digits-cnn"), ("shape", "1x4x4")])
def test_a_program_takes_no_option(program: tuple[Path, nn.Module], option: str, value: str) -> None:
    with pytest.raises(OptionError, match=f"net.pt2: {option} = '{value}'.*says nothing about it"):
        load_model(program[0], **{option: value})


def test_exported_program_with_a_fixed_batch(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    torch.export.save(torch.export.export(net, (torch.randn(1, 1, 2, 2),)), tmp_path / "net.pt2")
    assert load_model(tmp_path / "net.pt2").inputs[0].shape == (1, 1, 2, 2)


def edited(path: Path, place: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """A copy of an archive with its records changed."""
    with zipfile.ZipFile(path) as before, zipfile.ZipFile(place, "w") as after:
        for name in before.namelist():
            after.writestr(name, change(name.partition("/")[2], before.read(name)))
    return place


def touch_code(trace: Path) -> str:
    return f"__import__('pathlib').Path({str(trace)!r}).touch()"


def test_nothing_in_a_program_can_run_code(tmp_path: Path, program: tuple[Path, nn.Module]) -> None:
    path, _ = program
    trace = tmp_path / "trace"
    payload = pickle.dumps(Touch(trace))

    def target(name: str, content: bytes) -> bytes:
        return (
            content.replace(b"torch.ops.aten.relu.default", b"torch.os.system")
            if name.endswith("model.json")
            else content
        )

    def expression(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        text = json.loads(content)
        return json.dumps(_replace(text, "expr_str", touch_code(trace))).encode()

    def pickled(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return payload if name == "data/weights/weight_0" else content

    def samples(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(((Touch(trace),), {}), buffer)
        return buffer.getvalue() if name.startswith("data/sample_inputs") else content

    for change in (target, expression, pickled, samples):
        with pytest.raises(ModelError, match="could run Python code"):
            load_model(edited(path, tmp_path / f"{change.__name__}.pt2", change))
    assert not trace.exists()


def test_guards_of_a_program_are_not_executed(tmp_path: Path, program: tuple[Path, nn.Module]) -> None:
    trace = tmp_path / "trace"

    def guards(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        return json.dumps({**json.loads(content), "guards_code": [touch_code(trace)]}).encode()

    load_model(edited(program[0], tmp_path / "guards.pt2", guards))
    assert not trace.exists()


def _replace(value: object, key: str, by: str) -> object:
    if isinstance(value, dict):
        return {k: by if k == key else _replace(v, key, by) for k, v in value.items()}
    return [_replace(v, key, by) for v in value] if isinstance(value, list) else value


def test_damaged_programs_are_one_line(tmp_path: Path, program: tuple[Path, nn.Module]) -> None:
    content = program[0].read_bytes()
    for size in (40, len(content) // 2, len(content) - 100):
        (tmp_path / "cut.pt2").write_bytes(content[:size])
        with pytest.raises(ModelError) as caught:
            load_model(tmp_path / "cut.pt2")
        assert "\n" not in str(caught.value)
    for lost in (
        "models/model.json",
        "data/weights/model_weights_config.json",
        "data/sample_inputs/model.pt",
    ):
        broken = edited(program[0], tmp_path / "lost.pt2", lambda n, c, lost=lost: b"" if n == lost else c)
        with pytest.raises(ModelError):
            load_model(broken)


def test_module_object() -> None:
    class Two(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return a + b, a * b

    model = from_module(Two(), (np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32)), "two")
    assert [s.name for s in model.inputs] == ["input_0", "input_1"]
    assert [s.shape for s in model.outputs] == [("N", 3), ("N", 3)]


def test_modules_that_cannot_be_read() -> None:
    class Text(nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "no"

    class Jumps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(UnsupportedError, match="something else than tensors"):
        from_module(Text(), np.zeros((2, 3), np.float32))
    with pytest.raises(UnsupportedError, match="cannot export"):
        from_module(Jumps(), np.zeros((2, 3), np.float32))
    with pytest.raises(DlasError, match=r"fails on an input of shape \[\[2, 3\]\]"):
        from_module(nn.Linear(4, 2), np.zeros((2, 3), np.float32))
