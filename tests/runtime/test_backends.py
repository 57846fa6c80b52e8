"""Every registered back end against the conformance suite, and what is particular to each."""

from __future__ import annotations

import functools

from dlas.runtime.backend import backends
from dlas.testing import models
from dlas.testing.backends import BackendSuite


class TestOnnxRuntime(BackendSuite):
    backend = "onnxruntime"

    def test_runner_is_the_bare_call(self, executable):
        runner = executable.runner({"image": models.images()})
        assert isinstance(runner, functools.partial)
        assert runner.func == executable._session.run


class TestOnnxRuntimeDisabled(BackendSuite):
    backend = "onnxruntime:level=disable"


class TestLiteRt(BackendSuite):
    backend = "litert"


class TestLiteRtBuiltin(BackendSuite):
    backend = "litert:kernels=builtin"


class TestLiteRtReference(BackendSuite):
    backend = "litert:kernels=reference"


class TestTvm(BackendSuite):
    backend = "tvm"


class TestTorch(BackendSuite):
    backend = "torch"


class TestTorchChannelsLast(BackendSuite):
    backend = "torch:mode=channels_last"


class TestOpenVino(BackendSuite):
    backend = "openvino"


def test_every_back_end_has_a_suite():
    suites = {c.backend.split(":")[0] for c in BackendSuite.__subclasses__()}
    assert set(backends.names()) <= suites
