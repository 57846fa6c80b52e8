// Winograd's minimal filtering where a block of channels is one group or several: a vector of sums needs one vector of
// inputs only, and both fit one place.
//
// Channel k of a group of G sums over its inputs c. With c = k ^ r, r from 0 to G-1, lane k wants lane k ^ r, which is
// one shuffle for all groups of the block. r = h + l, h a multiple of L and l less than L (2 or 4), shares them:
//   sum over h of S_h(sum over l of w[h, l] * S_l(x))    with S_r the shuffle that swaps lanes k and k ^ r,
// so that 8 products take 4 shuffles, and 16 take 6. A panel of tiles stays in L1 and is overwritten by its sums.

#include "winograd.h"

namespace dlas::DLAS_NS {
namespace {

template <int R>
DLAS_INLINE V swapped(V x) {
  if constexpr (R == 0) return x;
  VI lanes;
  for (int i = 0; i < VL; ++i) lanes[i] = i ^ R;
  return __builtin_shuffle(x, lanes);
}

template <int G>
constexpr int kLow = G < 8 ? 2 : 4;

// Every point of `tiles` tiles: v[point][tile][VL] in place, w [point][G][VL].
template <int G>
void products(float* v, const float* w, int points, int64_t tiles, int64_t step) {
  constexpr int L = kLow<G>, H = G / L;
  for (int p = 0; p < points; ++p, v += step, w += G * VL) {
    V weight[G];
#pragma GCC unroll 16
    for (int i = 0; i < G; ++i) weight[i] = load(w + i * VL);
    for (int64_t t = 0; t < tiles; ++t) {
      V x[4], z[4];
      x[0] = load(v + t * VL), x[1] = swapped<1>(x[0]);
      if constexpr (L == 4) x[2] = swapped<2>(x[0]), x[3] = swapped<3>(x[0]);
#pragma GCC unroll 4
      for (int h = 0; h < H; ++h) {
        z[h] = x[0] * weight[h * L];
#pragma GCC unroll 4
        for (int l = 1; l < L; ++l) z[h] += x[l] * weight[h * L + l];
      }
      V sum = z[0];
      if constexpr (H > 1) sum += swapped<L % VL>(z[1]);
      if constexpr (H > 2) sum += swapped<2 * L % VL>(z[2]) + swapped<3 * L % VL>(z[3]);
      store(v + t * VL, sum);
    }
  }
}

class WinogradLanes : public WinogradForm {
 public:
  WinogradLanes(const dlas_node* node, const dlas_ctx* ctx) : WinogradForm(node, ctx) {
    blocks_ = (K_ + VL - 1) / VL;
    const int64_t most = std::max<int64_t>(kL1 / (points_ * VL * sizeof(float)), 4);
    int64_t panels = (tiles_ + most - 1) / most;
    panel_ = (tiles_ + panels - 1) / panels;
    step_ = panel_ * VL + (panel_ % 2 ? 0 : VL);  // equal distances of 4 KiB would fall on the same lines of L1
    switch (C_) {
      case 2: products_ = products<2>; break;
      case 4: products_ = products<4>; break;
#if DLAS_VL > 4
      case 8: products_ = products<8>; break;
#endif
#if DLAS_VL > 8
      case 16: products_ = products<16>; break;
#endif
    }
    pack(floats(input(node, 1)));
  }

  size_t workspace() const override { return api().threads(ctx_) * points_ * step_ * sizeof(float); }

  void run(const DLTensor* x, const DLTensor* add, const DLTensor* y, float* scratch) override {
    const int64_t panels = (tiles_ + panel_ - 1) / panel_;
    parallel(ctx_, blocks_ * panels, [&](int64_t task, int thread) {
      const int64_t block = task / panels, panel = task % panels;
      float* v = scratch + thread * points_ * step_;
      there(x, panel, block, v, step_);
      products_(v, weights_->at + block * points_ * C_ * VL, points_, count(panel), step_);
      back(y, add, panel, block, v, step_);
    });
  }

 private:
  // [block][point][r][VL]: lane k of S_h holds what channel k ^ h multiplies lane k ^ l by.
  void pack(const float* w) {
    const int64_t low = C_ < 8 ? 2 : 4;
    weights_ = std::make_unique<Packed>(blocks_ * points_ * C_ * VL);
    double u[36];
    for (int64_t k = 0; k < K_; ++k) {
      for (int64_t c = 0; c < C_; ++c) {
        points(w + (k * C_ + c) * 9, u);
        const int64_t r = k % C_ ^ c, lane = k % VL ^ (r - r % low);
        float* to = weights_->at + (k / VL * points_ * C_ + r) * VL + lane;
        for (int p = 0; p < points_; ++p) to[p * C_ * VL] = static_cast<float>(u[p]);
      }
    }
  }

  static constexpr int64_t kL1 = 20 << 10;  // of 32 KiB; weights pass through the rest
  int64_t blocks_, step_;
  void (*products_)(float*, const float*, int, int64_t, int64_t) = nullptr;
  std::unique_ptr<Packed> weights_;
};

}  // namespace

bool winograd_has_lanes(int64_t outs, int64_t ins) {
  return outs == ins && ins >= 2 && ins <= VL && (ins & (ins - 1)) == 0;
}

std::unique_ptr<WinogradForm> winograd_lanes(const dlas_node* node, const dlas_ctx* ctx) {
  return std::make_unique<WinogradLanes>(node, ctx);
}

}  // namespace dlas::DLAS_NS
