"""Layers of one's own: fifteen lines of Python, or one C++ file."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from networks import relative_error, residual, right_answers

from dlas import api
from dlas.core.errors import DlasError, UnsupportedError
from dlas.core.options import Choice
from dlas.kernels.extension import missing_native
from dlas.kernels.kernel import Kernel, PythonLayer, kernels
from dlas.kernels.plugins import include_folder, load_plugin
from dlas.runtime.backend import backend_for

pytestmark = pytest.mark.skipif(bool(missing_native()), reason="the native kernels were not built")

SOURCE = r"""
#include <dlas_layer.h>
static const dlas_api* host;
struct State { const dlas_ctx* ctx; };
static int supports(const dlas_node* node) {
  const DLTensor* b = host->input(node, 1);
  int64_t turned = 0;
  host->get_int(node, "transB", &turned);
  if (!b || !b->data || !turned) { host->fail("slow-gemm wants a constant, turned matrix"); return 0; }
  return 1;
}
static void* prepare(const dlas_node*, const dlas_ctx* ctx) { return new State{ctx}; }
static size_t workspace(void*) { return 0; }
struct Job { const DLTensor* const* in; DLTensor* out; };
static void row(void* arg, int64_t n, int) {
  auto* job = static_cast<Job*>(arg);
  const int64_t rows = job->out->shape[0], columns = job->out->shape[1], depth = job->in[0]->shape[1];
  const float *a = static_cast<float*>(job->in[0]->data), *b = static_cast<float*>(job->in[1]->data);
  const float* c = static_cast<float*>(job->in[2]->data);
  for (int64_t m = 0; m < rows; ++m) {
    float sum = c[n];
    for (int64_t k = 0; k < depth; ++k) sum += a[m * depth + k] * b[n * depth + k];
    static_cast<float*>(job->out->data)[m * columns + n] = sum;
  }
}
static int run(void* state, const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
  Job job{in, out[0]};
  host->parallel_for(static_cast<State*>(state)->ctx, out[0]->shape[1], row, &job);
  return 0;
}
static void destroy(void* state) { delete static_cast<State*>(state); }
extern "C" int dlas_register(const dlas_api* api, int abi) {
  if (abi != ABI) return ABI;
  host = api;
  static const dlas_impl impl = {"Gemm", "NAME", supports, prepare, workspace, run, destroy};
  api->add(&impl);
  return 0;
}
"""


def built(folder, name: str, abi: str = "DLAS_ABI"):
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    (folder / f"{name}.cpp").write_text(
        SOURCE.replace("NAME", name).replace("ABI)", f"{abi})").replace("return ABI", f"return {abi}")
    )
    library = folder / f"{name}.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O2",
        f"-I{include_folder()}",
        str(folder / f"{name}.cpp"),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True, timeout=120)
    return library


def test_a_layer_in_cpp(tmp_path):
    library = built(tmp_path, "slow-gemm")
    choice = Choice.of("engine", policy="fixed", impl="Gemm=slow-gemm", plugin=str(library))
    with backend_for("engine:policy=rules").compile(residual()) as plain:
        inputs = plain.signature.random_inputs()
    with pytest.raises(DlasError, match="slow-gemm"):
        backend_for(Choice.of("engine", policy="fixed", impl="Gemm=slow-gemm")).compile(residual())
    with backend_for(choice).compile(residual(), threads=2) as executable:
        assert "slow-gemm" in {step.impl for step in executable.steps}
        assert relative_error(executable.run(inputs)["y"], right_answers(residual(), inputs)["y"]) < 2e-5


def test_a_plugin_of_another_interface_is_refused_with_both_numbers(tmp_path):
    with pytest.raises(UnsupportedError, match=r"ABI 7.*ABI 1"):
        load_plugin(built(tmp_path, "newer-gemm", "7"))


def test_what_is_no_plugin_is_refused(tmp_path):
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(UnsupportedError, match="no plug-in"):
        load_plugin(tmp_path / "text.so")
    with pytest.raises(DlasError, match="not a file"):
        load_plugin(tmp_path / "nowhere.so")


def test_a_layer_in_python():
    class Layer(PythonLayer):
        def run(self, inputs, outputs, scratch):
            outputs[0][...] = inputs[0] @ inputs[1].T + inputs[2]

    class NumpyGemm(Kernel):
        name, ops, summary = "numpy-gemm", ("Gemm",), "a dense layer in NumPy"

        def prepare(self, node, inputs, outputs, context):
            return Layer()

    kernels.register("numpy-gemm")(NumpyGemm)
    try:
        _, rows = api.optimize(residual(), policy="rules", impl=["Gemm=numpy-gemm"])
        assert ("dense", "Gemm", "numpy-gemm", "plain to plain") in rows
        with backend_for(Choice.of("engine", policy="rules", impl="Gemm=numpy-gemm")).compile(
            residual()
        ) as executable:
            inputs = executable.signature.random_inputs()
            for _ in range(3):
                found = executable.run(inputs)["y"]
        assert relative_error(found, right_answers(residual(), inputs)["y"]) < 2e-5
        assert np.isfinite(found).all()
    finally:
        kernels._members.pop("numpy-gemm")
