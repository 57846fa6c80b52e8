// The host's side of dlas_layer.h: nodes, contexts, and the table of kernels by instruction set.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "../include/dlas_layer.h"
#include "pool.h"

namespace dlas {

// A DLTensor that owns its shape and strides.
struct Tensor {
  std::vector<int64_t> shape, strides;
  DLTensor view{};
  bool present = true;

  Tensor() = default;
  Tensor(std::vector<int64_t> shape, std::vector<int64_t> strides, DLDataType dtype, void* data);
  Tensor(const Tensor& other) { *this = other; }
  Tensor& operator=(const Tensor& other);
};

using Attribute = std::variant<int64_t, double, std::string, std::vector<int64_t>>;

// What a kernel was built for: one instruction set each.
struct Entry {
  std::string isa;  // "" for plug-ins
  dlas_impl impl;
};

// All kernels that this processor can run.
std::vector<Entry>& entries();
const Entry* find_entry(const std::string& isa, const std::string& op, const std::string& name);
const dlas_api& api();
// The reason of the last failure on this thread; empties it.
std::string take_failure();

// Notes a built-in kernel before main. What runs then runs on every processor, so it must be compiled for the least of
// them: the constructor is out of line, takes plain pointers, and `make` is called only where `isa` is at hand.
struct Enter {
  using Make = dlas_impl (*)(const char* op, const char* name);
  Enter(const char* isa, Make make, const char* op, const char* name);
};

}  // namespace dlas

struct dlas_node {
  std::string op;
  std::map<std::string, dlas::Attribute> attributes;
  std::vector<dlas::Tensor> inputs, outputs;
};

struct dlas_ctx {
  explicit dlas_ctx(int threads) : pool(threads) {}
  mutable dlas::Pool pool;
};
