// Convolution with block sparse weights on the blocked layout: a tap of an input channel is left out where it is 0 for all
// VL output channels of a block ("bsr", blocks of VL by 1).
//
// The register tile is that of conv_blocked.cpp with one block of output channels; instead of walking over channels and
// taps it walks over the list of those that are left.

#include <algorithm>

#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

#if DLAS_VL == 16 || defined(DLAS_NEON)
constexpr int kPixels = 28;
#else
constexpr int kPixels = 12;
#endif

struct Row {
  const float* x;
  const int32_t *at, *end;  // offsets from the first pixel's first tap
  const float* w;           // a vector for each of them
  const float *bias, *add;
  float* y;
  Epilogue epilogue;
};

template <int P, int SW>
void tile(const Row& r) {
  V acc[P];
  const V bias = load(r.bias);
#pragma GCC unroll 28
  for (int p = 0; p < P; ++p) acc[p] = bias;
  const float* w = r.w;
  for (const int32_t* at = r.at; at < r.end; ++at, w += VL) {
    const float* x = r.x + *at;
    const V weight = load(w);
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) acc[p] += weight * splat(x[p * SW * VL]);
  }
  if (r.add) {
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) acc[p] += load(r.add + p * VL);
  }
  if (r.epilogue.act == kRelu) {
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) acc[p] = activate<kRelu>(acc[p], 0, 0);
  }
#pragma GCC unroll 28
  for (int p = 0; p < P; ++p) store(r.y + p * VL, acc[p]);
  if (r.epilogue.act > kRelu) r.epilogue.over(r.y, P * VL);
}

using Tile = void (*)(const Row&);

template <int SW, int... P>
Tile pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr Tile table[] = {tile<P + 1, SW>...};
  return table[pixels - 1];
}

class Bsr {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 5 || y->ndim != 5 || x->shape[4] != VL || y->shape[4] != VL)
      return refuse("bsr needs blocked input and output");
    if (!w->data) return refuse("bsr needs constant weights");
    const int64_t groups = get(node, "group", 1);
    if (groups > 1 && (w->shape[0] / groups % VL || w->shape[1] % VL))
      return refuse("bsr needs groups of whole blocks of channels");
    if (Window(node).sw > 2) return refuse("bsr has strides of 1 and 2 along the row");
    return 1;
  }

  Bsr(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), ctx_(ctx) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0), *b = input(node, 2);
    const int64_t K = w->shape[0], C = w->shape[1], per_group = K / get(node, "group", 1);
    n_ = x->shape[0], blocks_ = (K + VL - 1) / VL, oh_ = y->shape[2], ow_ = y->shape[3];
    bias_ = std::make_unique<Packed>(blocks_ * VL);
    if (b) std::copy(floats(b), floats(b) + K, bias_->at);
    for (int64_t block = 0; block < blocks_; ++block) {
      first_.push_back(static_cast<int64_t>(at_.size()));
      const int64_t k = block * VL, lanes = std::min<int64_t>(VL, K - k);
      for (int64_t c = 0; c < C; ++c)
        for (int i = 0; i < window_.kh; ++i)
          for (int j = 0; j < window_.kw; ++j) {
            float column[VL] = {};
            for (int64_t l = 0; l < lanes; ++l)
              column[l] = floats(w)[((k + l) * C + c) * window_.kh * window_.kw + i * window_.kw + j];
            if (std::all_of(column, column + VL, [](float v) { return v == 0; })) continue;
            const int64_t channel = k / per_group * C + c;
            at_.push_back(static_cast<int32_t>(channel / VL * x->strides[1] + channel % VL +
                                               i * window_.dh * x->strides[2] + j * window_.dw * x->strides[3]));
            weights_.insert(weights_.end(), column, column + VL);
          }
    }
    first_.push_back(static_cast<int64_t>(at_.size()));
    tiles_ = (ow_ + kPixels - 1) / kPixels;
    const int threads = api().threads(ctx_);
    while (threads > 1 && n_ * blocks_ * bands_ % threads && n_ * blocks_ * bands_ < 8 * threads && bands_ < oh_) ++bands_;
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    DLTensor* y = out[0];
    constexpr auto all = std::make_integer_sequence<int, kPixels>();
    parallel(ctx_, n_ * blocks_ * bands_, [&](int64_t task, int) {
      const int64_t band = task % bands_, block = task / bands_ % blocks_, n = task / bands_ / blocks_;
      Row r{nullptr, at_.data() + first_[block], at_.data() + first_[block + 1], weights_.data() + first_[block] * VL,
            bias_->at + block * VL, nullptr, nullptr, epilogue_};
      const float* xs = floats(x) + n * x->strides[0] - window_.top * x->strides[2] - window_.left * x->strides[3];
      for (int64_t oh = oh_ * band / bands_; oh < oh_ * (band + 1) / bands_; ++oh) {
        for (int64_t t = 0; t < tiles_; ++t) {
          const int64_t from = ow_ * t / tiles_, pixels = ow_ * (t + 1) / tiles_ - from;
          r.x = xs + oh * window_.sh * x->strides[2] + from * window_.sw * VL;
          r.y = floats(y) + n * y->strides[0] + block * y->strides[1] + oh * y->strides[2] + from * VL;
          if (add)
            r.add = floats(add) + n * add->strides[0] + block * add->strides[1] + oh * add->strides[2] + from * VL;
          (window_.sw == 1 ? pick<1>(static_cast<int>(pixels), all) : pick<2>(static_cast<int>(pixels), all))(r);
        }
      }
    });
  }

 private:
  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int64_t n_, blocks_, oh_, ow_, tiles_, bands_ = 1;
  std::vector<int64_t> first_;  // entry of each block, and one more
  std::vector<int32_t> at_;
  std::vector<float> weights_;
  std::unique_ptr<Packed> bias_;
};

DLAS_ENTER(Bsr, "Conv", "bsr");

}  // namespace
}  // namespace dlas::DLAS_NS
