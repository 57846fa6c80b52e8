// Convolution on the blocked layout: a vector of output channels by a row of pixels ("spatial pack", oc-vector form).
//
// x (N, C/B, H, W, B) inside a halo that covers the padding, so that the kernel never sees an edge. Weights are packed
// [group][K/(NB*B)][C/B][KH][KW][B][NB][B]; a register tile is P pixels by NB blocks of output channels. Grouped
// convolutions whose groups are whole blocks take the same way.

#include <algorithm>

#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

#if DLAS_VL == 16
constexpr int kTile[5] = {0, 28, 14, 9, 7};  // pixels for NB blocks: 28 accumulators of 32 registers
#elif defined(DLAS_NEON)
constexpr int kTile[5] = {0, 16, 12, 8, 6};  // 24 of 32
#else
constexpr int kTile[5] = {0, 12, 6, 4, 3};  // 12 of 16
#endif

struct Row {
  const float* x;       // first pixel of the tile, at the window's first tap
  const float* w;
  const float* bias;    // NB vectors
  float* y;
  const float* add;     // residual, laid out as y, or null
  int64_t x_block, x_tap_h, x_tap_w, y_block, add_block;
  int blocks, kh, kw;
  Epilogue epilogue;
};

template <int P, int NB, int SW>
void tile(const Row& r) {
  V acc[NB][P];
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const V bias = load(r.bias + b * VL);
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) acc[b][p] = bias;
  }
  const float* w = r.w;
  for (int c = 0; c < r.blocks; ++c) {
    const float* plane = r.x + c * r.x_block;
    for (int i = 0; i < r.kh; ++i) {
      for (int j = 0; j < r.kw; ++j) {
        const float* x = plane + i * r.x_tap_h + j * r.x_tap_w;
#pragma GCC unroll 2
        for (int l = 0; l < VL; ++l, w += NB * VL) {
          V weight[NB];
#pragma GCC unroll 4
          for (int b = 0; b < NB; ++b) weight[b] = load(w + b * VL);
#pragma GCC unroll 28
          for (int p = 0; p < P; ++p) {
            const V value = splat(x[p * SW * VL + l]);
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) acc[b][p] += weight[b] * value;
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    float* y = r.y + b * r.y_block;
    if (r.add) {
      const float* add = r.add + b * r.add_block;
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) acc[b][p] += load(add + p * VL);
    }
    if (r.epilogue.act == kRelu) {
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) acc[b][p] = activate<kRelu>(acc[b][p], 0, 0);
    }
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) store(y + p * VL, acc[b][p]);
    if (r.epilogue.act > kRelu) r.epilogue.over(y, P * VL);
  }
}

using Tile = void (*)(const Row&);

template <int NB, int SW, int... P>
Tile pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr Tile table[] = {tile<P + 1, NB, SW>...};
  return table[pixels - 1];
}

template <int SW>
Tile pick(int nb, int pixels) {
  switch (nb) {
    case 1: return pick<1, SW>(pixels, std::make_integer_sequence<int, kTile[1]>());
    case 2: return pick<2, SW>(pixels, std::make_integer_sequence<int, kTile[2]>());
    case 3: return pick<3, SW>(pixels, std::make_integer_sequence<int, kTile[3]>());
    default: return pick<4, SW>(pixels, std::make_integer_sequence<int, kTile[4]>());
  }
}

