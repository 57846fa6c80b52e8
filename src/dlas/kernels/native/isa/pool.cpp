// MaxPool and AveragePool on plain and blocked maps, and both over whole maps.

#include <algorithm>
#include <limits>

#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Taps [first, last) of a window that starts at `start` and steps by `dilation` lie inside [0, size).
struct Taps {
  int first, last;
  Taps(int64_t start, int64_t size, int taps, int dilation) {
    first = start >= 0 ? 0 : static_cast<int>((-start + dilation - 1) / dilation);
    const int64_t room = size - start;
    last = room <= 0 ? 0 : static_cast<int>(std::min<int64_t>(taps, (room + dilation - 1) / dilation));
    last = std::max(first, last);
  }
  int count() const { return last - first; }
};

class Pool {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32) return refuse("pools take float32");
    if (x->ndim != y->ndim || (x->ndim != 4 && (x->ndim != 5 || x->shape[4] != VL)))
      return refuse("pools take (N, C, H, W), plain or blocked on both sides");
    return 1;
  }

  Pool(const dlas_node* node, const dlas_ctx* ctx)
      : window_(node),
        epilogue_(node),
        ctx_(ctx),
        max_(std::string(api().op(node)) == "MaxPool"),
        include_pad_(get(node, "count_include_pad", 0) != 0) {}

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    DLTensor* y = out[0];
    const int64_t oh = y->shape[2];
    parallel(ctx_, y->shape[0] * y->shape[1] * oh, [&](int64_t task, int) {
      const int64_t row = task % oh, c = task / oh % y->shape[1], n = task / oh / y->shape[1];
      const float* plane = floats(x) + n * x->strides[0] + c * x->strides[1];
      float* to = floats(y) + n * y->strides[0] + c * y->strides[1] + row * y->strides[2];
      const int64_t start = row * window_.sh - window_.top, width = y->shape[3];
      const Taps rows(start, x->shape[2], window_.kh, window_.dh);
      plane += (start + rows.first * window_.dh) * x->strides[2];
      if (x->ndim == 5)
        max_ ? blocked_row<true>(x, plane, start, rows, to, width) : blocked_row<false>(x, plane, start, rows, to, width);
      else
        max_ ? plain_row<true>(x, plane, start, rows, to, width) : plain_row<false>(x, plane, start, rows, to, width);
      if (epilogue_.act) epilogue_.over(to, x->ndim == 5 ? width * VL : width);
    });
  }

 private:
  // What a sum is divided by: the taps inside the map or, if the padding counts, inside map and padding.
  float divisor(const DLTensor* x, int64_t row_start, const Taps& rows, int64_t start, const Taps& columns) const {
    if (!include_pad_) return static_cast<float>(rows.count() * columns.count());
    const Taps r(row_start + window_.top, x->shape[2] + window_.top + window_.bottom, window_.kh, window_.dh);
    const Taps c(start + window_.left, x->shape[3] + window_.left + window_.right, window_.kw, window_.dw);
    return static_cast<float>(r.count() * c.count());
  }

  template <bool Max>
  void blocked_row(const DLTensor* x, const float* plane, int64_t row_start, const Taps& rows, float* y,
                   int64_t width) const {
    const int64_t pitch = x->strides[2] * window_.dh, step = static_cast<int64_t>(window_.dw) * VL;
    for (int64_t i = 0; i < width; ++i, y += VL) {
      const int64_t start = i * window_.sw - window_.left;
      const Taps columns(start, x->shape[3], window_.kw, window_.dw);
      const float* from = plane + (start + columns.first * window_.dw) * VL;
      const int taps = columns.count();
      V sum = Max ? splat(kLowest) : V{};
      for (int r = 0; r < rows.count(); ++r, from += pitch) {
        for (int j = 0; j < taps; ++j) {
          const V seen = load(from + j * step);
          sum = Max ? vmax(sum, seen) : sum + seen;
        }
      }
      store(y, Max ? sum : sum / splat(divisor(x, row_start, rows, start, columns)));
    }
  }

  template <bool Max>
  void plain_row(const DLTensor* x, const float* plane, int64_t row_start, const Taps& rows, float* y,
                 int64_t width) const {
    const int64_t sw = window_.sw;
    std::fill(y, y + width, Max ? kLowest : 0.0f);
    for (int r = 0; r < rows.count(); ++r) {
      for (int j = 0; j < window_.kw; ++j) {
        // Outputs whose tap j lies inside the map.
        const int64_t shift = static_cast<int64_t>(j) * window_.dw - window_.left;
        const int64_t first = shift >= 0 ? 0 : std::min(width, (-shift + sw - 1) / sw);
        const int64_t last = std::min(width, std::max(first, (x->shape[3] - shift + sw - 1) / sw));
        const float* from = plane + r * window_.dh * x->strides[2] + shift;
        if (sw == 1)
          for (int64_t i = first; i < last; ++i) y[i] = Max ? (from[i] > y[i] ? from[i] : y[i]) : y[i] + from[i];
        else
          for (int64_t i = first; i < last; ++i)
            y[i] = Max ? (from[i * sw] > y[i] ? from[i * sw] : y[i]) : y[i] + from[i * sw];
      }
    }
    if (Max) return;
    for (int64_t i = 0; i < width; ++i) {
      const int64_t start = i * sw - window_.left;
      y[i] /= divisor(x, row_start, rows, start, Taps(start, x->shape[3], window_.kw, window_.dw));
    }
  }

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  bool max_, include_pad_;
};

