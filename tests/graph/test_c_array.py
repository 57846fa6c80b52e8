"""Networks as C arrays: what compilers make of them, what hostile names become, what is read and what is refused."""

from __future__ import annotations

import errno
import random
import re
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlas.core import files
from dlas.core.errors import DlasError, ModelError, StorageError
from dlas.graph.format import load_model, save_model
from dlas.graph.formats._c_source import byte_arrays
from dlas.graph.formats.c_array import flatbuffer
from dlas.graph.formats.tflite import to_bytes
from dlas.graph.formats.tflite.flat import parse
from dlas.graph.formats.tflite.memory import ALIGNMENT, MICRO, arena_bytes
from dlas.graph.model import Step
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.reference import predict
from dlas.testing.formats import FormatSuite
from dlas.testing.models import images, residual, residual_nhwc, residual_quantized

pytest.importorskip("ai_edge_litert.interpreter")
HOSTILE = "*/ int main(){} /* `|<script>alert(1)</script>\n# x\\\n??/ \u202e\x1b[31m\u0000 é"
COMPILERS = {
    "c99": ["gcc", "-std=c99", "-x", "c"],
    "c11": ["gcc", "-std=c11", "-x", "c"],
    "c++98": ["g++", "-std=c++98", "-x", "c++"],
    "c++17": ["g++", "-std=c++17", "-x", "c++"],
}
STRICT = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Wshadow", "-Wundef"]


class TestCArray(FormatSuite):
    format = "c-array"


def compiled(folder: Path, standard: str, name: str, ending: str = ".c") -> bytes:
    """What a program linked with the array writes, after checking its alignment through the header."""
    command = COMPILERS[standard]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    (folder / "main.inc").write_text(
        f'#include <stdio.h>\n#include "net.h"\n'
        f"int main(void) {{ return ((size_t){name} % 16) || "
        f"sizeof({name}) != {name}_len || fwrite({name}, 1, {name}_len, stdout) != {name}_len; }}\n"
    )
    program = folder / f"program-{standard}"
    subprocess.run(
        [*command, *STRICT, f"net{ending}", "main.inc", "-o", str(program)],
        cwd=folder,
        check=True,
        timeout=60,
    )
    return subprocess.run([str(program)], check=True, capture_output=True, timeout=60).stdout


@pytest.mark.parametrize("standard", COMPILERS)
def test_compilers_see_the_same_bytes(standard: str, tmp_path: Path) -> None:
    model = residual_quantized()
    save_model(model, tmp_path / "net.c")
    assert compiled(tmp_path, standard, "residual_int8_model") == to_bytes(model)[0]


def test_cc_is_the_same(tmp_path: Path) -> None:
    save_model(residual(), tmp_path / "net.cc")
    assert compiled(tmp_path, "c++17", "residual_model", ".cc") == flatbuffer(tmp_path / "net.cc")


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    model = replace(
        residual(),
        name=HOSTILE,
        source={"format": HOSTILE, "path": HOSTILE},
        history=(Step(HOSTILE, {HOSTILE: HOSTILE}),),
        preprocessing=Preprocessing(12, 12, mean=(0.5,)),
    )
    graph = model.editable()
    graph.graph.inputs[0].name = HOSTILE
    model = replace(model, ir=graph)
    save_model(model, tmp_path / "net.c")
    (name,) = re.findall(r"unsigned char (\w+)\[", (tmp_path / "net.h").read_text())
    assert re.fullmatch(r"[a-z][a-z0-9_]{0,60}", name)
    assert compiled(tmp_path, "c99", name) == flatbuffer(tmp_path / "net.c")
    for file in tmp_path.glob("net.*"):
        text = file.read_bytes()
        assert re.fullmatch(rb"[\n\x20-\x7e]*", text)
        assert b"<script" not in text or file.suffix == ".md"
    page = (tmp_path / "net.README.md").read_text()
    assert page.count("```") % 2 == 0
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.S)
    assert not re.search(r"[<>`*]", prose.replace("**This", "").replace("is:**", ""))
    assert [h for h in page.splitlines() if h.startswith("# ")] == [page.splitlines()[0]]


def test_the_page_says_what_is_needed(tmp_path: Path) -> None:
    told = replace(
        residual(),
        preprocessing=Preprocessing(12, 12, resize=16, scale=1 / 255, mean=(0.5,), std=(0.25,)),
        history=(Step("magnitude", {"sparsity": 0.5}),),
    )
    written = save_model(told, tmp_path / "net.c")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.README.md", "net.c", "net.h"]
    assert any("net.h" in note for note in written.notes)
    page = (tmp_path / "net.README.md").read_text()
    network = parse(flatbuffer(written.path), "net")
    adds = re.findall(r"resolver\.(Add\w+)\(\);", page)
    assert adds == [MICRO[kind] for kind in sorted({op.kind for op in network.operations})]
    assert f"MicroMutableOpResolver<{len(adds)}>" in page
    assert "| input 0 | `image` | 1x12x12x3 | float32 |" in page
    assert f"| flash: the array | {len(flatbuffer(written.path))} | measured |" in page
    assert f"| {arena_bytes(network)} | estimated |" in page
    for words in ("short side to 16", "12 x 12", "magnitude (sparsity=0.5)", '#include "net.h"', "mean 0.5"):
        assert words in page