class Blocked {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* x = input(node, 0);
    const DLTensor* w = input(node, 1);
    const DLTensor* y = output(node, 0);
    if (!x || !w || x->ndim != 5 || y->ndim != 5 || x->shape[4] != VL || y->shape[4] != VL)
      return refuse("spatial-pack needs blocked input and output");
    if (!w->data) return refuse("spatial-pack needs constant weights");
    const int64_t groups = get(node, "group", 1);
    if (groups > 1 && (w->shape[0] / groups % VL || w->shape[1] % VL))
      return refuse("spatial-pack needs groups of whole blocks of channels");
    const Window window(node);
    if (window.sw > 2) return refuse("spatial-pack has strides of 1 and 2 along the row");
    return 1;
  }

  Blocked(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), ctx_(ctx) {
    const DLTensor* w = input(node, 1);
    const DLTensor* x = input(node, 0);
    const DLTensor* y = output(node, 0);
    groups_ = static_cast<int>(get(node, "group", 1));
    const int64_t K = w->shape[0], C = w->shape[1];
    kb_ = static_cast<int>((K / groups_ + VL - 1) / VL);
    cb_ = static_cast<int>((C + VL - 1) / VL);
    n_ = x->shape[0], oh_ = y->shape[2], ow_ = y->shape[3];
    choose();
    const int kh = window_.kh, kw = window_.kw;
    chunks_ = kb_ / nb_;
    chunk_size_ = static_cast<int64_t>(cb_) * kh * kw * VL * nb_ * VL;
    weights_ = std::make_unique<Packed>(groups_ * chunks_ * chunk_size_);
    bias_ = std::make_unique<Packed>(groups_ * kb_ * VL);
    const float* from = floats(w);
    const int64_t KG = K / groups_;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t g = k / KG, in_group = k % KG, block = in_group / VL, lane = in_group % VL;
      float* chunk = weights_->at + (g * chunks_ + block / nb_) * chunk_size_;
      for (int64_t c = 0; c < C; ++c)
        for (int64_t t = 0; t < kh * kw; ++t)
          chunk[((c / VL * kh * kw + t) * VL + c % VL) * nb_ * VL + block % nb_ * VL + lane] =
              from[(k * C + c) * kh * kw + t];
      if (const DLTensor* b = input(node, 2)) bias_->at[(g * kb_ + block) * VL + lane] = floats(b)[k];
    }
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    DLTensor* y = out[0];
    const int64_t tasks = n_ * groups_ * chunks_ * bands_;
    parallel(ctx_, tasks, [&](int64_t task, int) {
      // Neighbouring tasks share their weights, so that a thread streams each chunk once.
      const int64_t band = task % bands_, rest = task / bands_;
      const int64_t chunk = rest % (groups_ * chunks_), n = rest / (groups_ * chunks_);
      const int64_t g = chunk / chunks_, first = g * kb_ + chunk % chunks_ * nb_;
      Row r{nullptr, weights_->at + chunk * chunk_size_, bias_->at + first * VL, nullptr, nullptr, x->strides[1],
            x->strides[2] * window_.dh, x->strides[3] * window_.dw, y->strides[1], add ? add->strides[1] : 0,
            cb_, window_.kh, window_.kw, epilogue_};
      const float* xs = floats(x) + n * x->strides[0] + g * cb_ * x->strides[1] - window_.top * x->strides[2] -
                        window_.left * x->strides[3];
      float* ys = floats(y) + n * y->strides[0] + first * y->strides[1];
      const float* adds = add ? floats(add) + n * add->strides[0] + first * add->strides[1] : nullptr;
      for (int64_t oh = oh_ * band / bands_; oh < oh_ * (band + 1) / bands_; ++oh) {
        for (int t = 0; t < tiles_; ++t) {
          const int64_t from = ow_ * t / tiles_, pixels = ow_ * (t + 1) / tiles_ - from;
          r.x = xs + oh * window_.sh * x->strides[2] + from * window_.sw * VL;
          r.y = ys + oh * y->strides[2] + from * VL;
          r.add = adds ? adds + oh * add->strides[2] + from * VL : nullptr;
          (pixels == small_ ? small_tile_ : large_tile_)(r);
        }
      }
    });
  }

 private:
  void choose() {
    // The least loads per multiplication that the registers allow: several blocks, unless the row is too short.
    nb_ = kb_ % 4 == 0 && ow_ <= 2 * kTile[4] && ow_ % kTile[4] == 0 ? 4 : kb_ % 2 == 0 ? 2 : kb_ % 3 == 0 ? 3 : 1;
    if (ow_ <= kTile[4] && kb_ % 4 == 0) nb_ = 4;
    tiles_ = static_cast<int>((ow_ + kTile[nb_] - 1) / kTile[nb_]);
    small_ = static_cast<int>(ow_ / tiles_);
    const int large = static_cast<int>((ow_ + tiles_ - 1) / tiles_);
    small_tile_ = window_.sw == 1 ? pick<1>(nb_, small_) : pick<2>(nb_, small_);
    large_tile_ = window_.sw == 1 ? pick<1>(nb_, large) : pick<2>(nb_, large);
    // Rows of a band go through the caches together; with threads, enough bands that all are busy.
    const int64_t chunks = n_ * groups_ * (kb_ / nb_);
    const int threads = api().threads(ctx_);
    bands_ = 1;
    while (threads > 1 && chunks * bands_ % threads && chunks * bands_ < 8 * threads && bands_ < oh_) ++bands_;
  }

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int groups_, kb_, cb_, nb_, tiles_, small_;
  int64_t n_, oh_, ow_, chunks_, chunk_size_, bands_;
  Tile small_tile_, large_tile_;
  std::unique_ptr<Packed> weights_, bias_;
};

DLAS_ENTER(Blocked, "Conv", "spatial-pack");

}  // namespace
}  // namespace dlas::DLAS_NS
