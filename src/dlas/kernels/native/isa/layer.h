// Reading a node from inside a kernel, and running a lambda on the pool.
#pragma once

#include <string>
#include <vector>

#include "../core/node.h"
#include "simd.h"

namespace dlas::DLAS_NS {

inline int64_t get(const dlas_node* node, const char* name, int64_t otherwise) {
  api().get_int(node, name, &otherwise);
  return otherwise;
}

inline double getf(const dlas_node* node, const char* name, double otherwise) {
  api().get_float(node, name, &otherwise);
  return otherwise;
}

inline std::vector<int64_t> gets(const dlas_node* node, const char* name, std::vector<int64_t> otherwise) {
  const int64_t* values;
  int count;
  if (api().get_ints(node, name, &values, &count)) otherwise.assign(values, values + count);
  return otherwise;
}

inline const DLTensor* input(const dlas_node* node, int i) { return api().input(node, i); }
inline const DLTensor* output(const dlas_node* node, int i) { return api().output(node, i); }
inline const float* floats(const DLTensor* t) { return t ? static_cast<const float*>(t->data) : nullptr; }
inline float* floats(DLTensor* t) { return static_cast<float*>(t->data); }

inline int refuse(const std::string& reason) {
  api().fail(reason.c_str());
  return 0;
}

template <class Body>
void parallel(const dlas_ctx* ctx, int64_t tasks, const Body& body) {
  ctx->pool.parallel_for(
      tasks, [](void* arg, int64_t task, int thread) { (*static_cast<const Body*>(arg))(task, thread); },
      const_cast<Body*>(&body));
}

// Attributes `act`, `act_low`, `act_high` of a node that an activation was fused into.
struct Epilogue {
  int act;
  float low, high;
  explicit Epilogue(const dlas_node* node)
      : act(static_cast<int>(get(node, "act", 0))),
        low(static_cast<float>(getf(node, "act_low", 0))),
        high(static_cast<float>(getf(node, "act_high", 0))) {}
  DLAS_INLINE V operator()(V v) const { return activate(act, v, low, high); }
  // In place on stored results; once in the program instead of once in every register tile.
  __attribute__((noinline)) void over(float* y, int64_t count) const {
    int64_t i = 0;
    for (; i + VL <= count; i += VL) store(y + i, (*this)(load(y + i)));
    if (i < count) store_part(y + i, (*this)(load_part(y + i, static_cast<int>(count - i))), static_cast<int>(count - i));
  }
};

// Attributes of a two-dimensional window: Conv, ConvTranspose, MaxPool, AveragePool.
struct Window {
  int kh, kw, sh, sw, dh, dw, top, left, bottom, right;
  explicit Window(const dlas_node* node) {
    const auto k = gets(node, "kernel_shape", {1, 1}), s = gets(node, "strides", {1, 1}),
               d = gets(node, "dilations", {1, 1}), p = gets(node, "pads", {0, 0, 0, 0});
    kh = k[0], kw = k[1], sh = s[0], sw = s[1], dh = d[0], dw = d[1];
    top = p[0], left = p[1], bottom = p[2], right = p[3];
  }
};

// Memory that vectors can be loaded from.
struct Packed {
  explicit Packed(size_t floats = 0) : raw(floats + 16, 0.0f) {
    at = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(raw.data()) + 63) & ~uintptr_t{63});
  }
  Packed(const Packed&) = delete;
  Packed& operator=(const Packed&) = delete;
  std::vector<float> raw;
  float* at;
};

// The five functions of a layer around a class with `static int supports(const dlas_node*)`, a constructor
// (const dlas_node*, const dlas_ctx*), `size_t workspace()` and `void run(in, n_in, out, n_out, scratch)`.
template <class Layer>
dlas_impl layer(const char* op, const char* name) {
  return {op,
          name,
          [](const dlas_node* node) { return Layer::supports(node); },
          [](const dlas_node* node, const dlas_ctx* ctx) -> void* { return new Layer(node, ctx); },
          [](void* state) { return static_cast<Layer*>(state)->workspace(); },
          [](void* state, const DLTensor* const* in, int n_in, DLTensor* const* out, int n_out, void* scratch) {
            static_cast<Layer*>(state)->run(in, n_in, out, n_out, scratch);
            return 0;
          },
          [](void* state) { delete static_cast<Layer*>(state); }};
}

#define DLAS_CONCAT2(a, b) a##b
#define DLAS_CONCAT(a, b) DLAS_CONCAT2(a, b)
#define DLAS_ENTER(Class, op, name) \
  static const ::dlas::Enter DLAS_CONCAT(entered_, __COUNTER__)(DLAS_ISA, &layer<Class>, op, name)

}  // namespace dlas::DLAS_NS
