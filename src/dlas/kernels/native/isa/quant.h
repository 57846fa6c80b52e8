// 8-bit integers: sums of products in vectors, and the way back from 32 bits to 8.
//
// Activations are computed with as uint8: int8 is flipped by xor 128 where it is loaded and stored, and its zero points
// move by 128 with it. Weights are int8.
#pragma once

#include <algorithm>
#include <climits>

#include "../core/cpu.h"
#include "layer.h"

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 on its own _mm512_undefined
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace dlas::DLAS_NS {

// Vectors of L lanes of 32 bits.
template <int L>
struct Lanes {
  typedef int32_t I __attribute__((vector_size(4 * L)));
  typedef int32_t Iu __attribute__((vector_size(4 * L), aligned(1), may_alias));
  typedef uint32_t U __attribute__((vector_size(4 * L)));
  typedef float F __attribute__((vector_size(4 * L)));
  typedef uint64_t Q __attribute__((vector_size(4 * L)));
  typedef int16_t S __attribute__((vector_size(4 * L)));
  typedef uint8_t B __attribute__((vector_size(4 * L)));
  typedef uint8_t Quarter __attribute__((vector_size(L), aligned(1), may_alias));  // a byte for each lane
};

template <int L>
DLAS_INLINE typename Lanes<L>::I load_lanes(const void* p) {
  return *static_cast<const typename Lanes<L>::Iu*>(p);
}
template <int L>
DLAS_INLINE void store_lanes(void* p, typename Lanes<L>::I v) {
  *static_cast<typename Lanes<L>::Iu*>(p) = v;
}
DLAS_INLINE int32_t four_bytes(const uint8_t* p) {
  int32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// Four bytes in every lane, flipped.
template <int L>
DLAS_INLINE typename Lanes<L>::I four_flipped(const uint8_t* p, typename Lanes<L>::I flip) {
#if defined(__AVX512F__)
  if constexpr (L == 16) {
    // One instruction; GCC would flip in a general register, which costs three.
    typename Lanes<L>::I v;
    asm("vpxord %2%{1to16%}, %1, %0" : "=v"(v) : "v"(flip), "m"(*reinterpret_cast<const int32_t(*)[1]>(p)));
    return v;
  }
#endif
  return (typename Lanes<L>::I{} + four_bytes(p)) ^ flip;
}

// ---- sums of four products per lane ------------------------------------------------------------------------------

// Weights of four taps for each lane; `kVectors` vectors hold them.
struct Vnni {
  static constexpr int kVectors = 1;
  template <int L>
  struct Bytes {
    typename Lanes<L>::I x;
    DLAS_INLINE explicit Bytes(typename Lanes<L>::I v) : x(v) {}
    DLAS_INLINE void add_to(typename Lanes<L>::I& sum, const int32_t* w) const {
#if DLAS_VL == 16
      // Written out, so that the file needs no flags that a processor without it could not run.
      asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "vm"(*reinterpret_cast<const typename Lanes<L>::I*>(w)));
#else
      (void)sum, (void)w;
#endif
    }
  };
  static void pack(int32_t* to, int, int lane, int tap, int value) {
    reinterpret_cast<int8_t*>(to + lane)[tap] = static_cast<int8_t>(value);
  }
};

// Products of 16 bits, for processors without VNNI: taps 0 and 2, then taps 1 and 3.
struct Pairs {
  static constexpr int kVectors = 2;
  template <int L>
  struct Bytes {
    typename Lanes<L>::I even, odd;
    DLAS_INLINE explicit Bytes(typename Lanes<L>::I v)
        : even(v & 0x00ff00ff), odd((typename Lanes<L>::I)((typename Lanes<L>::U)v >> 8) & 0x00ff00ff) {}
    DLAS_INLINE void add_to(typename Lanes<L>::I& sum, const int32_t* w) const {
      using U = typename Lanes<L>::U;  // sums wrap
      sum = (typename Lanes<L>::I)((U)sum + (U)products(even, load_lanes<L>(w)) + (U)products(odd, load_lanes<L>(w + L)));
    }
    DLAS_INLINE static typename Lanes<L>::I products(typename Lanes<L>::I a, typename Lanes<L>::I b) {
#if defined(__AVX512BW__)
      if constexpr (L == 16) return (typename Lanes<L>::I)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
      if constexpr (L == 8) return (typename Lanes<L>::I)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
#if defined(__x86_64__)
      if constexpr (L == 4) return (typename Lanes<L>::I)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
      return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
    }
  };
  static void pack(int32_t* to, int lanes, int lane, int tap, int value) {
    reinterpret_cast<int16_t*>(to + (tap & 1) * lanes + lane)[tap >> 1] = static_cast<int16_t>(value);
  }
};

// ---- from sums to bytes ------------------------------------------------------------------------------------------

// Unsigned products of lanes 0, 2, 4..
template <int L>
DLAS_INLINE typename Lanes<L>::Q even_products(typename Lanes<L>::Q a, typename Lanes<L>::Q b) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (typename Lanes<L>::Q)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return (typename Lanes<L>::Q)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#endif
#if defined(__x86_64__)
  if constexpr (L == 4) return (typename Lanes<L>::Q)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Upper halves of 64-bit lanes: those of `even` in lanes 0, 2, .., those of `odd` in lanes 1, 3, ..
template <int L>
DLAS_INLINE typename Lanes<L>::I upper_halves(typename Lanes<L>::Q even, typename Lanes<L>::Q odd) {
#if defined(__AVX512F__)
  if constexpr (L == 16)
    return (typename Lanes<L>::I)_mm512_mask_shuffle_epi32((__m512i)odd, 0x5555, (__m512i)even, _MM_PERM_DDBB);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8)
    return (typename Lanes<L>::I)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)even, 32), (__m256i)odd, 0xaa);
