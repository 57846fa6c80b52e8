// The Python side of the native kernels.
#include <dlfcn.h>

#include <stdexcept>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "cpu.h"
#include "program.h"
#include "roofline.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Array = nb::ndarray<nb::device::cpu>;
using ReadOnly = nb::ndarray<nb::device::cpu, nb::ro>;
using Spec = std::tuple<std::vector<int64_t>, std::vector<int64_t>, std::string>;  // shape, strides in elements, dtype

DLDataType dtype_of(const std::string& name) {
  static const std::map<std::string, DLDataType> known = {
      {"float32", {2, 32, 1}}, {"float64", {2, 64, 1}}, {"float16", {2, 16, 1}}, {"int8", {0, 8, 1}},
      {"uint8", {1, 8, 1}},    {"int16", {0, 16, 1}},   {"uint16", {1, 16, 1}},  {"int32", {0, 32, 1}},
      {"uint32", {1, 32, 1}},  {"int64", {0, 64, 1}},   {"uint64", {1, 64, 1}},  {"bool", {6, 8, 1}}};
  auto found = known.find(name);
  if (found == known.end()) throw std::invalid_argument("dtype " + name + " is not known to the native kernels");
  return found->second;
}

template <class A>
dlas::Tensor tensor_of(const A& array, void* data) {
  std::vector<int64_t> shape, strides;
  for (size_t i = 0; i < array.ndim(); ++i) {
    shape.push_back(static_cast<int64_t>(array.shape(i)));
    strides.push_back(array.stride(i));
  }
  const auto dtype = array.dtype();
  return {shape, strides, {dtype.code, dtype.bits, dtype.lanes}, data};
}

// Keeps the constants of a node alive as long as the kernel that may point into them.
struct PyKernel {
  std::shared_ptr<dlas::Kernel> kernel;
  std::vector<ReadOnly> constants;
};

struct PyProgram {
  PyProgram(std::shared_ptr<dlas_ctx> ctx) : program(std::move(ctx)) {}
  dlas::Program program;
  std::vector<ReadOnly> constants;
  std::vector<nb::object> bound;
};

using Input = std::variant<ReadOnly, Spec, std::monostate>;

dlas_node make_node(const std::string& op, std::map<std::string, dlas::Attribute> attributes,
                    const std::vector<Input>& inputs, const std::vector<Spec>& outputs) {
  dlas_node node{op, std::move(attributes), {}, {}};
  for (auto& input : inputs) {
    if (auto* array = std::get_if<ReadOnly>(&input)) {
      node.inputs.push_back(tensor_of(*array, const_cast<void*>(array->data())));
    } else if (auto* spec = std::get_if<Spec>(&input)) {
      node.inputs.emplace_back(std::get<0>(*spec), std::get<1>(*spec), dtype_of(std::get<2>(*spec)), nullptr);
    } else {
      node.inputs.emplace_back();
      node.inputs.back().present = false;
    }
  }
  for (auto& spec : outputs)
    node.outputs.emplace_back(std::get<0>(spec), std::get<1>(spec), dtype_of(std::get<2>(spec)), nullptr);
  return node;
}

const dlas::Entry& entry_of(const std::string& isa, const std::string& op, const std::string& name) {
  const auto* entry = dlas::find_entry(isa, op, name);
  if (!entry) throw std::invalid_argument("there is no native kernel " + op + "=" + name + " for " + isa);
  return *entry;
}

PyKernel* make_kernel(std::shared_ptr<dlas_ctx> ctx, const std::string& isa, const std::string& op,
                      const std::string& name, std::map<std::string, dlas::Attribute> attributes,
                      const std::vector<Input>& inputs, const std::vector<Spec>& outputs) {
  auto made = std::make_unique<PyKernel>();
  for (auto& input : inputs)
    if (auto* array = std::get_if<ReadOnly>(&input)) made->constants.push_back(*array);
  made->kernel = std::make_shared<dlas::Kernel>(entry_of(isa, op, name), std::move(ctx),
                                                make_node(op, std::move(attributes), inputs, outputs));
  return made.release();
}

