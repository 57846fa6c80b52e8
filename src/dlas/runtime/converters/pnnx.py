"""pnnx: PyTorch to ncnn, by way of TorchScript."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.figure import Outcome
from dlas.core.files import scratch_folder
from dlas.core.options import option
from dlas.core.worker import WorkerFailure
from dlas.runtime.converter import TIMEOUT_S, SideConverter, converters, run_runner


@converters.register("pnnx")
class Pnnx(SideConverter):
    """pnnx in a side environment, given traced TorchScript; ncnn itself runs what it makes."""

    name = "pnnx"
    summary = "PyTorch to ncnn (.param and .bin) by pnnx, in a side environment"
    takes = (".torchscript",)
    gives = (".param",)
    needs = "torch"
    environment = "ncnn"
    runner = "pnnx.py"
    reports = ("pnnx", "ncnn", "numpy")
    companion = ".bin"

    @dataclass(frozen=True)
    class Options:
        """Options of the converter."""

        half: bool = option(False, "store weights as float16 (its own default)")

    def _sources(self) -> tuple[str, ...]:
        return (".th", ".pt", ".pth", ".pt2")

    def answers(
        self, path: Path, rows: np.ndarray, *, strict: bool = True, timeout_s: float = TIMEOUT_S
    ) -> np.ndarray:
        """What ncnn says to rows.

        Args:
            path: A ``.param`` file with its ``.bin`` beside it.
            rows: ``(N, C, H, W)`` float32.
            strict: Stop at the first return code that says no, as ncnn's own examples do not.
            timeout_s: Longest time.

        Returns:
            ``(N, ...)`` float32.

        Raises:
            WorkerFailure: ncnn cannot load the network (``unsupported``), or died (``crash``).
        """
        with scratch_folder() as scratch:
            np.save(scratch / "rows.npy", rows)
            order: Mapping[str, Any] = {
                "source": str(path.absolute()),
                "target": str(scratch / "answers.npy"),
                "rows": str(scratch / "rows.npy"),
                "reports": list(self.reports),
                "options": {"strict": strict},
            }
            done = run_runner(self.side.interpreter, "ncnn_run.py", order, scratch, timeout_s)
            if done.status is not Outcome.OK:
                raise WorkerFailure(done.status, done.reason, done.stderr_tail)
            return np.load(scratch / "answers.npy", allow_pickle=False)
