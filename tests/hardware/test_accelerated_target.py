"""Accelerators named as targets: their own options, a level and a clock beside them."""

from __future__ import annotations

import pytest

from dlas.core.errors import OptionError, UnknownNameError, UnsupportedError
from dlas.core.figure import Source
from dlas.hardware.target import measured_target, target_for
from dlas.kernels.extension import native
from dlas.runtime.backend import backend_for
from dlas.testing import models


def test_options_go_to_the_accelerator_and_level_and_clock_to_the_target() -> None:
    found = target_for("vm:units=2,mhz=150,level=rtl")
    assert found.accelerator is not None
    assert found.accelerator.spelled() == "vm:units=2"
    assert (found.options.mhz, found.options.level, found.isa) == (150.0, "rtl", "native")
    assert found.source == Source.SIMULATED
    assert found.memory_bytes > 0
    assert target_for("host").accelerator is None


@pytest.mark.parametrize(
    ("text", "error", "word"),
    [
        ("vmm", UnknownNameError, "'vm'"),
        ("vm:unitz=2", UnknownNameError, "units"),
        ("vm:units=3", OptionError, "1, 2, 4, 8"),
        ("vm:level=gates", OptionError, "tlm, rtl"),
        ("vm:mhz=0", OptionError, ">= 1"),
        ("host:mhz=100", UnknownNameError, "isa"),
    ],
)
def test_what_does_not_exist_is_told(text: str, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        target_for(text)


def test_nothing_is_timed_on_what_is_simulated() -> None:
    with pytest.raises(OptionError, match="dlas hw run"):
        measured_target("vm:units=4")
    assert measured_target("host").name == "host"


@pytest.mark.skipif(native() is None, reason="the native kernels were not built")
def test_only_the_engine_as_it_is_drives_one() -> None:
    model = models.residual_quantized()
    with pytest.raises(UnsupportedError, match="no driver for vm; the back end engine has"):
        backend_for("onnxruntime").compile(model, "vm")
    with pytest.raises(UnsupportedError, match="leave out the options"):
        backend_for("engine:policy=rules").compile(model, "vm")
    with pytest.raises(UnsupportedError, match="not quantised"):
        backend_for("engine").compile(models.residual(), "vm")
    with backend_for("engine").compile(model, "vm:mhz=50") as slow:
        inputs = {
            s.name: models.images(1)[: s.shape[0] if isinstance(s.shape[0], int) else 1] for s in model.inputs
        }
        slow.run(inputs)
        at_50 = slow.modelled()["accelerator_ms"].value
    with backend_for("engine").compile(model, "vm:mhz=100") as fast:
        fast.run(inputs)
        assert at_50 == pytest.approx(2 * fast.modelled()["accelerator_ms"].value)