// Why a kernel cannot compute a node, or an empty string.
std::string refuses(const std::string& isa, const std::string& op, const std::string& name,
                    std::map<std::string, dlas::Attribute> attributes, const std::vector<Input>& inputs,
                    const std::vector<Spec>& outputs) {
  const dlas_node node = make_node(op, std::move(attributes), inputs, outputs);
  dlas::take_failure();
  if (entry_of(isa, op, name).impl.supports(&node)) return "";
  const std::string reason = dlas::take_failure();
  return reason.empty() ? "it does not support this node" : reason;
}

void run_kernel(const PyKernel& self, std::vector<std::optional<ReadOnly>> inputs, std::vector<Array> outputs) {
  std::vector<dlas::Tensor> in, out;
  for (auto& array : inputs) {
    in.push_back(array ? tensor_of(*array, const_cast<void*>(array->data())) : dlas::Tensor());
    in.back().present = array.has_value();
  }
  for (auto& array : outputs) out.push_back(tensor_of(array, array.data()));
  std::vector<const DLTensor*> ins;
  std::vector<DLTensor*> outs;
  for (auto& t : in) ins.push_back(t.present ? &t.view : nullptr);
  for (auto& t : out) outs.push_back(&t.view);
  const size_t bytes = self.kernel->workspace();
  std::unique_ptr<char[]> memory(new char[bytes + 64]);
  void* scratch = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t{63});
  nb::gil_scoped_release release;
  dlas::FlushDenormals flush;
  self.kernel->run(ins.data(), static_cast<int>(ins.size()), outs.data(), static_cast<int>(outs.size()), scratch);
}

