// Vectors of one instruction set. Every file of this folder is compiled once per set, inside its own namespace.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifndef DLAS_VL
#error "DLAS_VL (float32 lanes), DLAS_ISA (its name) and DLAS_NS (a namespace) come from CMakeLists.txt"
#endif

namespace dlas::DLAS_NS {

constexpr int VL = DLAS_VL;

typedef float V __attribute__((vector_size(4 * DLAS_VL)));
typedef float Vu __attribute__((vector_size(4 * DLAS_VL), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(4 * DLAS_VL)));
typedef int32_t VIu __attribute__((vector_size(4 * DLAS_VL), aligned(4), may_alias));

#define DLAS_INLINE inline __attribute__((always_inline))

DLAS_INLINE V load(const float* p) { return *reinterpret_cast<const Vu*>(p); }
DLAS_INLINE void store(float* p, V v) { *reinterpret_cast<Vu*>(p) = v; }
DLAS_INLINE V splat(float x) { return x - V{}; }  // 0 + x is an addition (of -0), x - 0 is not

// The first n of VL lanes; the others read as zero and are not written.
DLAS_INLINE V load_part(const float* p, int n) {
  V v{};
  if (n >= VL) return load(p);
  std::memcpy(&v, p, sizeof(float) * n);
  return v;
}
DLAS_INLINE void store_part(float* p, V v, int n) {
  if (n >= VL) return store(p, v);
  std::memcpy(p, &v, sizeof(float) * n);
}

DLAS_INLINE V vmax(V a, V b) { return a > b ? a : b; }
DLAS_INLINE V vmin(V a, V b) { return a < b ? a : b; }

DLAS_INLINE VI as_int(V v) { return (VI)v; }  // bits, not values
DLAS_INLINE V as_float(VI v) { return (V)v; }

// exp to 2 ulp between -87.3 and 88.3 (Cody and Waite's reduction, degree 5 after the Cephes library); clamped outside,
// so that it is never infinite.
DLAS_INLINE V vexp(V x) {
  x = vmin(splat(88.37626f), vmax(splat(-87.33654f), x));  // this order lets NaN through
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = (x * 1.44269504088896341f + magic) - magic;
  const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  V p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const VI bits = (__builtin_convertvector(n, VI) + 127) << 23;
  return p * as_float(bits);
}

DLAS_INLINE V vsigmoid(V x) { return 1.0f / (1.0f + vexp(-x)); }
DLAS_INLINE V vtanh(V x) {
  // (1 - e) / (1 + e) loses digits near 0, where the odd series is exact to 1 ulp.
  const V e = vexp(x * -2.0f), big = (1.0f - e) / (1.0f + e);
  const V s = x * x, small = x * (1.0f + s * (-0.333333333f + s * (0.133333333f + s * -0.0539682540f)));
  return (x < 0.1f) & (x > -0.1f) ? small : big;
}

// What a kernel does to its result before it stores it.
enum Activation { kNone, kRelu, kClip, kHardSwish, kSigmoid, kSilu, kLeakyRelu, kHardSigmoid, kTanh };

template <int A>
DLAS_INLINE V activate(V v, float low, float high) {
  if constexpr (A == kRelu) return vmax(v, V{});
  if constexpr (A == kClip) return vmin(vmax(v, splat(low)), splat(high));
  if constexpr (A == kHardSwish) return v * vmin(vmax(v * (1.0f / 6.0f) + 0.5f, V{}), splat(1.0f));
  if constexpr (A == kSigmoid) return vsigmoid(v);
  if constexpr (A == kSilu) return v * vsigmoid(v);
  if constexpr (A == kLeakyRelu) return v > 0.0f ? v : v * low;
  if constexpr (A == kHardSigmoid) return vmin(vmax(v * low + high, V{}), splat(1.0f));
  if constexpr (A == kTanh) return vtanh(v);
  return v;
}

DLAS_INLINE V activate(int kind, V v, float low, float high) {
  switch (kind) {
    case kRelu: return activate<kRelu>(v, low, high);
    case kClip: return activate<kClip>(v, low, high);
    case kHardSwish: return activate<kHardSwish>(v, low, high);
    case kSigmoid: return activate<kSigmoid>(v, low, high);
    case kSilu: return activate<kSilu>(v, low, high);
    case kLeakyRelu: return activate<kLeakyRelu>(v, low, high);
    case kHardSigmoid: return activate<kHardSigmoid>(v, low, high);
    case kTanh: return activate<kTanh>(v, low, high);
    default: return v;
  }
}

}  // namespace dlas::DLAS_NS