#endif
  return (typename Lanes<L>::I)((even >> 32) | (odd & 0xffffffff00000000u));
}

// 1 in lanes whose upper bit is set and whose `count` is 31; 0 where it is 32.
template <int L>
DLAS_INLINE typename Lanes<L>::I sign_term(typename Lanes<L>::I v, typename Lanes<L>::I count) {
#if defined(__AVX512F__)
  if constexpr (L == 16) return (typename Lanes<L>::I)_mm512_srlv_epi32((__m512i)v, (__m512i)count);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return (typename Lanes<L>::I)_mm256_srlv_epi32((__m256i)v, (__m256i)count);
#endif
  return (typename Lanes<L>::I)((typename Lanes<L>::U)v >> 31) & count & 1;
}

// The nearest integers, halves to even; what is far below `low` may become anything that low.
template <int L>
DLAS_INLINE typename Lanes<L>::I nearest_even(typename Lanes<L>::F v, float low) {
  using I = typename Lanes<L>::I;
#if defined(__AVX512F__)
  if constexpr (L == 16) return (I)_mm512_cvtps_epi32((__m512)v);
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) return (I)_mm256_cvtps_epi32((__m256)v);
#endif
#if defined(__x86_64__)
  if constexpr (L == 4) return (I)_mm_cvtps_epi32((__m128)v);
#endif
  v = v > low ? v : typename Lanes<L>::F{} + low;
  return (I)(v + 12582912.0f) - 0x4b400000;  // 1.5 * 2^23: adding it rounds to an integer
}

enum Rounding { kDouble, kSingle, kAway, kFloat };

// One vector's constants of a requantisation, 7 vectors of L lanes each.
enum { kBias, kFactorEven, kFactorOdd, kOffsetEven, kOffsetOdd, kShift, kSign, kConstants };