void load_plugin(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw std::runtime_error(dlerror());
  using Entry = int (*)(const dlas_api*, int);
  auto entry = reinterpret_cast<Entry>(dlsym(library, "dlas_register"));
  if (!entry) throw std::runtime_error("it exports no function dlas_register");
  const int theirs = entry(&dlas::api(), DLAS_ABI);
  if (theirs != 0)
    throw std::runtime_error("it was built for ABI " + std::to_string(theirs) + ", this dlas has ABI " +
                             std::to_string(DLAS_ABI));
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // a program may own a function whose module owns the program until the end
  m.attr("ABI") = DLAS_ABI;
  m.def("isa_levels", &dlas::isa_levels, "Instruction sets that were built and that this processor has, best first");
  m.def("kernels", [] {
    std::vector<std::tuple<std::string, std::string, std::string>> found;
    for (const auto& e : dlas::entries()) found.emplace_back(e.isa, e.impl.op, e.impl.name);
    return found;
  });
  m.def("refuses", &refuses, "isa"_a, "op"_a, "name"_a, "attributes"_a, "inputs"_a, "outputs"_a);
  m.def("load_plugin", &load_plugin, "path"_a);
  m.def("read_bandwidth", &dlas::read_bandwidth, "isa"_a, "threads"_a, "seconds"_a, "bytes"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("roofline", &dlas::roofline, "isa"_a, "threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<dlas_ctx>(m, "Context").def(nb::init<int>(), "threads"_a).def_prop_ro("threads", [](const dlas_ctx& c) {
    return c.pool.threads();
  });

  nb::class_<PyKernel>(m, "Kernel")
      .def("__init__",
           [](PyKernel* self, std::shared_ptr<dlas_ctx> ctx, const std::string& isa, const std::string& op,
              const std::string& name, std::map<std::string, dlas::Attribute> attributes,
              const std::vector<Input>& inputs, const std::vector<Spec>& outputs) {
             std::unique_ptr<PyKernel> made(
                 make_kernel(std::move(ctx), isa, op, name, std::move(attributes), inputs, outputs));
             new (self) PyKernel(std::move(*made));
           },
           "context"_a, "isa"_a, "op"_a, "name"_a, "attributes"_a, "inputs"_a, "outputs"_a)
      .def_prop_ro("workspace", [](const PyKernel& k) { return k.kernel->workspace(); })
      .def("run", &run_kernel, "inputs"_a, "outputs"_a);

  nb::enum_<dlas::Place>(m, "Place")
      .value("arena", dlas::Place::arena)
      .value("constant", dlas::Place::constant)
      .value("input", dlas::Place::input)
      .value("output", dlas::Place::output);

  nb::class_<PyProgram>(m, "Program", nb::is_weak_referenceable())
      .def(nb::init<std::shared_ptr<dlas_ctx>>(), "context"_a)
      .def("value",
           [](PyProgram& p, dlas::Place place, int index, int64_t offset, Spec spec) {
             return p.program.value(place, index, offset, std::get<0>(spec), std::get<1>(spec),
                                    dtype_of(std::get<2>(spec)), nullptr);
           },
           "place"_a, "index"_a, "offset"_a, "spec"_a)
      .def("constant",
           [](PyProgram& p, ReadOnly array) {
             p.constants.push_back(array);
             auto t = tensor_of(array, nullptr);
             return p.program.value(dlas::Place::constant, 0, 0, t.shape, t.strides, t.view.dtype,
                                    const_cast<void*>(array.data()));
           },
           "array"_a)
      .def("step",
           [](PyProgram& p, const PyKernel& kernel, std::vector<int> in, std::vector<int> out, int64_t scratch) {
             for (const auto& array : kernel.constants) p.constants.push_back(array);
             p.program.step(kernel.kernel, std::move(in), std::move(out), scratch);
           },
           "kernel"_a, "inputs"_a, "outputs"_a, "scratch"_a)
      .def("call",
           [](PyProgram& p, nb::callable call) {
             p.bound.push_back(call);
             PyObject* raw = call.ptr();  // borrowed: `bound` keeps it
             p.program.call([raw] {
               nb::gil_scoped_acquire hold;
               const nb::handle function(raw);
               function();
             });
           },
           "call"_a)
      .def("halo",
           [](PyProgram& p, int value, int top, int left, int bottom, int right, int byte) {
             p.program.halo(value, top, left, bottom, right, byte);
           },
           "value"_a, "top"_a, "left"_a, "bottom"_a, "right"_a, "byte"_a)
      .def("allocate", [](PyProgram& p, size_t bytes) { p.program.allocate(bytes); }, "bytes"_a)
      .def("bind_input",
           [](PyProgram& p, int index, ReadOnly array) {
             p.program.bind(dlas::Place::input, index, const_cast<void*>(array.data()));
           },
           "index"_a, "array"_a, "The caller keeps the array alive while the program runs.")
      .def("bind_output",
           [](PyProgram& p, int index, Array array) { p.program.bind(dlas::Place::output, index, array.data()); },
           "index"_a, "array"_a)
      .def("view",
           [](PyProgram& p, int value) {
             const DLTensor& t = p.program.at(value).view;
             std::vector<size_t> shape(t.shape, t.shape + t.ndim);
             return nb::ndarray<nb::numpy>(t.data, shape.size(), shape.data(), nb::find(p), t.strides,
                                           nb::dlpack::dtype{t.dtype.code, t.dtype.bits, t.dtype.lanes});
           },
           "value"_a, "The value's memory as an array; valid after `allocate` and as long as what is bound")
      .def("run", [](PyProgram& p) { p.program.run(); }, nb::call_guard<nb::gil_scoped_release>())
      .def("run_timed",
           [](PyProgram& p) {
             std::vector<int64_t> nanoseconds;
             {
               nb::gil_scoped_release release;
               p.program.run_timed(nanoseconds);
             }
             return nanoseconds;
           })
      .def_prop_ro("steps", [](const PyProgram& p) { return p.program.steps(); });
}
