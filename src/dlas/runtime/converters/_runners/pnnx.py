"""TorchScript to ncnn by pnnx, an executable."""

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any


def convert(order: dict[str, Any]) -> None:
    """Carry out an order; the shapes of the inputs are in a file beside the source."""
    source, target = Path(order["source"]), Path(order["target"])
    shapes = json.loads(source.with_suffix(".json").read_text())
    spelled = ",".join("[" + ",".join(map(str, shape)) + "]" for shape in shapes)
    found = importlib.util.find_spec("pnnx")
    assert found is not None
    assert found.origin is not None
    command = [str(Path(found.origin).with_name("pnnx")), str(source), f"inputshape={spelled}"]
    made = source.with_suffix("")
    half = "1" if order["options"]["half"] else "0"
    subprocess.run([*command, f"fp16={half}"], check=True, cwd=source.parent)
    shutil.move(f"{made}.ncnn.bin", target.with_suffix(".bin"))
    shutil.move(f"{made}.ncnn.param", target)