// How sums become bytes: three roundings of a fixed-point product, or a float product (ONNX, XNNPACK).
//
// With the sum s, multiplier q (31 bits) and shift right e, TFLite's double rounding is
//   h = floor((2 q s + 2^31) / 2^32),  y = floor((h + 2^(e-1) - [s < 0]) / 2^e) + zero point   (e > 0; y = h for e = 0)
// (SaturatingRoundingDoublingHighMul is floor(x + 1/2); RoundingDivideByPOT takes halves away from zero; where
// h = 0 but s < 0 the formula holds as well). The single rounding is floor((2 q s + 2^(31+e)) / 2^(32+e)); "away" takes
// halves away from zero: floor((2 q s + 2^(31+e) - [s < 0]) / 2^(32+e)).
// Sums carry a bias of 2^31 so that one unsigned multiplication does; whatever else is added is in one constant.
// Channels that this would overflow, and those with a shift to the left, are computed one by one before, as TFLite's
// definition says, and pass through the rest as they are.
class Requantization {
 public:
  // What `node` says of `count` channels.
  Requantization(const dlas_node* node, int count, bool flip_output);

  // One multiplier for all; no bounds but those of the type, and its zero point is that of uint8.
  Requantization(int64_t multiplier, int64_t shift, Rounding rounding, int zero_point)
      : multipliers_{multiplier}, shifts_{shift}, rounding_(rounding), zero_point_(zero_point), low_(0), high_(255),
        low_float_(static_cast<float>(-zero_point)), high_float_(static_cast<float>(255 - zero_point)), flip_(0) {}
  // The same with a float product.
  Requantization(float factor, int zero_point) : Requantization(0, 0, kFloat, zero_point) { scales_ = {factor}; }

  // What `sums` have to start from besides the bias.
  uint32_t bias_offset() const { return rounding_ == kFloat ? 0 : uint32_t{1} << 31; }

  // Says what the sums of a channel lie between; before `fill`.
  void bound(int channel, int64_t low, int64_t high) {
    if (rounding_ == kFloat) return;
    const int64_t q = multipliers_[channel], e = -shifts_[channel];
    const int64_t largest = std::max(-low, high) + 1;
    bool exact = e < 0 || e > 30 || largest > INT32_MAX;
    if (!exact) {
      const int64_t product = (largest * q >> 31) + 1, zero = static_cast<int64_t>(std::abs(zero_point_)) << e;
      exact = product + zero + (int64_t{1} << e) >= INT32_MAX;
    }
    if (exact) exact_channels_.push_back(channel);
  }

  // Constants of one lane; `to` points at the vector's first constant.
  void fill(int32_t* to, int lanes, int lane, int channel) {
    if (rounding_ == kFloat) {
      std::memcpy(to + kFactorEven * lanes + lane, &scales_[channel], 4);
      return;
    }
    uint64_t q = static_cast<uint32_t>(multipliers_[channel]);
    int e = static_cast<int>(-shifts_[channel]);
    bool twice = rounding_ == kDouble && e > 0;
    if (std::find(exact_channels_.begin(), exact_channels_.end(), channel) != exact_channels_.end()) {
      exact_.push_back({to, lane, static_cast<int32_t>(q), -e});
      q = uint64_t{1} << 30, e = 0, twice = false;  // half of twice the number
    }
    uint64_t offset = (uint64_t{1} << 31) - (q << 32);
    int64_t upper = static_cast<int64_t>(zero_point_) * (int64_t{1} << e);
    if (twice) upper += (int64_t{1} << (e - 1)) - 1;  // the sign gives 1 back to sums that are not negative
    if (rounding_ == kSingle || rounding_ == kAway) offset += (uint64_t{1} << 31 << e) - (uint64_t{1} << 31);
    offset += static_cast<uint64_t>(upper) << 32;
    const bool odd = lane & 1;
    const uint32_t doubled = static_cast<uint32_t>(q << 1);
    to[(odd ? kFactorOdd : kFactorEven) * lanes + (lane & ~1)] = static_cast<int32_t>(doubled);
    std::memcpy(to + (odd ? kOffsetOdd : kOffsetEven) * lanes + (lane & ~1), &offset, 8);
    to[kShift * lanes + lane] = e;
    to[kSign * lanes + lane] = twice ? 31 : 32;
  }