DLAS_ENTER(Pool, "MaxPool", "max-pool");
DLAS_ENTER(Pool, "AveragePool", "average-pool");

// Four partial results, because an addition takes four cycles; their number never depends on the threads.
template <bool Max>
V whole_plane(const float* plane, int64_t height, int64_t row, int64_t pitch, int64_t& left_over) {
  const V none = Max ? splat(kLowest) : V{};
  V part[4] = {none, none, none, none};
  const int64_t vectors = row / VL;
  left_over = row % VL;
  const auto take = [](V a, V b) { return Max ? vmax(a, b) : a + b; };
  for (int64_t h = 0; h < height; ++h) {
    const float* from = plane + h * pitch;
    int64_t i = 0;
    for (; i + 4 <= vectors; i += 4)
      for (int k = 0; k < 4; ++k) part[k] = take(part[k], load(from + (i + k) * VL));
    for (; i < vectors; ++i) part[0] = take(part[0], load(from + i * VL));
    if (left_over) {
      V rest = load_part(from + vectors * VL, static_cast<int>(left_over));
      if (Max)
        for (int lane = static_cast<int>(left_over); lane < VL; ++lane) rest[lane] = kLowest;
      part[1] = take(part[1], rest);
    }
  }
  return take(take(part[0], part[1]), take(part[2], part[3]));
}

// To (N, C, 1, 1), plain; from plain maps one channel is a run, from blocked ones it is a lane.
class GlobalPool {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32) return refuse("pools take float32");
    if ((x->ndim != 4 && (x->ndim != 5 || x->shape[4] != VL)) || y->ndim < 2 || (y->ndim == 5 && x->ndim == 4))
      return refuse("global pools take maps (N, C, H, W), plain or blocked");
    return 1;
  }

  GlobalPool(const dlas_node* node, const dlas_ctx* ctx)
      : epilogue_(node), ctx_(ctx), max_(get(node, "max", 0) != 0), channels_(get(node, "channels", 0)) {}

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    DLTensor* y = out[0];
    const bool blocked = x->ndim == 5;
    int64_t height = x->shape[2], row = x->shape[3] * (blocked ? VL : 1);
    const float pixels = static_cast<float>(height * x->shape[3]);
    if (x->strides[2] == row) row *= height, height = 1;
    const int64_t planes = x->shape[1];
    parallel(ctx_, x->shape[0] * planes, [&](int64_t task, int) {
      const int64_t n = task / planes, c = task % planes;
      const float* from = floats(x) + n * x->strides[0] + c * x->strides[1];
      int64_t rest;
      V v = max_ ? whole_plane<true>(from, height, row, x->strides[2], rest)
                 : whole_plane<false>(from, height, row, x->strides[2], rest);
      float* to = floats(y) + n * y->strides[0] + c * y->strides[1] * (blocked && y->ndim != 5 ? VL : 1);
      if (!blocked) {
        float all = v[0];
        for (int lane = 1; lane < VL; ++lane) all = max_ ? std::max(all, v[lane]) : all + v[lane];
        v = splat(all);
      }
      if (!max_) v = v / splat(pixels);
      v = epilogue_(v);
      if (y->ndim == 5)
        store(to, v);
      else
        store_part(to, v, blocked ? static_cast<int>(std::min<int64_t>(VL, channels_ - c * VL)) : 1);
    });
  }

 private:
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  bool max_;
  int64_t channels_;
};

DLAS_ENTER(GlobalPool, "GlobalPool", "global-pool");

}  // namespace
}  // namespace dlas::DLAS_NS
