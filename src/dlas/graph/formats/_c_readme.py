"""The page that stands beside a network in C: what it is, what it wants and gives, and how to run it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dlas.graph.formats._c_source import MARK
from dlas.graph.formats.tflite.flat import Network
from dlas.graph.formats.tflite.memory import MICRO, arena_bytes, micro_refusals, operators
from dlas.graph.formats.tflite.tensors import Tensor
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing

_SPARE = 8192  # bytes beyond the tensors that the example starts with


def readme(model: Model, network: Network, name: str, stem: str, size: int, notes: Sequence[str]) -> str:
    """Markdown for a written network.

    Args:
        model: What was written.
        network: The tflite file inside the array.
        name: Identifier of the array.
        stem: File name of the C source without its ending.
        size: Bytes of the flatbuffer.
        notes: What could not be kept.
    """
    parts = [
        f"# {plain(model.name)}",
        f"{MARK} A TensorFlow Lite network as a C array for microcontrollers.",
        *_origin(model, notes),
        "## Inputs and outputs",
        _tensors(network),
        "A stored integer `q` stands for `scale * (q - zero_point)`.",
        "## Preprocessing",
        _preprocessing(model.preprocessing),
        "## Operators",
        *_operators(network),
        "## Memory",
        _memory(network, size),
        "## Use",
        _example(network, name, stem),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Text without anything that Markdown, HTML or a terminal would take for more than text."""
    return re.sub(r"[^A-Za-z0-9 .,:;()+=/@%-]", "_", text)[:200]


def _code(text: str) -> str:
    """Text as a code span within a table."""
    return "`" + re.sub(r"[^\x20-\x7e]|[`|\\]", "_", text)[:120].strip() + "`" if text.strip() else "`_`"


def _origin(model: Model, notes: Sequence[str]) -> list[str]:
    lines = []
    source = dict(model.source)
    if source.get("format"):
        path = f" file {_code(source['path'])}" if source.get("path") else ""
        lines.append(f"- From: {plain(source['format'])}{path}")
    for step in model.history:
        options = ", ".join(f"{k}={v}" for k, v in step.options.items())
        lines.append(f"- Step: {plain(step.action)}" + (f" ({plain(options)})" if options else ""))
    lines += [f"- Note: {plain(note)}" for note in notes]
    return ["\n".join(lines)] if lines else []


def _tensors(network: Network) -> str:
    rows = ["| | name | shape | dtype | scale | zero point |", "| --- | --- | --- | --- | --- | --- |"]
    for what, indices in (("input", network.inputs), ("output", network.outputs)):
        for place, i in enumerate(indices):
            rows.append(_row(f"{what} {place}", network.tensors[i]))
    return "\n".join(rows)


def _row(what: str, tensor: Tensor) -> str:
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    quant = tensor.quant
    scale, zero = (
        ("", "") if quant is None else (f"{float(quant.scale[0]):.9g}", str(int(quant.zero_point[0])))
    )
    return f"| {what} | {_code(tensor.name)} | {shape} | {tensor.dtype} | {scale} | {zero} |"


def _preprocessing(found: Preprocessing | None) -> str:
    if found is None:
        return "Not known: feed what the network was trained on."
    steps = []
    if found.features:
        steps.append(
            f"{found.height} frames of {found.width} {found.features} features from recordings of "
            f"{found.sample_rate} samples per second, by the formulas of dlas.data.audio.features"
        )
    elif found.height:
        if found.resize:
            how = "both sides" if found.squash else "the short side"
            steps.append(f"resize {how} to {found.resize} pixels")
            steps.append(f"crop the centre to {found.height} x {found.width} pixels (height x width)")
        else:
            steps.append(f"resize to {found.height} x {found.width} pixels (height x width)")
        steps.append({"L": "one channel, luminance", "RGB": "colours in the order red, green, blue"}.get(
            found.colour, "colours in the order blue, green, red"))  # fmt: skip
    if (found.scale, found.mean, found.std) != (1.0, (0.0,), (1.0,)):
        mean, std = (", ".join(f"{v:.9g}" for v in values) for values in (found.mean, found.std))
        steps.append(f"`value = (sample * {found.scale:.9g} - mean) / std`, with mean {mean} and std {std}")
    if found.dtype in ("int8", "uint8"):
        zero = f"{'-' if found.quant_zero_point < 0 else '+'} {abs(found.quant_zero_point)}"
        steps.append(f"`q = round(value / {found.quant_scale:.9g}) {zero}`, kept within {found.dtype}")
    if found.features:
        steps.append("one frame after the other, its features together")
    elif found.height:
        steps.append("one pixel after the other, its channels together (NHWC)")
    return "\n".join(
        f"{n}. {step}" for n, step in enumerate(steps or ["none: pass the samples as they are"], 1)
    )


def _operators(network: Network) -> list[str]:
    kinds = operators(network)
    listed = ", ".join(f"{plain(kind)} ({count})" for kind, count in kinds.items())
    known = [kind for kind in kinds if kind in MICRO]
    lines = [f"static tflite::MicroMutableOpResolver<{max(len(known), 1)}> resolver;"]
    lines += [f"resolver.{MICRO[kind]}();" for kind in known]
    refusals = [f"- {plain(reason)}" for reason in micro_refusals(network)]
    warning = ["**This network does not run there as it is:**", "\n".join(refusals)] if refusals else []
    return [listed, "With TensorFlow Lite Micro:", "```cpp\n" + "\n".join(lines) + "\n```", *warning]


def _memory(network: Network, size: int) -> str:
    arena = arena_bytes(network)
    return "\n".join(
        [
            "| what | bytes | source |",
            "| --- | --- | --- |",
            f"| flash: the array | {size} | measured |",
            f"| RAM: computed tensors in the arena | {arena} | estimated |",
            "",
            "The estimate lets tensors that are not needed at once share memory. Scratch buffers of the kernels and",
            "the bookkeeping of the interpreter come on top; the code of the kernels comes on top of the flash.",
        ]
    )


def _example(network: Network, name: str, stem: str) -> str:
    first, last = network.tensors[network.inputs[0]], network.tensors[network.outputs[0]]
    member = {"int8": "int8", "uint8": "uint8", "float32": "f", "int32": "i32", "int64": "i64", "bool": "b"}
    fields = [member.get(t.dtype, "raw") for t in (first, last)]
    arena = -(-(arena_bytes(network) + _SPARE) // 1024) * 1024
    header = re.sub(r"[^A-Za-z0-9._-]", "_", stem) + ".h"
    return f"""\
```cpp
#include "{header}"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

constexpr int kArenaSize = {arena};  // raise it until AllocateTensors succeeds
alignas(16) static uint8_t arena[kArenaSize];

int run() {{
  const tflite::Model* model = tflite::GetModel({name});
  // the resolver with the operators above
  static tflite::MicroInterpreter interpreter(model, resolver, arena, kArenaSize);
  if (interpreter.AllocateTensors() != kTfLiteOk) return 1;
  TfLiteTensor* input = interpreter.input(0);   // fill input->data.{fields[0]}
  if (interpreter.Invoke() != kTfLiteOk) return 1;
  TfLiteTensor* output = interpreter.output(0); // read output->data.{fields[1]}
  return 0;
}}
```"""