  // Sums as numbers that only have to be clamped.
  template <int L>
  DLAS_INLINE typename Lanes<L>::I scale(typename Lanes<L>::I sums, const int32_t* constants) const {
    using I = typename Lanes<L>::I;
    using Q = typename Lanes<L>::Q;
    const Q even = even_products<L>((Q)sums, (Q)load_lanes<L>(constants + kFactorEven * L)) +
                   (Q)load_lanes<L>(constants + kOffsetEven * L);
    const Q odd = even_products<L>((Q)sums >> 32, (Q)load_lanes<L>(constants + kFactorOdd * L)) +
                  (Q)load_lanes<L>(constants + kOffsetOdd * L);
    const I sign = sign_term<L>(sums, load_lanes<L>(constants + kSign * L));
    return (upper_halves<L>(even, odd) + sign) >> load_lanes<L>(constants + kShift * L);
  }

  template <int L>
  DLAS_INLINE typename Lanes<L>::I scale_float(typename Lanes<L>::I sums, const int32_t* constants) const {
    using F = typename Lanes<L>::F;
    const F factor = (F)load_lanes<L>(constants + kFactorEven * L);
    F v = __builtin_convertvector(sums, F) * factor;
    v = v < high_float_ ? v : F{} + high_float_;
    return nearest_even<L>(v, low_float_) + zero_point_;
  }

  // As `scale`, less one unit of the 64-bit product where the sum is negative.
  template <int L>
  DLAS_INLINE typename Lanes<L>::I scale_away(typename Lanes<L>::I sums, const int32_t* constants) const {
    using Q = typename Lanes<L>::Q;
    const Q even = even_products<L>((Q)sums, (Q)load_lanes<L>(constants + kFactorEven * L)) +
                   (Q)load_lanes<L>(constants + kOffsetEven * L) + (((Q)sums >> 31) & 1) - 1;
    const Q odd = even_products<L>((Q)sums >> 32, (Q)load_lanes<L>(constants + kFactorOdd * L)) +
                  (Q)load_lanes<L>(constants + kOffsetOdd * L) + ((Q)sums >> 63) - 1;
    return upper_halves<L>(even, odd) >> load_lanes<L>(constants + kShift * L);
  }

  // In place, for `vectors` vectors of each of `pixels` pixels: single lanes, ready for `scale`; all with "away".
  template <int L>
  __attribute__((noinline)) void scale_slowly(int32_t* sums, const int32_t* constants, int vectors, int pixels) const {
    for (const Exact& lane : exact_) {
      const int64_t v = (lane.constants - constants) / (kConstants * L);
      if (lane.constants < constants || v >= vectors) continue;
      for (int p = 0; p < pixels; ++p) {
        int32_t& sum = sums[(p * vectors + v) * L + lane.lane];
        const uint32_t offset = bias_offset();
        const int64_t number = defined(static_cast<int32_t>(static_cast<uint32_t>(sum) - offset), lane.multiplier, lane.shift);
        sum = static_cast<int32_t>(static_cast<uint32_t>(2 * std::clamp<int64_t>(number, -65536, 65535)) + offset);
      }
    }
  }
  template <int L>
  __attribute__((noinline)) void scale_all(int32_t* sums, const int32_t* constants, int vectors, int pixels) const {
    for (int i = 0; i < pixels * vectors; ++i) {
      const int32_t* c = constants + i % vectors * kConstants * L;
      store_lanes<L>(sums + i * L, scale_away<L>(load_lanes<L>(sums + i * L), c));
    }
  }

  // Numbers that only have to be clamped, from sums that carry `bias_offset()`.
  template <int L>
  DLAS_INLINE typename Lanes<L>::I number(typename Lanes<L>::I sums, const int32_t* constants) const {
    if (!exact_.empty()) {
      alignas(64) int32_t at[L];
      store_lanes<L>(at, sums);
      scale_slowly<L>(at, constants, 1, 1);
      sums = load_lanes<L>(at);
    }
    if (rounding_ == kFloat) return scale_float<L>(sums, constants);
    return rounding_ == kAway ? scale_away<L>(sums, constants) : scale<L>(sums, constants);
  }

  // The sums of `pixels` pixels by NV vectors (at most 4) as bytes at y[p], `count` of them for each pixel.
  // `interleaved`: vector v holds in lane l the channel l / 4 * 16 + v * 4 + l % 4 (and there are 4 vectors).
  template <int L, int NV, bool interleaved>
  DLAS_INLINE void finish(int32_t* sums, const int32_t* constants, int pixels, uint8_t* const* y, int count) const;

