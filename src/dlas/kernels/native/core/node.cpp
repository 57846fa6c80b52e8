#include "node.h"

#include <algorithm>

#include "cpu.h"

namespace dlas {

Tensor::Tensor(std::vector<int64_t> s, std::vector<int64_t> t, DLDataType dtype, void* data)
    : shape(std::move(s)), strides(std::move(t)) {
  view.data = data;
  view.device = {1, 0};
  view.dtype = dtype;
  view.ndim = static_cast<int32_t>(shape.size());
  view.shape = shape.data();
  view.strides = strides.data();
}

Tensor& Tensor::operator=(const Tensor& other) {
  shape = other.shape;
  strides = other.strides;
  view = other.view;
  present = other.present;
  view.shape = shape.data();
  view.strides = strides.data();
  return *this;
}

namespace {

struct Noted {
  const char* isa;
  Enter::Make make;
  const char *op, *name;
};

std::vector<Noted>& noted() {
  static std::vector<Noted> all;
  return all;
}

}  // namespace

Enter::Enter(const char* isa, Make make, const char* op, const char* name) { noted().push_back({isa, make, op, name}); }

std::vector<Entry>& entries() {
  static std::vector<Entry> all = [] {
    std::vector<Entry> found;
    const auto levels = isa_levels();
    for (const auto& kernel : noted())
      if (std::find(levels.begin(), levels.end(), kernel.isa) != levels.end())
        found.push_back({kernel.isa, kernel.make(kernel.op, kernel.name)});
    return found;
  }();
  return all;
}

const Entry* find_entry(const std::string& isa, const std::string& op, const std::string& name) {
  for (const auto& entry : entries())
    if ((entry.isa == isa || entry.isa.empty()) && entry.impl.op == op && entry.impl.name == name) return &entry;
  return nullptr;
}

namespace {

thread_local std::string failure;

template <class T>
const T* attribute(const dlas_node* node, const char* name) {
  auto found = node->attributes.find(name);
  return found == node->attributes.end() ? nullptr : std::get_if<T>(&found->second);
}

template <class T>
int scalar(const dlas_node* node, const char* name, T* value) {
  const T* found = attribute<T>(node, name);
  if (found) *value = *found;
  return found != nullptr;
}

int get_string(const dlas_node* node, const char* name, const char** value) {
  const auto* found = attribute<std::string>(node, name);
  if (found) *value = found->c_str();
  return found != nullptr;
}

int get_ints(const dlas_node* node, const char* name, const int64_t** values, int* count) {
  const auto* found = attribute<std::vector<int64_t>>(node, name);
  if (!found) return 0;
  *values = found->data();
  *count = static_cast<int>(found->size());
  return 1;
}

const DLTensor* at(const std::vector<Tensor>& tensors, int index) {
  if (index < 0 || index >= static_cast<int>(tensors.size()) || !tensors[index].present) return nullptr;
  return &tensors[index].view;
}

}  // namespace

std::string take_failure() {
  std::string taken;
  taken.swap(failure);
  return taken;
}

const dlas_api& api() {
  static const dlas_api table = {
      DLAS_ABI,
      [](const dlas_impl* impl) { entries().push_back({"", *impl}); },
      [](const dlas_node* node) { return node->op.c_str(); },
      scalar<int64_t>,
      scalar<double>,
      get_string,
      get_ints,
      [](const dlas_node* node) { return static_cast<int>(node->inputs.size()); },
      [](const dlas_node* node) { return static_cast<int>(node->outputs.size()); },
      [](const dlas_node* node, int index) { return at(node->inputs, index); },
      [](const dlas_node* node, int index) { return at(node->outputs, index); },
      [](const dlas_ctx* ctx) { return ctx->pool.threads(); },
      [](const dlas_ctx* ctx, int64_t tasks, void (*body)(void*, int64_t, int), void* arg) {
        ctx->pool.parallel_for(tasks, body, arg);
      },
      [](const char* reason) { failure = reason; },
  };
  return table;
}

}  // namespace dlas
