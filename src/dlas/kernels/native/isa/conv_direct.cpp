// Convolution as the definition says it: seven nested loops on plain tensors, the innermost along the output row.

#include <algorithm>

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
      for (int64_t oh = 0; oh < OH; ++oh) {
        const int64_t at = n * y->strides[0] + k * y->strides[1] + oh * y->strides[2];
        float* row = floats(y) + at;
        std::fill(row, row + OW, bias ? bias[k] : 0.0f);
        for (int64_t c = 0; c < C; ++c) {
          for (int64_t i = 0; i < v_.kh; ++i) {
            const int64_t ih = oh * v_.sh + i * v_.dh - v_.top;
            if (ih < 0 || ih >= H) continue;
            for (int64_t j = 0; j < v_.kw; ++j) {
              // Output o reads column o * sw + shift of the input.
              const int64_t shift = j * v_.dw - v_.left;
              const int64_t first = shift < 0 ? (-shift + v_.sw - 1) / v_.sw : 0;
              const int64_t last = shift >= W ? 0 : std::min(OW, (W - shift + v_.sw - 1) / v_.sw);
              accumulate(row, image + c * x->strides[1] + ih * x->strides[2] + shift, first, last,
                         weights[(k * C + c) * taps + i * v_.kw + j]);
            }
          }
        }
        if (add)
          for (int64_t o = 0; o < OW; ++o) row[o] += floats(add)[at + o];
        if (epilogue_.act) epilogue_.over(row, OW);
      }
    });
  }

 private:
  void accumulate(float* y, const float* x, int64_t first, int64_t last, float w) const {
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