  // Four vectors of numbers, clamped, as bytes.
  template <int L, bool interleaved>
  DLAS_INLINE typename Lanes<L>::B packed(const typename Lanes<L>::I v[4]) const;

  int low() const { return low_; }
  int high() const { return high_; }
  uint8_t flip() const { return flip_; }
  Rounding rounding() const { return rounding_; }

 private:
  template <int L, int NV, bool interleaved, class Scale>
  DLAS_INLINE void finish_as(const int32_t* sums, const int32_t* constants, int pixels, uint8_t* const* y, int count,
                             const Scale& scaled) const;

  // The definition of both roundings, for any multiplier, shift and sum.
  int64_t defined(int32_t sum, int64_t q, int s) const {
    if (rounding_ == kSingle || rounding_ == kAway) {
      const __int128 product = static_cast<__int128>(sum) * q + (__int128{1} << (30 - s));
      const bool down = rounding_ == kAway && sum < 0;
      return static_cast<int64_t>((product - down) >> (31 - s));
    }
    const int32_t left = static_cast<int32_t>(static_cast<uint32_t>(sum) << std::max(s, 0));
    const int64_t h = (left * q + (int64_t{1} << 30)) >> 31;
    const int e = std::max(-s, 0);
    const int64_t mask = (int64_t{1} << e) - 1;
    return (h >> e) + ((h & mask) > (mask >> 1) + (h < 0));
  }

  struct Exact {
    const int32_t* constants;  // of its vector
    int lane;
    int32_t multiplier;
    int shift;
  };
  std::vector<Exact> exact_;
  std::vector<int> exact_channels_;
  std::vector<int64_t> multipliers_, shifts_;
  std::vector<float> scales_;
  Rounding rounding_ = kDouble;
  int zero_point_, low_, high_;  // of uint8
  float low_float_ = 0, high_float_ = 0;
  uint8_t flip_;
};

inline Rounding rounding_of(const dlas_node* node) {
  const char* rounding = "double";
  api().get_string(node, "rounding", &rounding);
  const std::string name = rounding;
  return name == "single" ? kSingle : name == "away" ? kAway : name == "onnx" || name == "xnnpack" ? kFloat : kDouble;
}

inline Requantization::Requantization(const dlas_node* node, int count, bool flip_output)
    : flip_(flip_output ? 0x80 : 0) {
  const int move = flip_output ? 128 : 0;
  zero_point_ = static_cast<int>(get(node, "y_zero_point", 0)) + move;
  low_ = static_cast<int>(get(node, "act_min", 0 - move)) + move;
  high_ = static_cast<int>(get(node, "act_max", 255 - move)) + move;
  rounding_ = rounding_of(node);
  if (rounding_ == kFloat) {
    low_float_ = static_cast<float>(low_ - zero_point_), high_float_ = static_cast<float>(high_ - zero_point_);
    const DLTensor* scales = input(node, 3);
    const int64_t given = scales && scales->ndim ? scales->shape[0] : 1;
    for (int c = 0; scales && c < count; ++c) scales_.push_back(floats(scales)[given > 1 ? c : 0]);
    return;
  }
  multipliers_ = gets(node, "multipliers", {1 << 30}), shifts_ = gets(node, "shifts", {0});
  multipliers_.resize(count, multipliers_.back()), shifts_.resize(count, shifts_.back());
}

inline bool requantizes(const dlas_node* node, int64_t channels) {
  if (rounding_of(node) == kFloat) {
    const DLTensor* scales = input(node, 3);
    return scales && scales->data && scales->dtype.code == 2 &&
           (scales->ndim == 0 || scales->shape[0] == 1 || scales->shape[0] == channels);
  }
  const auto multipliers = gets(node, "multipliers", {}), shifts = gets(node, "shifts", {});
  const int64_t given = static_cast<int64_t>(multipliers.size());
  for (int64_t s : shifts)
    if (s < -31 || s > 30) return false;
  return (given == 1 || given == channels) && shifts.size() == multipliers.size();
}

