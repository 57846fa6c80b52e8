// Convolution as the definition says it: seven nested loops on plain tensors, the innermost along the output row.

#include <algorithm>
#include <utility>

#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

class Direct {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 4 || w->ndim != 4 || y->ndim != 4) return refuse("direct needs plain tensors");
    return 1;
  }

  Direct(const dlas_node* node, const dlas_ctx* ctx)
      : v_(node), epilogue_(node), ctx_(ctx), groups_(get(node, "group", 1)), w_(input(node, 1)), b_(input(node, 2)) {}

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    const float* weights = w_->data ? floats(w_) : floats(in[1]);
    const float* bias = b_ && b_->data ? floats(b_) : n_in > 2 ? floats(in[2]) : nullptr;
    DLTensor* y = out[0];
    const int64_t K = y->shape[1], OH = y->shape[2], OW = y->shape[3], H = x->shape[2], W = x->shape[3];
    const int64_t C = x->shape[1] / groups_, taps = static_cast<int64_t>(v_.kh) * v_.kw;
    parallel(ctx_, x->shape[0] * K, [&](int64_t task, int) {
      const int64_t n = task / K, k = task % K;
      const float* image = floats(x) + n * x->strides[0] + k / (K / groups_) * C * x->strides[1];
      float* plane = floats(y) + n * y->strides[0] + k * y->strides[1];
      std::fill(plane, plane + OH * OW, bias ? bias[k] : 0.0f);
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t i = 0; i < v_.kh; ++i) {
          for (int64_t j = 0; j < v_.kw; ++j) {
            const float weight = weights[(k * C + c) * taps + i * v_.kw + j];
            // Output (p, q) reads (p * sh + down, q * sw + right) of the input. Rows are the inner loop: a sum that was
            // just stored is not needed again at once.
            const int64_t down = i * v_.dh - v_.top, right = j * v_.dw - v_.left;
            const auto [top, bottom] = inside(down, v_.sh, H, OH);
            const auto [first, last] = inside(right, v_.sw, W, OW);
            const float* from = image + c * x->strides[1] + down * x->strides[2] + right;
            for (int64_t p = top; p < bottom; ++p)
              accumulate(plane + p * OW, from + p * v_.sh * x->strides[2], first, last, weight);
          }
        }
      }
      if (add) {
        const float* more = floats(add) + n * add->strides[0] + k * add->strides[1];
        for (int64_t o = 0; o < OH * OW; ++o) plane[o] += more[o];
      }
      if (epilogue_.act) epilogue_.over(plane, OH * OW);
    });
  }

 private:
  // The outputs whose input o * stride + shift is one of [0, size).
  static std::pair<int64_t, int64_t> inside(int64_t shift, int64_t stride, int64_t size, int64_t outputs) {
    const int64_t first = shift < 0 ? (-shift + stride - 1) / stride : 0;
    return {first, shift >= size ? first : std::min(outputs, (size - shift + stride - 1) / stride)};
  }

  void accumulate(float* __restrict y, const float* __restrict x, int64_t first, int64_t last, float w) const {
    const int64_t stride = v_.sw;
    if (stride == 1)
      for (int64_t o = first; o < last; ++o) y[o] += w * x[o];
    else
      for (int64_t o = first; o < last; ++o) y[o] += w * x[o * stride];
  }

  Window v_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int64_t groups_;
  const DLTensor *w_, *b_;
};

DLAS_ENTER(Direct, "Conv", "direct");

}  // namespace
}  // namespace dlas::DLAS_NS
