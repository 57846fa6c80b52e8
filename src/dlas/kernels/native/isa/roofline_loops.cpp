// Loops of nothing but one kind of instruction, for the limits of a processor.

#include "../core/roofline.h"
#include "low_bit.h"

namespace dlas::DLAS_NS {
namespace {

#if DLAS_VL == 16 || !defined(__x86_64__)
constexpr int kChains = 24;  // independent sums: enough for two units of five cycles, and no register to memory
#else
constexpr int kChains = 12;
#endif
constexpr int kBytes = 4 * VL;

// Takes every chain by a constant index: one variable index would put all of them into memory.
template <class T>
DLAS_INLINE double total(const T (&sums)[kChains]) {
  T all = sums[0];
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) all += sums[i];
  return static_cast<double>(all[0]);
}

double fp32(uint64_t repetitions) {
  V acc[kChains];
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) acc[i] = splat(1.0f + static_cast<float>(i));
  V factor = splat(0.9999f), add = splat(1e-4f);
  factor = hide(factor);
  add = hide(add);
  for (uint64_t r = 0; r < repetitions; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      acc[i] = hide(acc[i] * factor + add);
    }
  }
  return total(acc);
}

template <class Dot>
double int8(uint64_t repetitions) {
  VI acc[kChains] = {};
  VB codes{};
  VI a = splat_int(0x01020304);
  codes += 3;
  codes = hide(codes);
  for (uint64_t r = 0; r < repetitions; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      a = hide(a);  // else the products would be taken out of the loop
      acc[i] = Dot::narrow(acc[i], codes, a);
      acc[i] = hide(acc[i]);
    }
  }
  return total(acc);
}

#if defined(__x86_64__)
double int8_acc16(uint64_t repetitions) {
  typedef int16_t Short __attribute__((vector_size(4 * DLAS_VL)));
  VI acc[kChains] = {};
  VB codes{};
  codes += 3;
  codes = hide(codes);
  VI a = splat_int(0x01020304);
  for (uint64_t r = 0; r < repetitions; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) {
      a = hide(a);
      acc[i] = (VI)((Short)acc[i] + (Short)pairs(codes, a));
      acc[i] = hide(acc[i]);
    }
  }
  return total(acc);
}
#endif

#if DLAS_VL == 16
struct alignas(64) TileShape {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {};
  uint8_t rows[16] = {};
};

#define DLAS_TILES __attribute__((target("amx-tile,amx-int8,amx-bf16")))

template <bool Bf16>
DLAS_TILES double tiles(uint64_t repetitions) {
  TileShape shape;
  for (int i = 0; i < 8; ++i) shape.columns[i] = 64, shape.rows[i] = 16;
  asm volatile("" ::"r"(&shape) : "memory");  // GCC 12 sees no reader of the structure and leaves the stores out
  _tile_loadconfig(&shape);
  alignas(64) static uint8_t zeros[1024];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  for (uint64_t r = 0; r < repetitions; ++r) {
    if constexpr (Bf16) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 5, 6);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 5, 6);
      _tile_dpbusd(2, 4, 7);
      _tile_dpbusd(3, 5, 7);
    }
  }
  alignas(64) uint32_t result[256];
  _tile_stored(0, result, 64);
  _tile_release();
  return result[0];
}
#endif

// `Ahead`: bytes ahead of the loads that lines are asked for. Zen 4 reads a fifth faster from its L3 with a little.
template <int Ahead>
double read(const void* at, size_t bytes) {
  constexpr int kStreams = 8;
  const char *p = static_cast<const char*>(at), *end = p + bytes;
  VI acc[kStreams] = {};
  for (; p < end; p += 2 * kStreams * kBytes) {
#pragma GCC unroll 8
    for (int i = 0; i < kStreams; ++i) {
      if (Ahead && 2 * i * kBytes % 64 == 0) __builtin_prefetch(p + Ahead + 2 * i * kBytes);
      if (Ahead && kBytes == 64) __builtin_prefetch(p + Ahead + (2 * i + 1) * kBytes);
      acc[i] |= load_int(reinterpret_cast<const int32_t*>(p + i * kBytes));
      acc[i] |= load_int(reinterpret_cast<const int32_t*>(p + (kStreams + i) * kBytes));
    }
  }
  VI all = acc[0];
#pragma GCC unroll 8
  for (int i = 1; i < kStreams; ++i) all |= acc[i];
  return all[0];
}

Loops list() {
  constexpr double products = 2.0 * kChains * kBytes;
  Loops found{{{"fp32", 2.0 * kChains * VL, fp32}}, {read<0>, read<256>}};
#if DLAS_VL == 16
  found.all.push_back({"int8", products, has_vnni() ? int8<Vnni> : int8<Pairs>});
  if (has_amx_int8()) {
    found.all.push_back({"amx_int8", 4 * 2.0 * 16 * 16 * 64, tiles<false>});
    if (__builtin_cpu_supports("amx-bf16")) found.all.push_back({"amx_bf16", 4 * 2.0 * 16 * 16 * 32, tiles<true>});
  }
#else
  found.all.push_back({"int8", products, int8<Pairs>});
#endif
#if defined(__x86_64__)
  found.all.push_back({"int8_acc16", products, int8_acc16});
#endif
  return found;
}

const EnterLoops entered(DLAS_ISA, list);

}  // namespace
}  // namespace dlas::DLAS_NS