// Four vectors of L numbers, saturated, as 4 L bytes: 4 bytes of each vector in turn.
template <int L>
DLAS_INLINE typename Lanes<L>::B saturate(typename Lanes<L>::I a, typename Lanes<L>::I b, typename Lanes<L>::I c,
                                          typename Lanes<L>::I d) {
  using B = typename Lanes<L>::B;
#if defined(__AVX512BW__)
  if constexpr (L == 16)
    return (B)_mm512_packus_epi16(_mm512_packs_epi32((__m512i)a, (__m512i)b),
                                  _mm512_packs_epi32((__m512i)c, (__m512i)d));
#endif
#if defined(__AVX2__)
  if constexpr (L == 8)
    return (B)_mm256_packus_epi16(_mm256_packs_epi32((__m256i)a, (__m256i)b),
                                  _mm256_packs_epi32((__m256i)c, (__m256i)d));
#endif
#if defined(__x86_64__)
  if constexpr (L == 4)
    return (B)_mm_packus_epi16(_mm_packs_epi32((__m128i)a, (__m128i)b), _mm_packs_epi32((__m128i)c, (__m128i)d));
#else
  B bytes;
  const typename Lanes<L>::I all[4] = {a, b, c, d};
  for (int i = 0; i < 4 * L; ++i)
    bytes[i] = static_cast<uint8_t>(std::clamp<int>(all[i / 4 % 4][i / 16 * 4 + i % 4], 0, 255));
  return bytes;
#endif
}

// Groups of 4 bytes that are in turn those of 4 vectors, put vector by vector.
template <int L>
DLAS_INLINE typename Lanes<L>::B in_order(typename Lanes<L>::B v) {
  using I = typename Lanes<L>::I;
  if constexpr (L == 16)
    return (typename Lanes<L>::B)__builtin_shuffle((I)v, (I){0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15});
  if constexpr (L == 8) return (typename Lanes<L>::B)__builtin_shuffle((I)v, (I){0, 4, 1, 5, 2, 6, 3, 7});
  return v;
}

// The first `count` bytes of a vector.
template <int L>
DLAS_INLINE void store_bytes(uint8_t* y, typename Lanes<L>::B bytes, int count) {
  if (count == 4 * L) return store_lanes<L>(y, (typename Lanes<L>::I)bytes);
#if defined(__AVX512BW__)
  if constexpr (L == 16)
    return _mm512_mask_storeu_epi8(y, (uint64_t{1} << count) - 1, (__m512i)bytes);
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (L == 8) return _mm256_mask_storeu_epi8(y, (uint32_t{1} << count) - 1, (__m256i)bytes);
  if constexpr (L == 4) return _mm_mask_storeu_epi8(y, (uint32_t{1} << count) - 1, (__m128i)bytes);
#endif
  std::memcpy(y, &bytes, count);
}

// The first `count` of up to N bytes in memory.
template <int N>
DLAS_INLINE void store_some(uint8_t* y, const uint8_t* from, int count) {
  if (count == N) {
    std::memcpy(y, from, N);
    return;
  }
  if constexpr (N >= 16)
    store_bytes<N / 4>(y, (typename Lanes<N / 4>::B)load_lanes<N / 4>(from), count);
  else
    std::memcpy(y, from, count);
}

template <int L, bool interleaved>
DLAS_INLINE typename Lanes<L>::B Requantization::packed(const typename Lanes<L>::I v[4]) const {
  using B = typename Lanes<L>::B;
  const B low = B{} + static_cast<uint8_t>(low_), high = B{} + static_cast<uint8_t>(high_), flip = B{} + flip_;
  B bytes = saturate<L>(v[0], v[1], v[2], v[3]);
  if constexpr (!interleaved) bytes = in_order<L>(bytes);
  bytes = bytes > low ? bytes : low;
  return (bytes < high ? bytes : high) ^ flip;
}

