// Softmax and LogSoftmax along any axis of a plain tensor.

#include <algorithm>
#include <limits>

#include "functions.h"
#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// The rest of a row, with `fill` behind it.
V load_rest(const float* p, int n, float fill) {
  V v = load_part(p, n);
  for (int lane = n; lane < VL; ++lane) v[lane] = fill;
  return v;
}

// Along the last axis: a row lies in one piece.
void one_row(const float* x, float* y, int64_t length, bool logarithm) {
  const int64_t whole = length / VL * VL;
  const int rest = static_cast<int>(length - whole);
  V high = splat(kLowest);
  for (int64_t i = 0; i < whole; i += VL) high = vmax(high, load(x + i));
  if (rest) high = vmax(high, load_rest(x + whole, rest, kLowest));
  float highest = high[0];
  for (int lane = 1; lane < VL; ++lane) highest = std::max(highest, high[lane]);
  V total{};
  for (int64_t i = 0; i < whole; i += VL) {
    const V e = vexp(load(x + i) - highest);
    total += e;
    if (!logarithm) store(y + i, e);
  }
  if (rest) {
    V e = vexp(load_part(x + whole, rest) - highest);
    if (!logarithm) store_part(y + whole, e, rest);
    for (int lane = rest; lane < VL; ++lane) e[lane] = 0;
    total += e;
  }
  float sum = 0;
  for (int lane = 0; lane < VL; ++lane) sum += total[lane];
  const V scale = splat(1.0f / sum), shift = highest + log_all(splat(sum));
  const auto last = [&](int64_t i, int n) {
    const V v = logarithm ? load_part(x + i, n) - shift : load_part(y + i, n) * scale;
    store_part(y + i, v, n);
  };
  for (int64_t i = 0; i < whole; i += VL) last(i, VL);
  if (rest) last(whole, rest);
}

// Along another axis: one vector of neighbouring columns at a time.
void columns(const float* x, float* y, int64_t length, int64_t step, int n, bool logarithm) {
  V high = splat(kLowest), total{};
  for (int64_t i = 0; i < length; ++i) high = vmax(high, load_part(x + i * step, n));
  for (int64_t i = 0; i < length; ++i) {
    const V e = vexp(load_part(x + i * step, n) - high);
    total += e;
    if (!logarithm) store_part(y + i * step, e, n);
  }
  const V scale = 1.0f / total, shift = high + log_all(total);
  for (int64_t i = 0; i < length; ++i) {
    const V v = logarithm ? load_part(x + i * step, n) - shift : load_part(y + i * step, n) * scale;
    store_part(y + i * step, v, n);
  }
}

class Softmax {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* x = input(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32) return refuse("softmax takes float32");
    return 1;
  }

  Softmax(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx), logarithm_(std::string(api().op(node)) == "LogSoftmax") {
    const DLTensor* x = input(node, 0);
    const int axis = static_cast<int>(get(node, "axis", x->ndim - 1));
    for (int i = 0; i < axis; ++i) outer_ *= x->shape[i];
    length_ = x->shape[axis];
    for (int i = axis + 1; i < x->ndim; ++i) inner_ *= x->shape[i];
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const float* x = floats(in[0]);
    float* y = floats(out[0]);
    if (inner_ == 1) {
      const int64_t together = std::max<int64_t>(1, 1024 / std::max<int64_t>(1, length_));
      parallel(ctx_, (outer_ + together - 1) / together, [&](int64_t task, int) {
        for (int64_t row = task * together; row < std::min(outer_, (task + 1) * together); ++row)
          one_row(x + row * length_, y + row * length_, length_, logarithm_);
      });
      return;
    }
    const int64_t strips = (inner_ + VL - 1) / VL;
    parallel(ctx_, outer_ * strips, [&](int64_t task, int) {
      const int64_t first = task % strips * VL, at = task / strips * length_ * inner_ + first;
      const int n = static_cast<int>(std::min<int64_t>(VL, inner_ - first));
      columns(x + at, y + at, length_, inner_, n, logarithm_);
    });
  }

 private:
  const dlas_ctx* ctx_;
  bool logarithm_;
  int64_t outer_ = 1, length_ = 1, inner_ = 1;
};

DLAS_ENTER(Softmax, "Softmax", "softmax");
DLAS_ENTER(Softmax, "LogSoftmax", "softmax");

}  // namespace
}  // namespace dlas::DLAS_NS
