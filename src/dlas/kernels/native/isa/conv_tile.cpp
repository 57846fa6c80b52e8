// The instances of the shared register tile.

#include "conv_tile.h"

#include <algorithm>
#include <utility>

namespace dlas::DLAS_NS {
namespace {

template <int P, int NB, int L>
void tile(const TileJob& r) {
  V acc[NB][P];
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const V bias = load(r.bias + b * VL);
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) acc[b][p] = bias;
  }
  const float* w = r.w;
  for (int64_t s = 0; s < r.count; ++s) {
    const float* x = r.x + r.steps[s];
    if (r.w_steps) w = r.w + r.w_steps[s];
#pragma GCC unroll 2
    for (int l = 0; l < L; ++l, w += NB * VL) {
      V weight[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; ++b) weight[b] = load(w + b * VL);
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) {
        const V value = splat(x[p * L + l]);
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) acc[b][p] += weight[b] * value;
      }
    }
  }
  const int act = r.epilogue->act;
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    float* y = r.y + b * r.y_block;
    if (r.add) {
      const float* add = r.add + b * r.add_block;
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) acc[b][p] += load(add + p * r.add_pixel);
    }
    if (act == kRelu) {
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) acc[b][p] = activate<kRelu>(acc[b][p], 0, 0);
    }
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) store(y + p * r.y_pixel, acc[b][p]);
    if (act > kRelu)
      for (int p = 0; p < P; ++p) r.epilogue->over(y + p * r.y_pixel, VL);
  }
}

template <int L, int NB, int... P>
Tile pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr Tile table[] = {tile<P + 1, NB, L>...};
  return table[pixels - 1];
}

template <int L>
Tile pick(int blocks, int pixels) {
  switch (blocks) {
    case 1: return pick<L, 1>(pixels, std::make_integer_sequence<int, kPixels[1]>());
    case 2: return pick<L, 2>(pixels, std::make_integer_sequence<int, kPixels[2]>());
    case 3: return pick<L, 3>(pixels, std::make_integer_sequence<int, kPixels[3]>());
    default: return pick<L, 4>(pixels, std::make_integer_sequence<int, kPixels[4]>());
  }
}

}  // namespace

Tile tile_of(int lanes, int blocks, int pixels) {
  return lanes == 1 ? pick<1>(blocks, pixels) : pick<VL>(blocks, pixels);
}

Cut::Cut(int lanes, int64_t all_blocks, int64_t row, int64_t steps, int only) : pixels(row) {
  double best = 0;
  blocks = 0;
  for (int nb = 4; nb >= 1; --nb) {
    if (all_blocks % nb || (only && nb != only)) continue;
    const int64_t count = (row + kPixels[nb] - 1) / kPixels[nb];
    const double wide = static_cast<double>(row) / count;
    // A step takes as long as its multiplications or its loads, and no less than the latency of a multiplication.
    const double step = std::max({nb * wide, nb + wide, 5.0});
    const double cycles = count * (steps * step + 2 * nb * wide + 20) / nb;
    if (!blocks || cycles < best) best = cycles, blocks = nb, tiles = static_cast<int>(count);
  }
  small = tile_of(lanes, blocks, static_cast<int>(row / tiles));
  large = tile_of(lanes, blocks, static_cast<int>((row + tiles - 1) / tiles));
}

}  // namespace dlas::DLAS_NS
