"""Keras files and SavedModels: what is refused without TensorFlow, and (slow) what TensorFlow's networks become."""

from __future__ import annotations

import base64
import io
import json
import marshal
import os
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas.core.errors import DlasError, ModelError, OptionError, UnsupportedError
from dlas.core.lazy import installed
from dlas.graph.format import companions, format_for, load_model
from dlas.graph.formats.keras import Keras, check, savedmodel
from dlas.graph.formats.keras.config import check_config, read_config
from dlas.graph.guard import import_model
from dlas.graph.model import Model
from dlas.graph.reference import Reference

h5py = pytest.importorskip("h5py")


# --- files made by hand -------------------------------------------------------------------------------------------


def layer(kind: str, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {"name": kind.lower(), **config}}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    first = layer("InputLayer", batch_input_shape=[None, 4], dtype="float32")
    return {"class_name": "Sequential", "config": {"name": "net", "layers": [first, *layers]}}


DENSE = layer("Dense", units=3, activation="relu")


def write_h5(path: Path, config: Any = None, *, kernel: Any = None) -> Path:
    with h5py.File(path, "w") as file:
        text = config if isinstance(config, str) else json.dumps(config or sequential(DENSE))
        file.attrs["model_config"] = text
        file.attrs["keras_version"] = "2.15.0"
        kernel = np.ones((4, 3), np.float32) if kernel is None else kernel
        file.create_dataset("model_weights/dense/dense/kernel:0", data=kernel)
    return path


def weights_bytes() -> bytes:
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((4, 3), np.float32))
    return held.getvalue()


def write_zip(path: Path, members: list[tuple[str, bytes]] | None = None, **changes: bytes) -> Path:
    usual = {
        "metadata.json": b'{"keras_version": "3.15.1"}',
        "config.json": json.dumps(sequential(DENSE)).encode(),
        "model.weights.h5": weights_bytes(),
    }
    usual.update({name.replace("__", "."): content for name, content in changes.items()})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members if members is not None else usual.items():
            archive.writestr(name, content)
    return path


def refuses(path: Path, error: type[DlasError], words: str, **options: Any) -> None:
    """The file is refused in one line that says ``words``, before TensorFlow is asked for."""
    with pytest.raises(error, match=words) as raised:
        Keras(**options).load(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600
    if not installed("tensorflow"):
        assert "tensorflow" not in sys.modules


def bytecode(path: Path) -> str:
    """A function as Keras stores one: calling it, or making it with these defaults, creates ``path``."""
    code = compile(f"lambda x: open({str(path)!r}, 'w') and x", "planted", "eval").co_consts[0]
    return base64.b64encode(marshal.dumps(code)).decode()


# --- what is accepted ---------------------------------------------------------------------------------------------


def test_which_files_are_keras(tmp_path: Path) -> None:
    assert {format_for(Path(f"a{s}")) for s in (".h5", ".hdf5", ".keras", ".KERAS")} == {Keras}
    assert Keras.recognises(b"\x89HDF\r\n\x1a\n")
    assert Keras.recognises(b"PK\x03\x04")
    assert not Keras.recognises(b"\x80\x04")
    (tmp_path / "saved").mkdir()
    with pytest.raises(ModelError, match="no format knows"):
        format_for(tmp_path / "saved")
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    assert format_for(tmp_path / "saved") is Keras


def test_harmless_files_pass_the_checks(tmp_path: Path) -> None:
    assert check(write_h5(tmp_path / "a.h5")) == "2.15.0"
    assert check(write_zip(tmp_path / "a.keras")) == "3.15.1"
    # Keras makes directories for assets; empty they say nothing
    with zipfile.ZipFile(tmp_path / "a.keras", "a") as archive:
        archive.mkdir("assets")
    assert check(tmp_path / "a.keras") == "3.15.1"


@pytest.mark.skipif(installed("tensorflow"), reason="TensorFlow is installed")
def test_without_tensorflow_the_extra_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"needs tensorflow.*dlas\[keras\]"):
        load_model(write_h5(tmp_path / "a.h5"))
    assert "dlas[keras]" in Keras.missing()


