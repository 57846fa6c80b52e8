// Transposition in registers.
#pragma once

#include "simd.h"

namespace dlas::DLAS_NS {

typedef uint8_t Bytes __attribute__((vector_size(16)));

template <class Vector, int N, class Index>
DLAS_INLINE void transpose_stage(const Vector (&from)[N], Vector (&to)[N]) {
  Index low, high;
  for (int i = 0; i < N; ++i) {
    low[i] = static_cast<decltype(low[0] + 0)>(i / 2 + (i % 2) * N);
    high[i] = static_cast<decltype(low[0] + 0)>(N / 2 + i / 2 + (i % 2) * N);
  }
#pragma GCC unroll 8
  for (int i = 0; i < N / 2; ++i) {
    to[2 * i] = __builtin_shuffle(from[i], from[i + N / 2], low);
    to[2 * i + 1] = __builtin_shuffle(from[i], from[i + N / 2], high);
  }
}

// N vectors of N elements: log2(N) rounds that interleave row i with row i + N/2.
template <class Index, class Vector, int N>
DLAS_INLINE void transpose_tile(Vector (&t)[N]) {
  Vector other[N];
  static_assert(N == 4 || N == 8 || N == 16);
  transpose_stage<Vector, N, Index>(t, other);
  transpose_stage<Vector, N, Index>(other, t);
  if constexpr (N >= 8) transpose_stage<Vector, N, Index>(t, other);
  if constexpr (N == 16) transpose_stage<Vector, N, Index>(other, t);
  if constexpr (N == 8) {
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) t[i] = other[i];
  }
}

}  // namespace dlas::DLAS_NS
