// The register tile that several convolutions share: P pixels by NB blocks of output channels, broadcast input.
//
// A step of the reduction reads one pixel's `lanes` channels (1, or a block of VL) for each of P neighbouring pixels;
// where a step starts is a table, so that any window, stride, dilation and layout is the same loop.
#pragma once

#include "layer.h"

namespace dlas::DLAS_NS {

#if DLAS_VL == 16
constexpr int kPixels[5] = {0, 16, 14, 9, 7};  // for NB blocks: up to 28 accumulators of 32 registers
#elif defined(DLAS_NEON)
constexpr int kPixels[5] = {0, 16, 12, 8, 6};  // 24 of 32
#else
constexpr int kPixels[5] = {0, 12, 6, 4, 3};  // 12 of 16
#endif

struct TileJob {
  const float* x;        // pixel p of step s is at x + steps[s] + p * lanes
  const float* w;        // of step s at w + w_steps[s], or where w_steps is null one after the other; [lane][NB][VL]
  const float* bias;     // NB vectors
  float* y;              // block b of pixel p is at y + b * y_block + p * y_pixel
  const float* add;      // added before the activation, or null
  const int64_t* steps;  // in elements
  const int64_t* w_steps;
  int64_t count;
  int64_t y_block, y_pixel, add_block, add_pixel;
  const Epilogue* epilogue;
};

using Tile = void (*)(const TileJob&);

// The tile of 1 <= pixels <= kPixels[blocks], 1 <= blocks <= 4; lanes is 1 or VL.
Tile tile_of(int lanes, int blocks, int pixels);

// How a row of pixels and a number of blocks are cut into tiles that do not leave the registers.
struct Cut {
  int blocks, tiles;
  int64_t pixels;
  Tile small, large;

  Cut() = default;
  // `steps` counts multiplications of one result; `only` fixes the number of blocks.
  Cut(int lanes, int64_t all_blocks, int64_t row, int64_t steps, int only = 0);
  int64_t from(int t) const { return pixels * t / tiles; }
  void run(int t, const TileJob& job) const { (from(t + 1) - from(t) == pixels / tiles ? small : large)(job); }
};

}  // namespace dlas::DLAS_NS
