// Convolution of an image: few input channels, plain (N, C, H, W) in, blocked out.
//
// A band of input rows is copied into scratch with its zeros around it, each row cut into its `stride` phases, so that
// neighbouring outputs always read neighbouring inputs. Weights are packed [K/(NB*B)][C][KH][KW][NB][B].

#include <algorithm>

#include "conv_tile.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int64_t kBand = 12 * 1024;  // floats of a copied band: it stays in the caches between tiles

template <int S>
void every(float* to, const float* from, int64_t count, int stride) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * (S ? S : stride)];
}

class First {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 4 || w->ndim != 4 || y->ndim != 5 || y->shape[4] != VL)
      return refuse("first-layer needs plain input and blocked output");
    if (!w->data) return refuse("first-layer needs constant weights");
    if (get(node, "group", 1) != 1) return refuse("first-layer has no groups");
    return 1;
  }

  First(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), ctx_(ctx) {
    const DLTensor *w = input(node, 1), *x = input(node, 0), *y = output(node, 0);
    const int64_t K = w->shape[0], taps = static_cast<int64_t>(window_.kh) * window_.kw;
    c_ = w->shape[1], h_ = x->shape[2], w_ = x->shape[3];
    n_ = x->shape[0], kb_ = (K + VL - 1) / VL, oh_ = y->shape[2], ow_ = y->shape[3];
    phase_ = ow_ + (window_.kw - 1) * window_.dw / window_.sw;
    pitch_ = phase_ * window_.sw;
    cut_ = Cut(1, kb_, ow_, c_ * taps);
    choose();
    for (int64_t c = 0; c < c_; ++c)
      for (int i = 0; i < window_.kh; ++i)
        for (int j = 0; j < window_.kw; ++j)
          steps_.push_back((c * rows_ + i * window_.dh) * pitch_ + j * window_.dw % window_.sw * phase_ +
                           j * window_.dw / window_.sw);
    weights_ = std::make_unique<Packed>(kb_ * VL * c_ * taps);
    bias_ = std::make_unique<Packed>(kb_ * VL);
    const int64_t nb = cut_.blocks;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t block = k / VL;
      for (int64_t t = 0; t < c_ * taps; ++t)
        weights_->at[((block / nb * c_ * taps + t) * nb + block % nb) * VL + k % VL] = floats(w)[k * c_ * taps + t];
      if (const DLTensor* b = input(node, 2)) bias_->at[k] = floats(b)[k];
    }
  }

  size_t workspace() const { return api().threads(ctx_) * room_ * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    DLTensor* y = out[0];
    const int64_t bands = (oh_ + band_ - 1) / band_;
    parallel(ctx_, n_ * bands, [&](int64_t task, int thread) {
      const int64_t n = task / bands, first = task % bands * band_, last = std::min(first + band_, oh_);
      float* rows = static_cast<float*>(scratch) + thread * room_;
      copy(floats(x) + n * x->strides[0], x->strides, first * window_.sh - window_.top,
           (last - first - 1) * window_.sh + (window_.kh - 1) * window_.dh + 1, rows);
      TileJob job{};
      job.steps = steps_.data(), job.count = static_cast<int64_t>(steps_.size());
      job.y_block = y->strides[1], job.y_pixel = job.add_pixel = VL, job.epilogue = &epilogue_;
      if (add) job.add_block = add->strides[1];
      for (int64_t block = 0; block < kb_; block += cut_.blocks) {
        job.w = weights_->at + block * VL * job.count;
        job.bias = bias_->at + block * VL;
        for (int64_t oh = first; oh < last; ++oh) {
          for (int t = 0; t < cut_.tiles; ++t) {
            const int64_t at = cut_.from(t);
            job.x = rows + (oh - first) * window_.sh * pitch_ + at;
            job.y = floats(y) + n * y->strides[0] + block * y->strides[1] + oh * y->strides[2] + at * VL;
            if (add)
              job.add = floats(add) + n * add->strides[0] + block * add->strides[1] + oh * add->strides[2] + at * VL;
            cut_.run(t, job);
          }
        }
      }
    });
  }

 private:
  void choose() {
    const int64_t reach = (window_.kh - 1) * window_.dh + 1;
    band_ = std::clamp<int64_t>((kBand / (c_ * pitch_) - reach) / window_.sh + 1, 1, oh_);
    const int threads = api().threads(ctx_);
    if (threads > 1) band_ = std::min(band_, std::max<int64_t>(1, oh_ / (2 * threads)));
    rows_ = (band_ - 1) * window_.sh + reach;
    room_ = (c_ * rows_ * pitch_ + 31) / 16 * 16;
  }

  // Rows [row, row + count) of all channels of an image; rows and columns outside it are zeros.
  void copy(const float* x, const int64_t* strides, int64_t row, int64_t count, float* to) const {
    for (int64_t c = 0; c < c_; ++c) {
      for (int64_t r = 0; r < count; ++r) {
        float* line = to + (c * rows_ + r) * pitch_;
        if (row + r < 0 || row + r >= h_) {
          std::fill(line, line + pitch_, 0.0f);
          continue;
        }
        const float* from = x + c * strides[1] + (row + r) * strides[2];
        for (int s = 0; s < window_.sw; ++s, line += phase_) {
          // Element q of the phase is the image's column q * sw + s - left.
          const int64_t shift = s - window_.left, sw = window_.sw;
          const int64_t begin = std::clamp<int64_t>((-shift + sw - 1) / sw, 0, phase_);
          const int64_t end = w_ <= shift ? begin : std::clamp<int64_t>((w_ - shift + sw - 1) / sw, begin, phase_);
          std::fill(line, line + begin, 0.0f);
          const float* source = from + begin * sw + shift;
          if (sw == 1) every<1>(line + begin, source, end - begin, 1);
          else if (sw == 2) every<2>(line + begin, source, end - begin, 2);
          else every<0>(line + begin, source, end - begin, window_.sw);
          std::fill(line + end, line + phase_, 0.0f);
        }
      }
    }
  }

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int64_t c_, h_, w_, n_, kb_, oh_, ow_, phase_, pitch_, band_, rows_, room_;
  Cut cut_;
  std::vector<int64_t> steps_;
  std::unique_ptr<Packed> weights_, bias_;
};

DLAS_ENTER(First, "Conv", "first-layer");

}  // namespace
}  // namespace dlas::DLAS_NS