template <int L, int NV, bool interleaved>
DLAS_INLINE void Requantization::finish(int32_t* sums, const int32_t* constants, int pixels, uint8_t* const* y,
                                        int count) const {
  if (!exact_.empty()) scale_slowly<L>(sums, constants, NV, pixels);
  if (rounding_ == kAway) scale_all<L>(sums, constants, NV, pixels);
  if (rounding_ == kFloat)
    finish_as<L, NV, interleaved>(sums, constants, pixels, y, count,
                                  [this](auto v, const int32_t* c) { return scale_float<L>(v, c); });
  else if (rounding_ == kAway)
    finish_as<L, NV, interleaved>(sums, constants, pixels, y, count, [](auto v, const int32_t*) { return v; });
  else
    finish_as<L, NV, interleaved>(sums, constants, pixels, y, count,
                                  [this](auto v, const int32_t* c) { return scale<L>(v, c); });
}

// Four vectors of bytes at a time: those of one pixel, or of as many pixels as fill them.
template <int L, int NV, bool interleaved, class Scale>
DLAS_INLINE void Requantization::finish_as(const int32_t* sums, const int32_t* constants, int pixels,
                                           uint8_t* const* y, int count, const Scale& scaled) const {
  using I = typename Lanes<L>::I;
  constexpr int kGroup = NV > 2 ? 1 : 4 / NV;
  constexpr int kBytes = NV * L;  // of one pixel
  int p = 0;
  for (; p + kGroup <= pixels; p += kGroup) {
    I v[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < kGroup * NV; ++i)
      v[i] = scaled(load_lanes<L>(sums + (p * NV + i) * L), constants + i % NV * kConstants * L);
    const auto bytes = packed<L, interleaved>(v);
    if constexpr (kGroup == 1) {
      store_bytes<L>(y[p], bytes, count);
    } else if (count == kBytes && y[p + kGroup - 1] - y[p] == (kGroup - 1) * kBytes) {
      store_lanes<L>(y[p], (I)bytes);
    } else {
      alignas(64) uint8_t parts[4 * L];
      store_lanes<L>(parts, (I)bytes);
#pragma GCC unroll 4
      for (int i = 0; i < kGroup; ++i) store_some<kBytes>(y[p + i], parts + i * kBytes, count);
    }
  }
  for (; p < pixels; ++p) {
    I v[4] = {};
#pragma GCC unroll 4
    for (int i = 0; i < NV; ++i)
      v[i] = scaled(load_lanes<L>(sums + (p * NV + i) * L), constants + i * kConstants * L);
    store_bytes<L>(y[p], packed<L, interleaved>(v), count);
  }
}

// ---- tensors -----------------------------------------------------------------------------------------------------

inline bool is_byte(const DLTensor* t) { return t && t->dtype.bits == 8 && t->dtype.code < 2; }
inline bool is_signed(const DLTensor* t) { return t->dtype.code == 0; }
inline const uint8_t* bytes_of(const DLTensor* t) { return static_cast<const uint8_t*>(t->data); }
inline uint8_t* bytes_of(DLTensor* t) { return static_cast<uint8_t*>(t->data); }
// Weights are int8, or int16 where a zero point was taken off uint8.
inline bool is_weight(const DLTensor* w) { return w && w->data && w->dtype.code == 0 && w->dtype.bits <= 16; }
inline int weight_at(const DLTensor* w, int64_t i) {
  return w->dtype.bits == 8 ? static_cast<const int8_t*>(w->data)[i] : static_cast<const int16_t*>(w->data)[i];
}
// A tensor as runs of neighbouring bytes: the two last of four axes, or all of it.
struct Runs {
  int64_t count, size;
  explicit Runs(const DLTensor* t) : count(1), size(1) {
    for (int d = 0; d < t->ndim; ++d) size *= t->shape[d];
    if (t->ndim == 4 && size) count = t->shape[0] * t->shape[1], size /= count;
  }
  static int64_t offset(const DLTensor* t, int64_t run) {
    return t->ndim == 4 ? run / t->shape[1] * t->strides[0] + run % t->shape[1] * t->strides[1] : 0;
  }
};

inline bool use_vnni() { return DLAS_VL == 16 && dlas::has_vnni(); }

}  // namespace dlas::DLAS_NS
