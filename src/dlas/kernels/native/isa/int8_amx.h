// 8-bit matrix tiles of AMX (TDPBUSD): 16 rows of 64 bytes by 16 columns of 4, sums in 16 x 16 int32.
//
// Never run on a processor that has AMX by whoever wrote it: what is tested is the same code with `ModelTiles`, which
// computes what Intel's manual says of each instruction.
#pragma once

#include "quant.h"

namespace dlas::DLAS_NS {

#if DLAS_VL == 16
// The registers tmm0..tmm7 of this thread, all of 16 rows of 64 bytes.
struct HardwareTiles {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  HardwareTiles() {
    const Config config;
    // As a whole it is an input of the instruction, so that its stores are not taken for dead.
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~HardwareTiles() { asm volatile("tilerelease" ::: "memory"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  template <int T>
  void load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
  }
  template <int T>
  void store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
  }
  // Sums C += A (unsigned) times B (signed).
  template <int C, int A, int B>
  void multiply() {
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B) : "memory");
  }
};

// The same instructions in plain C++.
struct ModelTiles {
  uint8_t tiles[8][16][64];
  template <int T>
  void load(const void* from, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(tiles[T][r], static_cast<const char*>(from) + r * stride, 64);
  }
  template <int T>
  void store(void* to, int64_t stride) {
    for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tiles[T][r], 64);
  }
  template <int C, int A, int B>
  void multiply() {
    for (int m = 0; m < 16; ++m)
      for (int n = 0; n < 16; ++n) {
        uint32_t sum;  // wraps
        std::memcpy(&sum, tiles[C][m] + 4 * n, 4);
        for (int k = 0; k < 16; ++k)
          for (int i = 0; i < 4; ++i)
            sum += static_cast<uint32_t>(tiles[A][m][4 * k + i] * static_cast<int8_t>(tiles[B][k][4 * n + i]));
        std::memcpy(tiles[C][m] + 4 * n, &sum, 4);
      }
  }
};

constexpr int kAmxPixels = 32;

// Sums of up to 32 pixels by `nb` vectors of channels. `panel` holds 32 rows of `depth` times 64 bytes; `w` is packed
// [depth][16][nb][16][4]; vectors' constants begin with their bias. `out` is [32][nb][16].
template <class Tiles>
void amx_sums(Tiles& t, const uint8_t* panel, int pixels, const int32_t* w, const int32_t* constants, int nb, int depth,
              int32_t* out) {
  const int64_t row = 64 * static_cast<int64_t>(depth), step = 64 * static_cast<int64_t>(nb);
  const bool both = pixels > 16;
  for (int b = 0; b < nb; b += 2) {
    const bool pair = b + 1 < nb;
    const int32_t *bias = constants + b * kConstants * VL, *bias2 = constants + (b + pair) * kConstants * VL;
    t.template load<0>(bias, 0), t.template load<2>(bias, 0);  // every row is the same
    t.template load<1>(bias2, 0), t.template load<3>(bias2, 0);
    for (int k = 0; k < depth; ++k) {
      const char* weights = reinterpret_cast<const char*>(w) + k * 16 * step + b * 64;
      t.template load<4>(panel + k * 64, row);
      t.template load<6>(weights, step);
      t.template multiply<0, 4, 6>();
      if (pair) {
        t.template load<7>(weights + 64, step);
        t.template multiply<1, 4, 7>();
      }
      if (!both) continue;
      t.template load<5>(panel + 16 * row + k * 64, row);
      t.template multiply<2, 5, 6>();
      if (pair) t.template multiply<3, 5, 7>();
    }
    int32_t* to = out + b * VL;
    t.template store<0>(to, step);
    if (pair) t.template store<1>(to + VL, step);
    if (!both) continue;
    t.template store<2>(to + 16 * nb * VL, step);
    if (pair) t.template store<3>(to + 16 * nb * VL + VL, step);
  }
}
#endif

}  // namespace dlas::DLAS_NS