def test_scales_are_in_the_page(tmp_path: Path) -> None:
    from dlas.compress.method import compress_model
    from dlas.data.dataset import Dataset

    small = compress_model(residual(), "int8:io=int8", Dataset("tiny", images(16), np.zeros(16, np.int64)))
    save_model(small, tmp_path / "net.c")
    tensor = parse(flatbuffer(tmp_path / "net.c"), "net").tensors[0]
    assert tensor.quant is not None
    row = f"| int8 | {float(tensor.quant.scale[0]):.9g} | {int(tensor.quant.zero_point[0])} |"
    assert row in (tmp_path / "net.README.md").read_text()


def test_what_micro_cannot_run_is_said(tmp_path: Path) -> None:
    from dlas.compress.method import compress_model

    written = save_model(compress_model(residual(), "dynamic-int8:min_elements=0"), tmp_path / "net.c")
    assert any("int8 weights with float activations" in note for note in written.notes)
    assert "does not run there" in (tmp_path / "net.README.md").read_text()
    assert not any("Micro" in n for n in save_model(residual_quantized(), tmp_path / "other.c").notes)


def test_arena_of_a_chain_and_of_a_branch() -> None:
    network = parse(to_bytes(residual())[0], "net")
    sizes = {
        i: -(-int(np.prod(network.tensors[i].shape)) * 4 // ALIGNMENT) * ALIGNMENT
        for op in network.operations
        for i in op.outputs
    }
    least = 0  # what is alive at the worst moment can never be undercut
    for step, op in enumerate(network.operations):
        later = {i for other in network.operations[step + 1 :] for i in other.inputs} | set(network.outputs)
        made = {i for other in network.operations[:step] for i in other.outputs} | set(network.inputs)
        alive = {i for i in made if i in later or i in op.inputs} | set(op.outputs)
        least = max(least, sum(sizes.get(i, 12 * 12 * 3 * 4) for i in alive))
    found = arena_bytes(network)
    assert least <= found <= least * 1.3
    assert found < sum(sizes.values())


def test_other_peoples_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "net.h").write_text("/* mine */\n")
    with pytest.raises(DlasError, match="not written by dlas"):
        save_model(residual(), tmp_path / "net.c")
    assert [p.name for p in tmp_path.iterdir()] == ["net.h"]
    (tmp_path / "net.h").unlink()
    (tmp_path / "net.README.md").mkdir()
    with pytest.raises(DlasError, match="folder"):
        save_model(residual(), tmp_path / "net.c")
    assert [p.name for p in tmp_path.iterdir()] == ["net.README.md"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(residual(), tmp_path / "net.c")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(self: Path, *args: object, **kwargs: object) -> int:
        if self.suffix == ".c":
            raise OSError(28, "No space left on device")
        return original(self, *args, **kwargs)  # type: ignore[arg-type]

    original = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DlasError, match="No space left"):
        save_model(residual_nhwc(), tmp_path / "net.c")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# Reading


@pytest.fixture(scope="module")
def data() -> bytes:
    return to_bytes(residual_nhwc())[0]


def listed(data: bytes, element: str = "0x{:02x}", separator: str = ", ") -> str:
    return separator.join(element.format(b) for b in data)


def signed(data: bytes) -> str:
    return ",".join(str(b - 256 if b > 127 else b) for b in data)