# --- damaged files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".h5", ".keras"])
def test_truncated_files(tmp_path: Path, ending: str) -> None:
    whole = (write_h5 if ending == ".h5" else write_zip)(tmp_path / f"whole{ending}").read_bytes()
    for end in range(9, len(whole) - 1, max(1, len(whole) // 40)):
        path = tmp_path / f"cut{ending}"
        path.write_bytes(whole[:end])
        with pytest.raises((ModelError, UnsupportedError)):
            check(path)


def test_flipped_bytes_end_in_a_verdict(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for ending, write in ((".h5", write_h5), (".keras", write_zip)):
        whole = np.frombuffer(write(tmp_path / f"whole{ending}").read_bytes(), np.uint8)
        refused = 0
        for _ in range(150):
            data = whole.copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            path = tmp_path / f"flipped{ending}"
            path.write_bytes(data.tobytes())
            try:
                check(path)
            except (ModelError, UnsupportedError):
                refused += 1
        assert refused > 20


def test_endings_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "a.keras").write_bytes(write_h5(tmp_path / "a.h5").read_bytes())
    refuses(tmp_path / "a.keras", ModelError, r"HDF5 file.*\.h5")
    (tmp_path / "b.h5").write_bytes(write_zip(tmp_path / "b.keras").read_bytes())
    refuses(tmp_path / "b.h5", ModelError, r"zip archive.*\.keras")


def test_weights_only(tmp_path: Path) -> None:
    path = tmp_path / "some.weights.h5"
    path.write_bytes(weights_bytes())
    refuses(path, UnsupportedError, "weights only")
    found = Keras.weights(path)
    assert found is not None
    assert [(t.name, t.shape, t.dtype, t.nbytes) for t in found.tensors] == [
        ("layers/dense/vars/0", (4, 3), "float32", 48)
    ]
    assert Keras.weights(write_h5(tmp_path / "whole.h5")) is None
    assert Keras.weights(write_zip(tmp_path / "whole.keras")) is None


def test_too_large(tmp_path: Path) -> None:
    refuses(write_h5(tmp_path / "a.h5"), ModelError, "max_bytes", max_bytes=1000)


# --- code in a file -----------------------------------------------------------------------------------------------


def hostile_layers(planted: Path) -> dict[str, dict[str, Any]]:
    code = bytecode(planted)
    return {
        "lambda of Keras 2": layer("Lambda", function=[code, None, None], function_type="lambda", module="m"),
        "lambda of Keras 3": layer(
            "Lambda",
            function={
                "class_name": "__lambda__",
                "config": {"code": code, "defaults": None, "closure": None},
            },
        ),
        "lambda as an activation": layer(
            "Dense", units=3, activation={"class_name": "__lambda__", "config": {"value": code}}
        ),
        "lambda inside a wrapper": layer(
            "TimeDistributed", layer=layer("Lambda", function=[code, None, None], function_type="lambda")
        ),
        "pickled module": layer("TorchModuleWrapper", module=code),
        "another model": layer("TFSMLayer", filepath=str(planted)),
    }


@pytest.mark.parametrize("name", hostile_layers(Path("x")))
def test_code_is_refused_by_name(tmp_path: Path, name: str) -> None:
    planted = tmp_path / "planted"
    config = sequential(hostile_layers(planted)[name], DENSE)
    refuses(
        write_h5(tmp_path / "a.h5", config), ModelError, "holds a .*Lambda|bytecode|TorchModule|TFSMLayer"
    )
    refuses(
        write_zip(tmp_path / "a.keras", config__json=json.dumps(config).encode()),
        ModelError,
        "holds a .*Lambda|bytecode|TorchModule|TFSMLayer",
    )
    with pytest.raises(ModelError, match="dlas does not run"):
        import_model(tmp_path / "a.h5")
    assert not planted.exists()


STRANGERS = {
    "a class of the user's own": ({**DENSE, "class_name": "MyLayer"}, "MyLayer"),
    "a registered class": ({**DENSE, "registered_name": "mine>Dense"}, "mine>Dense"),
    "an old registered class": ({**DENSE, "class_name": "Addons>GroupNorm"}, "Addons>GroupNorm"),
    "a module outside keras": ({**DENSE, "module": "os"}, "module os"),
    "a module that looks like keras": ({**DENSE, "module": "keras_evil.layers"}, "module keras_evil"),
    "a private module of keras": (
        {**DENSE, "module": "keras.src.utils.file_utils"},
        "module keras.src.utils",
    ),
    "a function that downloads": (
        layer(
            "Dense",
            activation={"class_name": "function", "module": "keras.utils", "config": "get_file"},
        ),
        "get_file",
    ),
    "a function of the system": (
        layer("Dense", activation={"class_name": "function", "module": "os", "config": "system"}),
        "os.system",
    ),
    "an activation out of another module": (
        layer("Dense", activation={"class_name": "function", "module": "evil", "config": "relu"}),
        "module evil",
    ),
    "a class that is called get_file": (
        {"class_name": "get_file", "module": "keras.utils", "config": {}},
        "get_file",
    ),
    "a vocabulary file": (layer("StringLookup", vocabulary="/etc/passwd"), "StringLookup.*files"),
    "text": (layer("TextVectorization", vocabulary="/etc/passwd"), "TextVectorization"),
    "a call that writes": (layer("TFOpLambda", function="io.write_file"), "io.write_file"),
    "a call into Python": (layer("TFOpLambda", function="py_function"), "py_function"),
    "an operator of the user's own": (
        layer("TensorFlowOpLayer", node_def="op: 'WriteFile'"),
        "TensorFlowOpLayer",
    ),
    "a class name that is no text": ({"class_name": ["Dense"], "config": {}}, "class"),
    "a data type of TensorFlow": ({**DENSE, "class_name": "JaxLayer"}, "JaxLayer"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    entry, words = STRANGERS[name]
    refuses(write_h5(tmp_path / "a.h5", sequential(DENSE, entry)), UnsupportedError, words)


def test_all_strangers_are_named(tmp_path: Path) -> None:
    many = [{**DENSE, "class_name": f"Mine{i}"} for i in range(12)]
    refuses(write_h5(tmp_path / "a.h5", sequential(*many)), UnsupportedError, "Mine.*Mine.* and 4 more")


def test_control_characters_do_not_reach_the_message(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as raised:
        check_config(sequential({**DENSE, "class_name": "\x1b[2Jevil\n"}), "a.h5")
    assert str(raised.value).isprintable()


def test_losses_are_not_looked_at() -> None:
    # compile=False: they are never built, so a network with a loss of the user's own can be read.
    text = json.dumps(
        {**sequential(DENSE), "compile_config": {"loss": {"class_name": "MyLoss", "config": {}}}}
    )
    assert "compile_config" not in read_config(text, "a")
    inner = {**sequential(DENSE), "compile_config": {"loss": {"class_name": "MyLoss", "config": {}}}}
    with pytest.raises(UnsupportedError, match="MyLoss"):
        read_config(json.dumps(sequential(inner)), "a")  # a model inside a model would be compiled


def test_configurations_that_make_no_sense(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    refuses(write_h5(tmp_path / "a.h5", deep[:60_000]), ModelError, "nested too deeply|not JSON")
    nested: Any = DENSE
    for _ in range(150):
        nested = layer("TimeDistributed", layer=nested)
    refuses(write_h5(tmp_path / "a.h5", sequential(nested)), ModelError, "nested deeper")
    refuses(write_h5(tmp_path / "a.h5", "{"), ModelError, "not JSON")
    refuses(write_h5(tmp_path / "a.h5", "[]"), ModelError, "describes no network")
    refuses(write_h5(tmp_path / "a.h5", sequential(layer("Dense", units=10**12))), ModelError, "1e\\+12")
    many = [{"a": i} for i in range(100_001)]
    refuses(
        write_zip(tmp_path / "a.keras", config__json=json.dumps(sequential(*many)).encode()),
        ModelError,
        "more than",
    )
    utf16 = json.dumps(sequential(DENSE)).encode("utf-16")
    refuses(write_zip(tmp_path / "a.keras", config__json=utf16), ModelError, "not text")
    # these are what Keras itself writes
    check_config({**sequential(DENSE), "shared_object_id": 140627812200016}, "a")


# --- HDF5 ---------------------------------------------------------------------------------------------------------


def test_links_out_of_the_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    write_h5(secret)
    for kind, link in (
        ("external", h5py.ExternalLink(str(secret), "/model_weights")),
        ("soft", h5py.SoftLink("/model_weights")),
    ):
        path = write_h5(tmp_path / f"{kind}.h5")
        with h5py.File(path, "a") as file:
            file["other"] = link
        refuses(path, ModelError, "is a link to")


def test_data_outside_the_file(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "external.h5")
    (tmp_path / "raw").write_bytes(b"\0" * 64)
    with h5py.File(path, "a") as file:
        file.create_dataset("x", shape=(16,), dtype="f4", external=[(str(tmp_path / "raw"), 0, 64)])
    refuses(path, ModelError, "lies in other files")
    path = write_h5(tmp_path / "virtual.h5")
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout(shape=(4, 3), dtype="f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "external.h5"), "model_weights", shape=(4, 3))
        file.create_virtual_dataset("x", layout)
    refuses(path, ModelError, "lies in other files")


def test_arrays_that_are_not_there(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("claims", shape=(25 * 2**30,), dtype="f4")  # 100 GB, nothing of it stored
    refuses(path, ModelError, "declares 107374182400 bytes but 0 are stored")
    path = write_h5(tmp_path / "b.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("claims", shape=(25 * 2**30,), dtype="f4", chunks=(2**20,), compression="gzip")
        file["claims"][:10] = 1
    refuses(path, ModelError, "its arrays take 1073741824.. bytes")
    path = write_h5(tmp_path / "c.h5")
    with h5py.File(path, "a") as file:
        file.create_dataset("bomb", data=np.zeros(2**24, np.float32), compression="gzip")
    assert path.stat().st_size < 300_000
    refuses(path, ModelError, "claims to unpack")


def test_arrays_that_are_not_numbers(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["words"] = ["a", "b"]
    refuses(path, UnsupportedError, "not numbers")


def test_a_group_within_itself(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["model_weights/again"] = file["model_weights"]
    refuses(path, ModelError, "linked twice")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    kernel = np.ones((4, 3), np.float32)
    kernel[2, 1] = value
    path = write_h5(tmp_path / "a.h5", kernel=kernel)
    refuses(path, ModelError, "kernel:0.*NaN or infinity.*allow_nan")
    assert check(path, allow_nan=True) == "2.15.0"


# --- archives -----------------------------------------------------------------------------------------------------


def test_archives_that_reach_outside(tmp_path: Path) -> None:
    base = [("config.json", json.dumps(sequential(DENSE)).encode()), ("model.weights.h5", weights_bytes())]
    for name in ("../evil", "/evil", "a/../../evil", "C:evil"):
        refuses(write_zip(tmp_path / "a.keras", [*base, (name, b"x")]), ModelError, "outside the archive")
    refuses(
        write_zip(tmp_path / "a.keras", [*base, ("assets/vocabulary.txt", b"x")]),
        UnsupportedError,
        "vocabulary",
    )
    refuses(write_zip(tmp_path / "a.keras", [*base, ("model.weights.npz", b"x")]), UnsupportedError, "npz")
    path = write_zip(tmp_path / "a.keras", base)
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("metadata.json")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    refuses(path, ModelError, "is a link")


def test_archives_with_two_of_a_name(tmp_path: Path) -> None:
    base = [("config.json", json.dumps(sequential(DENSE)).encode()), ("model.weights.h5", weights_bytes())]
    with pytest.warns(UserWarning, match="Duplicate"):
        path = write_zip(tmp_path / "a.keras", [*base, ("config.json", b"{}")])
    refuses(path, ModelError, "twice")


def test_archives_that_lack_something(tmp_path: Path) -> None:
    refuses(
        write_zip(tmp_path / "a.keras", [("model.weights.h5", weights_bytes())]),
        ModelError,
        r"no config\.json",
    )
    refuses(write_zip(tmp_path / "a.keras", [("config.json", b"{}")]), ModelError, r"no model\.weights")


def test_zip_bombs(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", json.dumps(sequential(DENSE)))
        archive.writestr("model.weights.h5", bytes(100 * 2**20))
    assert path.stat().st_size < 200_000
    refuses(path, ModelError, "zip bomb")
    # a member that holds more than it declares
    whole = write_zip(tmp_path / "b.keras").read_bytes()
    real = len(json.dumps(sequential(DENSE)).encode())
    lying = whole.replace(real.to_bytes(4, "little"), (real - 50).to_bytes(4, "little"))
    assert lying != whole
    (tmp_path / "b.keras").write_bytes(lying)
    refuses(tmp_path / "b.keras", ModelError, "damaged|declares|JSON")


# --- SavedModel ---------------------------------------------------------------------------------------------------


def part(number: int, content: bytes | str | int) -> bytes:
    """One field of a protocol buffer message."""
    if isinstance(content, int):
        return number_bytes(number << 3) + number_bytes(content)
    data = content.encode() if isinstance(content, str) else content
    return number_bytes(number << 3 | 2) + number_bytes(len(data)) + data


def number_bytes(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def node(kind: str, *attributes: bytes) -> bytes:
    return (
        part(1, kind.lower())
        + part(2, kind)
        + b"".join(part(5, part(1, "a") + part(2, a)) for a in attributes)
    )


def calls(function: str) -> bytes:
    return part(10, part(1, function))


def program(
    functions: dict[str, list[bytes]],
    roots: tuple[str, ...] = ("serve",),
    graph: tuple[bytes, ...] = (),
    objects: tuple[bytes, ...] = (b"",),
    extra: bytes = b"",
    signatures: tuple[str, ...] = ("serving_default",),
) -> bytes:
    library = b"".join(
        part(1, part(1, part(1, name)) + b"".join(part(3, n) for n in nodes))
        for name, nodes in functions.items()
    )
    tree = b"".join(part(1, o) for o in objects) + b"".join(part(2, part(1, r)) for r in roots)
    meta = part(1, part(5, "2.21.0")) + part(2, part(2, library) + b"".join(part(1, n) for n in graph))
    meta += (
        b"".join(part(5, part(1, s)) for s in (*signatures, "__saved_model_init_op")) + part(7, tree) + extra
    )
    return part(1, 1) + part(2, meta)


def folder(path: Path, content: bytes) -> Path:
    (path / "variables").mkdir(parents=True, exist_ok=True)
    (path / "saved_model.pb").write_bytes(content)
    return path


def test_a_harmless_program(tmp_path: Path) -> None:
    functions = {
        "serve": [node("MatMul"), node("PartitionedCall", calls("inner"))],
        "inner": [node("Relu"), node("serve")],
    }
    found = savedmodel.inspect(folder(tmp_path / "m", program(functions)), 10**6)
    assert (found.signatures, found.tensorflow) == (("serving_default",), "2.21.0")
    assert companions(tmp_path / "m") == (tmp_path / "m" / "saved_model.pb",)


@pytest.mark.parametrize(
    "kind",
    ["PyFunc", "EagerPyFunc", "PyFuncStateless", "ReadFile", "WriteFile", "PrintV2", "LoadLibrary", "Save",
     "HashTableV2", "InitializeTableFromTextFileV2", "XlaLaunch", "ShellExecute", "\x1b[31mRed"],
)  # fmt: skip
def test_operators_that_do_more_than_compute(tmp_path: Path, kind: str) -> None:
    words = kind.replace("\x1b[", r"\?\[")
    for functions, graph in (
        ({"serve": [node(kind)]}, ()),
        ({"serve": [node("PartitionedCall", calls("inner"))], "inner": [node(kind)]}, ()),
        ({"serve": [node("Relu")], "nobody_calls": [node(kind)]}, ()),
        ({"serve": [node("Relu")]}, (node(kind),)),
    ):
        path = folder(tmp_path / "m", program(functions, graph=graph))
        refuses(path, UnsupportedError, words)


def test_checkpoint_operators_only_where_nothing_calls_them(tmp_path: Path) -> None:
    saver = [node("SaveV2"), node("MergeV2Checkpoints"), node("RestoreV2")]
    apart = program(
        {"serve": [node("Relu")], "saver": saver}, graph=(node("StatefulPartitionedCall", calls("saver")),)
    )
    assert savedmodel.inspect(folder(tmp_path / "m", apart), 10**6).signatures
    for functions, roots in (
        ({"serve": saver}, ("serve",)),
        ({"serve": [node("StatefulPartitionedCall", calls("saver"))], "saver": saver}, ("serve",)),
        ({"serve": [node("saver")], "saver": saver}, ("serve",)),
        ({"serve": [node("If", part(1, part(9, part(1, "saver"))))], "saver": saver}, ("serve",)),
        ({"serve": [node("Relu")], "saver": saver}, ("serve", "saver")),
    ):
        refuses(folder(tmp_path / "m", program(functions, roots)), UnsupportedError, "SaveV2")


def test_two_operators_in_one_node(tmp_path: Path) -> None:
    # The last one counts for TensorFlow; it must for the check as well.
    both = part(1, "n") + part(2, "Relu") + part(2, "WriteFile")
    refuses(folder(tmp_path / "m", program({"serve": [both]})), UnsupportedError, "WriteFile")
    # ... and two functions of one name are both looked at
    library = b"".join(part(1, part(1, part(1, "serve")) + part(3, node(k))) for k in ("WriteFile", "Relu"))
    content = part(2, part(2, part(2, library)) + part(7, part(1, b"") + part(2, part(1, "serve"))))
    refuses(folder(tmp_path / "m", content), UnsupportedError, "WriteFile")


def test_tables_files_and_old_programs(tmp_path: Path) -> None:
    fine = {"serve": [node("Relu")]}
    refuses(
        folder(tmp_path / "a", program(fine, objects=(part(5, b""),))), UnsupportedError, "tables or files"
    )
    refuses(
        folder(tmp_path / "a", program(fine, objects=(part(10, b""),))), UnsupportedError, "tables or files"
    )
    refuses(folder(tmp_path / "a", program(fine, extra=part(6, b""))), UnsupportedError, "assets")
    refuses(folder(tmp_path / "a", program(fine, objects=())), UnsupportedError, "TensorFlow 1")
    refuses(folder(tmp_path / "a", program(fine) + part(2, b"")), UnsupportedError, "2 graphs")
    path = folder(tmp_path / "b", program(fine))
    (path / "saved_model.pbtxt").write_text("")
    refuses(path, UnsupportedError, "pbtxt")


def test_constants_that_are_not_there(tmp_path: Path) -> None:
    tensor = part(1, 1) + part(2, part(2, part(1, 2**20)) + part(2, part(1, 2**15))) + part(5, b"\0\0\0\0")
    bomb = program({"serve": [node("Const", part(8, tensor))]})
    refuses(folder(tmp_path / "m", bomb), ModelError, "its constants claim")


def test_programs_that_are_cut_or_flipped(tmp_path: Path) -> None:
    whole = program(
        {"serve": [node("MatMul"), node("PartitionedCall", calls("inner"))], "inner": [node("Relu")]}
    )
    rng = np.random.default_rng(1)
    for end in range(len(whole)):
        with pytest.raises((ModelError, UnsupportedError)):
            savedmodel.inspect(folder(tmp_path / "m", whole[:end]), 10**6)
    for _ in range(200):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 3):
            data[place] = int(rng.integers(0, 256))
        try:
            savedmodel.inspect(folder(tmp_path / "m", bytes(data)), 10**6)
        except (ModelError, UnsupportedError) as error:
            assert str(error)  # noqa: PT017 - most are refused, and no other error may come


def test_links_in_the_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", program({"serve": [node("Relu")]}))
    os.symlink("/etc/passwd", path / "variables" / "variables.data-00000-of-00001")
    refuses(path, ModelError, "is a link")
    assert companions(path) == ()
    os.unlink(path / "variables" / "variables.data-00000-of-00001")
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", path / "assets")
    refuses(path, ModelError, "is a link")


def entry_bytes(shape: tuple[int, ...], size: int, kind: int = 1, offset: int = 0) -> bytes:
    dims = b"".join(part(2, part(1, d)) for d in shape)
    return part(1, kind) + part(2, dims) + part(3, 0) + part(4, offset) + part(5, size)


def table(entries: dict[str, bytes]) -> bytes:
    """A table of one block, as TensorFlow writes a checkpoint's index."""

    def block(pairs: dict[bytes, bytes]) -> bytes:
        body = b"".join(
            number_bytes(0) + number_bytes(len(k)) + number_bytes(len(v)) + k + v for k, v in pairs.items()
        )
        return body + (0).to_bytes(4, "little") + (1).to_bytes(4, "little")

    data = block({b"": part(1, 1), **{k.encode(): v for k, v in entries.items()}})
    handle = number_bytes(0) + number_bytes(len(data))
    index = block({b"z": handle})
    footer = number_bytes(0) * 2 + number_bytes(len(data) + 5) + number_bytes(len(index))
    return data + bytes(5) + index + bytes(5) + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def test_variables_that_are_not_there(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", program({"serve": [node("Relu")]}))
    held = path / "variables" / "variables.data-00000-of-00001"
    index = path / "variables" / "variables.index"
    held.write_bytes(bytes(48))
    index.write_bytes(table({"w": entry_bytes((4, 3), 48)}))
    assert savedmodel.inspect(path, 10**6).signatures
    for entry, words in (
        (entry_bytes((25 * 2**30,), 48), "declares the shape .*107374182400 bytes"),
        (entry_bytes((4, 3), 48, offset=8), "beyond the end"),
        (entry_bytes((25 * 2**30,), 25 * 2**32), "beyond the end"),
        (entry_bytes((2**30,), 48, kind=7), "1073741824 texts"),
        (entry_bytes((4, 3), 48, kind=20), "element type 20"),
    ):
        index.write_bytes(table({"w": entry}))
        refuses(path, DlasError, words)
    index.write_bytes(table({"w": entry_bytes((4, 3), 48)})[:-20])
    refuses(path, ModelError, "damaged")
    index.unlink()
    refuses(path, ModelError, "more than the 100 bytes", max_bytes=100)


# --- with TensorFlow ----------------------------------------------------------------------------------------------


def picture_net(keras: Any) -> Any:
    """A small MobileNetV2, with the strides, padding and residuals of the real one."""
    layers = keras.layers
    given = keras.Input((24, 24, 3), name="picture")
    x = layers.Rescaling(1 / 127.5, offset=-1)(given)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    for stride, filters in ((1, 8), (2, 16), (1, 16)):
        y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(24, 1, use_bias=False)(x)))
        y = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(y)
        y = layers.ReLU(6.0)(layers.BatchNormalization()(y))
        y = layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(y))
        x = layers.Add()([x, y]) if stride == 1 and x.shape[-1] == filters else y
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(given, layers.Dense(10, activation="softmax", name="kind")(x), name="small_mobilenet")


def two_ends(keras: Any) -> Any:
    layers = keras.layers
    picture, facts = keras.Input((8, 8, 3), name="picture"), keras.Input((5,), name="facts")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same", activation="relu")(picture))
    z = layers.Concatenate()([x, layers.Dense(6, activation="tanh")(facts)])
    return keras.Model(
        [picture, facts],
        [layers.Dense(3, activation="softmax", name="kind")(z), layers.Dense(1, name="size")(z)],
    )


def attention(keras: Any) -> Any:
    layers = keras.layers
    given = keras.Input((7, 8))
    x = layers.LayerNormalization()(given)
    x = layers.LayerNormalization()(layers.Add()([given, layers.MultiHeadAttention(2, 4)(x, x)]))
    return keras.Model(given, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def squeeze_excite(keras: Any) -> Any:
    layers = keras.layers
    given = keras.Input((12, 12, 4))
    x = layers.Activation("swish")(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(given)))
    s = layers.Conv2D(2, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(s)])
    return keras.Model(given, layers.Dense(4)(layers.Flatten()(x)))


def chains(keras: Any) -> dict[str, tuple[tuple[int, ...], list[Any]]]:
    """Shape of a sample and layers of the networks that are plain chains."""
    layers = keras.layers
    bidirectional, timed = layers.Bidirectional, layers.TimeDistributed
    return {
        "dense": (
            (10,),
            [layers.Dense(16, activation="relu"), layers.BatchNormalization(), layers.Dense(3, activation="softmax")],
        ),
        "lstm": ((7, 5), [layers.LSTM(6, return_sequences=True), layers.LSTM(4), layers.Dense(3)]),
        "gru": ((7, 5), [layers.GRU(6, return_sequences=True), layers.GRU(4), layers.Dense(3)]),
        "rnn": ((7, 5), [layers.SimpleRNN(6), layers.Dense(3)]),
        "bidirectional": (
            (7, 5),
            [bidirectional(layers.LSTM(6, return_sequences=True)), bidirectional(layers.GRU(4)), layers.Dense(3)],
        ),
        "time_distributed": (
            (4, 8, 8, 3),
            [timed(layers.Conv2D(4, 3, activation="relu")), timed(layers.Flatten()), layers.LSTM(5)],
        ),
        "embedding": ((7,), [layers.Embedding(20, 6), layers.LSTM(5), layers.Dense(2)]),
        "transposed": (
            (6, 6, 3),
            [
                layers.Conv2DTranspose(4, 3, strides=2, padding="same"),
                layers.BatchNormalization(),
                layers.LeakyReLU(),
                layers.Conv2DTranspose(2, 4, strides=2, padding="valid", activation="tanh"),
            ],
        ),
        "upsampled": (
            (6, 6, 3),
            [layers.Conv2D(4, 3), layers.UpSampling2D(2), layers.UpSampling2D(2, interpolation="bilinear")],
        ),
        "layer_norm": ((6, 6, 4), [layers.LayerNormalization(), layers.Conv2D(4, 3), layers.PReLU()]),
        "conv1d": (
            (20, 3),
            [
                layers.Conv1D(8, 3, padding="causal", dilation_rate=2, activation="relu"),
                layers.BatchNormalization(),
                layers.MaxPooling1D(2),
                layers.SeparableConv1D(6, 3),
                layers.GlobalMaxPooling1D(),
            ],
        ),
        "separable": (
            (16, 16, 3),
            [
                layers.SeparableConv2D(8, 3, padding="same"),
                layers.BatchNormalization(),
                layers.MaxPooling2D(3, strides=2, padding="same"),
                layers.AveragePooling2D(2, padding="same"),
                layers.Conv2D(8, 3, dilation_rate=2, padding="same"),
                layers.Flatten(),
                layers.Dense(3),
            ],
        ),
        "shaping": (
            (6, 6, 4),
            [layers.Permute((3, 1, 2)), layers.Reshape((4, 36)), layers.Cropping1D(1), layers.Flatten(),
             layers.RepeatVector(3)],
        ),
        "activations": (
            (6, 6, 4),
            [layers.Conv2D(8, 3), layers.Activation("gelu"), layers.Activation("hard_sigmoid"),
             layers.Activation("selu"), layers.Flatten(), layers.Dense(2, activation="softplus")],
        ),
    }  # fmt: skip


BRANCHED = {
    "mobilenet": picture_net,
    "two_ends": two_ends,
    "attention": attention,
    "squeeze_excite": squeeze_excite,
}
NETS = [*BRANCHED, "dense", "lstm", "gru", "rnn", "bidirectional", "time_distributed", "embedding", "transposed",
        "upsampled", "layer_norm", "conv1d", "separable", "shaping", "activations"]  # fmt: skip


@pytest.fixture(scope="module")
def libraries() -> dict[str, Any]:
    """Keras 3 and tf_keras; TensorFlow made quiet and exact first."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from dlas.graph.formats.keras.loading import tensorflow

    tensorflow()
    return {"keras": pytest.importorskip("keras"), "tf_keras": pytest.importorskip("tf_keras")}


def make(keras: Any, name: str) -> Any:
    """A network with weights that are not what it starts with: no batch norm is the identity."""
    if name in BRANCHED:
        model = BRANCHED[name](keras)
    else:
        shape, layers = chains(keras)[name]
        model = keras.Sequential([keras.Input(shape), *layers], name=name)
    rng = np.random.default_rng(1)
    model.set_weights(
        [
            np.abs(w + rng.normal(0, 0.1, w.shape)).astype(w.dtype)
            if w.size and w.min() == w.max() == 1
            else (w + rng.normal(0, 0.1, w.shape)).astype(w.dtype)
            for w in model.get_weights()
        ]
    )
    return model


def rows(model: Any, name: str) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    return [
        (
            rng.integers(0, 20, (3, *i.shape[1:]))
            if name == "embedding"
            else rng.normal(0, 1, (3, *i.shape[1:]))
        ).astype(np.float32)
        for i in model.inputs
    ]


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(wanted.astype(np.float64) - got).sum()
    return (
        float("inf")
        if noise == 0
        else float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise))
    )


def agrees(found: Model, model: Any, name: str) -> None:
    """The Model answers as Keras does: at least 100 dB, output by output."""
    given = rows(model, name)
    wanted = model(given if len(given) > 1 else given[0], training=False)
    wanted = [np.asarray(w) for w in (wanted if isinstance(wanted, list | tuple) else [wanted])]
    names = [spec.name for spec in found.inputs]
    if len(names) > 1:  # a SavedModel sorts its inputs
        given = [
            dict(zip((i.name.split(":")[0] for i in model.inputs), given, strict=True))[n] for n in names
        ]
    with Reference(found) as reference:
        answers = list(reference.run(dict(zip(names, given, strict=True))).values())
    assert len(answers) == len(wanted)
    for want in wanted:
        assert max(decibels(want, got) for got in answers if got.shape == want.shape) >= 100
    for spec in (*found.inputs, *found.outputs):
        assert spec.shape[0] == "N"
        assert all(isinstance(d, int) for d in spec.shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["keras .keras", "keras .h5", "tf_keras .keras", "tf_keras .h5"])
def test_files_answer_as_keras(tmp_path: Path, libraries: dict[str, Any], kind: str, name: str) -> None:
    library, ending = kind.split()
    model = make(libraries[library], name)
    model.save(tmp_path / f"net{ending}")
    found = load_model(tmp_path / f"net{ending}")
    agrees(found, model, name)
    assert found.source["framework"].startswith(library.replace("_", "-"))
    assert found.history[-1].options["loader"] == found.source["framework"]
    counts = Counter(n.op_type for n in found.ir.graph)
    norms = sum(type(layer).__name__ == "BatchNormalization" for layer in model.layers)
    assert counts["BatchNormalization"] == norms
    assert not {"Loop", "If", "Einsum"} & set(counts)
    assert "Shape" not in counts or name == "rnn"  # its state starts as zeros, as many as there are rows
    if name in ("lstm", "gru"):
        assert counts[name.upper()] == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [f"{library} {name}" for library in ("keras", "tf_keras")
     for name in ("mobilenet", "two_ends", "attention", "dense", "lstm", "transposed")] + ["tf_keras gru"],
)  # fmt: skip
def test_saved_models_answer_as_keras(tmp_path: Path, libraries: dict[str, Any], case: str) -> None:
    library, name = case.split()
    model = make(libraries[library], name)
    if library == "keras":
        model.export(tmp_path / "net", verbose=False)
    else:
        model.save(tmp_path / "net", save_format="tf")
    found = load_model(tmp_path / "net")
    agrees(found, model, name)
    assert "signature 'serving_default'" in found.history[-1].notes[0]
    assert tmp_path / "net" / "variables" / "variables.index" in companions(tmp_path / "net")


@pytest.mark.slow
def test_names_are_those_of_the_layers(tmp_path: Path, libraries: dict[str, Any]) -> None:
    for library in ("keras", "tf_keras"):
        model = make(libraries[library], "mobilenet")
        model.save(tmp_path / "net.keras")
        found = load_model(tmp_path / "net.keras")
        nodes = {n.name: n.op_type for n in found.ir.graph}
        assert found.inputs[0].name == "picture"
        assert found.outputs[0].name == "kind"
        for layer in model.layers:
            kind = {"Conv2D": "Conv", "DepthwiseConv2D": "Conv"}.get(
                type(layer).__name__, type(layer).__name__
            )
            if kind in ("Conv", "BatchNormalization"):
                assert nodes[layer.name] == kind
        first = next(layer for layer in model.layers if type(layer).__name__ == "Conv2D")
        kernel = found.initializers[f"{first.name}.weight"]
        assert np.array_equal(kernel, np.transpose(np.asarray(first.get_weights()[0]), (3, 2, 0, 1)))


@pytest.mark.slow
def test_each_library_reads_what_it_wrote(tmp_path: Path, libraries: dict[str, Any]) -> None:
    # hard_sigmoid is another function in Keras 3; a file of Keras 2 means its own.
    model = make(libraries["tf_keras"], "activations")
    model.save(tmp_path / "net.h5")
    found = load_model(tmp_path / "net.h5")
    assert found.source["framework"].startswith("tf-keras")
    assert "written by Keras 2" in found.history[-1].notes[0]
    other = libraries["keras"].models.load_model(tmp_path / "net.h5", compile=False)
    (x,) = rows(model, "activations")
    assert decibels(np.asarray(model(x)), np.asarray(other(x))) < 60
    # Where a file does not say who wrote it, Keras 3 is asked first, and its reason is kept.
    layers = libraries["tf_keras"].layers
    model = libraries["tf_keras"].Sequential(
        [libraries["tf_keras"].Input((8, 8, 3)), layers.DepthwiseConv2D(3)]
    )
    model.save(tmp_path / "groups.h5")
    with h5py.File(tmp_path / "groups.h5", "a") as file:
        config = json.loads(file.attrs["model_config"])
        assert "groups" in config["config"]["layers"][-1]["config"]
        del file.attrs["keras_version"]
    found = load_model(tmp_path / "groups.h5")
    agrees(found, model, "groups")
    assert found.source["framework"].startswith("tf-keras")
    assert "keras 3" in found.history[-1].notes[0]
    assert "groups" in found.history[-1].notes[0]


@pytest.mark.slow
def test_planted_code_never_runs(tmp_path: Path, libraries: dict[str, Any]) -> None:
    planted = tmp_path / "planted"
    source = f"lambda x: (open({str(planted)!r}, 'w').close(), x)[1]"
    for library, keras in libraries.items():
        for ending in (".h5", ".keras"):
            function = eval(source)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(function, output_shape=(4,))])
            path = tmp_path / f"{library}{ending}"
            model.save(path)
            planted.unlink(missing_ok=True)
            refuses(path, ModelError, "Lambda layer|bytecode")
            with pytest.raises(ModelError, match="dlas does not run"):
                import_model(path)
            assert not planted.exists()
            # The bait is real: Keras itself runs it when it is told to trust the file.
            trusting = keras.models.load_model(path, compile=False, safe_mode=False)
            trusting(np.zeros((1, 4), np.float32))
            assert planted.exists()


@pytest.mark.slow
def test_programs_with_side_effects_never_run(tmp_path: Path, libraries: dict[str, Any]) -> None:
    import tensorflow as tf

    planted = tmp_path / "planted"

    def touch(x: Any) -> Any:
        planted.write_text("x")
        return x

    def through_python(x: Any) -> Any:
        return tf.py_function(touch, [x], tf.float32)

    def through_numpy(x: Any) -> Any:
        return tf.numpy_function(touch, [x], tf.float32)

    def through_files(x: Any) -> Any:
        with tf.control_dependencies([tf.io.write_file(str(planted), "x")]):
            return tf.identity(x)

    for place, body in enumerate((through_python, through_numpy, through_files)):
        module = tf.Module()
        module.f = tf.function(body, input_signature=[tf.TensorSpec([None, 4])])
        folder = tmp_path / f"saved{place}"
        tf.saved_model.save(module, str(folder), signatures=module.f)
        refuses(folder, UnsupportedError, "PyFunc|WriteFile")
        with pytest.raises(UnsupportedError, match=r"PyFunc|WriteFile"):
            import_model(folder)
        assert not planted.exists()
        tf.saved_model.load(str(folder)).f(tf.zeros((1, 4)))
        assert planted.exists()  # the bait is real
        planted.unlink()


@pytest.mark.slow
def test_signatures(tmp_path: Path, libraries: dict[str, Any]) -> None:
    import tensorflow as tf

    module = tf.Module()
    spec = [tf.TensorSpec([None, 4], name="x")]
    module.positive = tf.function(tf.nn.relu, input_signature=spec)
    module.both = tf.function(lambda x: {"b": x + 1, "a": tf.nn.relu(x)}, input_signature=spec)
    functions = {"positive": module.positive, "both": module.both}
    tf.saved_model.save(module, str(tmp_path / "two"), signatures=functions)
    refuses(tmp_path / "two", UnsupportedError, r"2 signatures \(both, positive\)")
    refuses(tmp_path / "two", OptionError, "one of both, positive", signature="other")
    found = load_model(tmp_path / "two", signature="both")
    assert {s.name for s in found.outputs} == {"a", "b"}
    x = np.array([[-1, 0, 1, 2]], np.float32)
    with Reference(found) as reference:
        answer = reference.run({found.inputs[0].name: x})
    assert np.array_equal(answer["a"], np.maximum(x, 0))
    assert np.array_equal(answer["b"], x + 1)
    tf.saved_model.save(module, str(tmp_path / "one"), signatures={"positive": module.positive})
    assert "'positive'" in load_model(tmp_path / "one").history[-1].notes[0]


@pytest.mark.slow
def test_through_the_front_door(tmp_path: Path, libraries: dict[str, Any]) -> None:
    from dlas.core.worker import run_in_worker

    model = make(libraries["keras"], "two_ends")
    model.save(tmp_path / "net.keras")
    found = import_model(tmp_path / "net.keras")
    agrees(found, model, "two_ends")
    given = rows(model, "two_ends")
    answers = run_in_worker("dlas.runtime.native:answers", str(tmp_path / "net.keras"), given)
    for want, got in zip(model(given), answers, strict=True):
        assert decibels(np.asarray(want), got) >= 120


@pytest.mark.slow
def test_what_cannot_be_said_in_onnx(tmp_path: Path, libraries: dict[str, Any]) -> None:
    keras = libraries["keras"]
    loop = keras.Sequential([keras.Input((None, 5)), keras.layers.SimpleRNN(4)])
    loop.save(tmp_path / "loop.keras")
    refuses(tmp_path / "loop.keras", UnsupportedError, "control flow.*Loop")