STYLES = {
    "xxd": lambda d: f"unsigned char net_tflite[] = {{\n  {listed(d)}\n}};\nunsigned int net_tflite_len = {len(d)};\n",
    "tflm": lambda d: (
        '#include "model.h"\n// {0x00} "not this\n#ifdef __has_attribute\n#define HAS(x) __has_attribute(x)\n#endif\n'
        f"alignas(16) const unsigned char g_model[] = {{{listed(d, '0x{:02X}', ',')},}};\n"
        f"const int g_model_len = {len(d)};"
    ),
    "attributes": lambda d: (
        'extern "C" {\nnamespace tiny {\n/* a { brace } */\nstatic const uint8_t g[kSize] __attribute__((aligned(4))) '
        f"= {{ {listed(d, '{}')} }};\n}}}}\n"
    ),
    "signed": lambda d: f"const int8_t g[{len(d)}] DATA_ALIGN = {{{signed(d)}}};",
    "suffixes": lambda d: f"const std::uint8_t g[] = {{{listed(d, '{:#04x}u')}}};",
    "octal": lambda d: f"const char g[] = {{{listed(d, '0{:o}')}}};",
    "commented": lambda d: f"const unsigned char g[] = {{\n// head\n{listed(d[:8])}, /* rest */\n{listed(d[8:])}}};",
    "others": lambda d: f"const char a[] = {{1,2,3}}; int b[] = {{1}}; const unsigned char g[] = {{{listed(d)}}};",
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
def test_any_style_of_array_is_read(style: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "given.cc"
    path.write_text(STYLES[style](data))
    assert flatbuffer(path) == data
    x = images(2, nhwc=True)
    found = [predict(load_model(path), row[None]) for row in x]
    assert np.allclose(np.concatenate(found), predict(residual_nhwc(), x), atol=1e-4)


def test_several_networks_want_a_name(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "two.c"
    path.write_text(f"char one[] = {{{listed(data)}}}; char two[] = {{{listed(data)}}};")
    with pytest.raises(ModelError, match=r"several networks: one, two \(name one: array=NAME"):
        load_model(path)
    assert load_model(path, array="two").history[-1].options["array"] == "two"
    with pytest.raises(ModelError, match="called 'three'"):
        load_model(path, array="three")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda d: f"unsigned char g[] = {{{listed(d)}", "not closed"),
        (lambda d: f"unsigned char g[] = {{{listed(d)}, 256}};", "256 is not a byte"),
        (lambda d: f"unsigned char g[] = {{{listed(d)}, -129}};", "-129 is not a byte"),
        (lambda d: f"unsigned char g[] = {{{listed(d)}, system()}};", "'system\\(\\)' is not a byte"),
        (lambda d: f"unsigned char g[] = {{{listed(d)}, 099}};", "099 is not a byte"),
        (lambda d: f"unsigned char g[] = {{{listed(d)},, 1}};", "'' is not a byte"),
        (lambda d: f"unsigned char g[9] = {{{listed(d)}}};", "declares 9 bytes"),
        (lambda d: f"char g[] = {{{listed(d)}}}; int g_len = 7;", "given as 7"),
        (lambda d: f"char g[] = {{{listed(d[:900])}}};", "truncated or damaged"),
        (lambda d: f"float g[] = {{{listed(d)}}};", "no TensorFlow Lite network"),
        (lambda d: f"/* char g[] = {{{listed(d)}}};", "no TensorFlow Lite network"),
        (lambda d: f'const char* s = "char g[] = {{{listed(d)}}};";', "no TensorFlow Lite network"),
        (lambda d: "{" * 5000, "more than 1000 braces"),
        (lambda d: "char g[] = {1, 2, 3};", "arrays of bytes in it: g"),
    ],
)
def test_refusals(text, message: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.c"
    path.write_text(text(data))
    with pytest.raises(ModelError, match=message):
        load_model(path)


def test_large_and_binary_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bad.c"
    path.write_bytes(b"char g[] = {\0};")
    with pytest.raises(ModelError, match="holds no c-array network"):
        load_model(path)
    monkeypatch.setattr("dlas.graph.formats.c_array.MAX_BYTES", 100)
    path.write_text("// " + "x" * 200)
    with pytest.raises(ModelError, match="100 are read at most"):
        load_model(path)


@pytest.mark.parametrize(
    "unit", ["a", "/*", '"', "'", "[", "{", "a[", "=", "\\\n", "#", "char a[]=", "(", "0x1,"]
)
def test_no_text_is_slow(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "slow.c"
    path.write_text(unit * (400_000 // len(unit)) + " char g[] = {1};")
    with pytest.raises(ModelError):
        load_model(path)


def test_damaged_sources_raise_nothing_but_our_errors(data: bytes, tmp_path: Path) -> None:
    source = STYLES["xxd"](data).encode()
    rng, path, refused = random.Random(3), tmp_path / "broken.c", 0
    for _ in range(120):
        broken = bytearray(source)
        for _ in range(rng.choice([1, 3, 20])):
            spot = rng.randrange(len(broken))
            broken[spot : spot + rng.choice([0, 1, 9])] = rng.choice(
                [b"", b"}", b"{", b"ff", b",", b"*/", b"\xff"]
            )
        path.write_bytes(broken)
        try:
            load_model(path)
        except DlasError:
            refused += 1
    assert refused > 60


def test_a_full_disk_leaves_no_file_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sync, done = residual(), files.sync, []

    def full_at_the_second(path: Path) -> None:
        done.append(path)
        if len(done) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        sync(path)

    monkeypatch.setattr(files, "sync", full_at_the_second)
    with pytest.raises(StorageError, match="No space"):
        save_model(model, tmp_path / "net.c")
    assert list(tmp_path.iterdir()) == []


def test_declarations_are_found_without_trying_every_place() -> None:
    text = b"unsigned char first[2][1] __attribute__((aligned(16))) = {1, 2};\n" + b"".join(
        (b"a[] " * 250)[:996] + b"{;};" for _ in range(200)
    )
    started = time.process_time()
    found = byte_arrays(text + b"const char last[N == 3 ? 1 : 2] = {3};", "x.c")
    assert time.process_time() - started < 2  # quadratic: a minute
    assert [(a.name, a.size) for a in found] == [("first", 2), ("last", None)]
