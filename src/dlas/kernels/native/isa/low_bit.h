// What products of 8-bit activations with packed weights of 4 or 8 bits have in common.
//
// Weights stand in tiles of up to 4 blocks of 16 columns. A tile is a run of steps of 8 rows (k); a step holds, for
// each block, 64 bytes of 4-bit codes (formats/int4.py) or twice 64 bytes of 8-bit ones. Codes are unsigned, the
// activations signed: the sum of (code - offset) * a is the sum of code * a less offset times the sum of a, and that
// sum is known before the product begins, so that decoding is a mask and a shift.
#pragma once

#include <algorithm>
#include <memory>

#include <sys/mman.h>

#include "../core/cpu.h"
#include "layer.h"

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace dlas::DLAS_NS {

typedef uint8_t VB __attribute__((vector_size(4 * DLAS_VL)));
typedef uint8_t VBu __attribute__((vector_size(4 * DLAS_VL), aligned(1), may_alias));

constexpr int kColumns = 16, kRows = 8, kBlock = 64, kTileBlocks = 4;
constexpr int kParts = kColumns / VL;  // vectors that hold a block of columns

// Bytes in huge pages where the system has them: weights that are streamed once would miss the TLB on every page.
class Bytes {
 public:
  explicit Bytes(size_t count) : size_((count + kHuge - 1) / kHuge * kHuge) {
    if (count < kHuge) size_ = (count + 4095) / 4096 * 4096 + 4096;
    raw_size_ = size_ + kHuge;
    raw_ = mmap(nullptr, raw_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw_ == MAP_FAILED) throw std::bad_alloc();
    at = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(raw_) + kHuge - 1) & ~uintptr_t{kHuge - 1});
    if (size_ >= kHuge) madvise(at, size_, MADV_HUGEPAGE);
  }
  ~Bytes() { munmap(raw_, raw_size_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;
  uint8_t* at;

 private:
  static constexpr size_t kHuge = size_t{1} << 21;
  size_t size_, raw_size_;
  void* raw_;
};

DLAS_INLINE VB load_bytes(const uint8_t* p) { return *reinterpret_cast<const VBu*>(p); }
DLAS_INLINE VI splat_int(int32_t x) { return x - VI{}; }
DLAS_INLINE VI load_int(const int32_t* p) { return *reinterpret_cast<const VIu*>(p); }
DLAS_INLINE void store_int(int32_t* p, VI v) { *reinterpret_cast<VIu*>(p) = v; }
// GCC takes the portable way, __builtin_convertvector between 8 and 32 bits, byte by byte.
DLAS_INLINE VI widen(const uint8_t* p) {
#if defined(__x86_64__) && DLAS_VL == 16
  return (VI)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__x86_64__) && DLAS_VL == 8
  return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif defined(__x86_64__)
  int32_t four;
  std::memcpy(&four, p, 4);
  return (VI)_mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
#else
  typedef uint8_t Narrow __attribute__((vector_size(DLAS_VL)));
  Narrow bytes;
  std::memcpy(&bytes, p, DLAS_VL);
  return __builtin_convertvector(bytes, VI);
#endif
}
// The first `count` of VL lanes, within -128 .. 127, as bytes.
DLAS_INLINE void store_narrow(int8_t* to, VI v, int count) {
#if defined(__x86_64__) && DLAS_VL == 16
  const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v);
#elif defined(__x86_64__) && DLAS_VL == 8
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  const __m128i bytes = _mm_packs_epi16(halves, halves);
#elif defined(__x86_64__)
  const __m128i halves = _mm_packs_epi32((__m128i)v, (__m128i)v), bytes = _mm_packs_epi16(halves, halves);
#else
  typedef int8_t Narrow __attribute__((vector_size(DLAS_VL)));
  const Narrow bytes = __builtin_convertvector(v, Narrow);
#endif
  if (count == VL) std::memcpy(to, &bytes, VL);
  else std::memcpy(to, &bytes, count);
}
DLAS_INLINE V to_float(VI v) { return __builtin_convertvector(v, V); }
DLAS_INLINE VI broadcast4(const int8_t* a) {
  int32_t four;
  std::memcpy(&four, a, 4);
  return splat_int(four);
}

// Hides where a value comes from: a loop keeps what depends on it, and a product is rounded before it is added to.
template <class T>
DLAS_INLINE T hide(T value) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(value));
#else
  asm volatile("" : "+w"(value));
#endif
  return value;
}

// acc + the products of 4 neighbouring bytes each: codes unsigned, a signed; exact. `narrow` wants codes of at most
// 128, because the sum of two products must fit 16 bits where there is no instruction for four (kDirect).
#if defined(__x86_64__)
#if DLAS_VL == 16
struct Vnni {
  static constexpr bool kDirect = true;
  // As text, so that the rest of the file need not be compiled for processors that have it.
  static DLAS_INLINE VI narrow(VI acc, VB codes, VI a) {
    asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "v"(a));
    return acc;
  }
  static DLAS_INLINE VI wide(VI acc, VB codes, VI a) { return narrow(acc, codes, a); }
};
DLAS_INLINE VI pairs(VB codes, VI a) { return (VI)_mm512_maddubs_epi16((__m512i)codes, (__m512i)a); }
DLAS_INLINE VI add_pairs(VI sums, int16_t by) { return (VI)_mm512_madd_epi16((__m512i)sums, _mm512_set1_epi16(by)); }
#elif DLAS_VL == 8
DLAS_INLINE VI pairs(VB codes, VI a) { return (VI)_mm256_maddubs_epi16((__m256i)codes, (__m256i)a); }
DLAS_INLINE VI add_pairs(VI sums, int16_t by) { return (VI)_mm256_madd_epi16((__m256i)sums, _mm256_set1_epi16(by)); }
#else
DLAS_INLINE VI pairs(VB codes, VI a) { return (VI)_mm_maddubs_epi16((__m128i)codes, (__m128i)a); }
DLAS_INLINE VI add_pairs(VI sums, int16_t by) { return (VI)_mm_madd_epi16((__m128i)sums, _mm_set1_epi16(by)); }
#endif
struct Pairs {
  static constexpr bool kDirect = false;
  static DLAS_INLINE VI narrow(VI acc, VB codes, VI a) { return acc + add_pairs(pairs(codes, a), 1); }
  static DLAS_INLINE VI wide(VI acc, VB codes, VI a) {
    return acc + add_pairs(pairs(codes >> 1, a), 2) + add_pairs(pairs(codes & 1, a), 1);
  }
};
#else
struct Pairs {
  static constexpr bool kDirect = false;
  static DLAS_INLINE VI narrow(VI acc, VB codes, VI a) { return wide(acc, codes, a); }
  static DLAS_INLINE VI wide(VI acc, VB codes, VI a) {
    const int8x16_t values = vreinterpretq_s8_s32((int32x4_t)a);
    const uint8x16_t c = (uint8x16_t)codes;
    const int16x8_t c0 = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(c))), a0 = vmovl_s8(vget_low_s8(values));
    const int16x8_t c1 = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(c))), a1 = vmovl_s8(vget_high_s8(values));
    const int32x4_t p0 = vpaddq_s32(vmull_s16(vget_low_s16(c0), vget_low_s16(a0)),
                                    vmull_s16(vget_high_s16(c0), vget_high_s16(a0)));
    const int32x4_t p1 = vpaddq_s32(vmull_s16(vget_low_s16(c1), vget_low_s16(a1)),
                                    vmull_s16(vget_high_s16(c1), vget_high_s16(a1)));
    return acc + (VI)vpaddq_s32(p0, p1);
  }
};
#endif

// Entry `index` (0 .. 15 in each byte) of a table that is repeated in every 16 bytes.
DLAS_INLINE VB look_up(VB table, VB index) {
#if defined(__x86_64__) && DLAS_VL == 16
  return (VB)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
#elif defined(__x86_64__) && DLAS_VL == 8
  return (VB)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
#elif defined(__x86_64__)
  return (VB)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
#else
  return (VB)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
#endif
}

// Scales as they are stored: halves, where that loses nothing and the processor converts them, else float32.
#if DLAS_VL == 4 && defined(__x86_64__)
constexpr bool kHalves = false;
DLAS_INLINE V load_half(const uint16_t*) { return V{}; }
#else
constexpr bool kHalves = true;
DLAS_INLINE V load_half(const uint16_t* p) {
#if DLAS_VL == 16
  return (V)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif DLAS_VL == 8
  return (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return (V)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
#endif
}
#endif

inline float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31, rest = h & 1023;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(rest) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | rest << 13;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Nearest half, ties to even.
inline uint16_t float_to_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x7f800000u) return static_cast<uint16_t>(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {  // a subnormal half counts steps of 2^-24
    const int shift = 126 - static_cast<int>(magnitude >> 23);
    if (shift > 24) return static_cast<uint16_t>(sign);
    const uint32_t whole = (magnitude & 0x7fffffu) | 0x800000u, half = 1u << (shift - 1);
    const uint32_t kept = whole >> shift, lost = whole & ((1u << shift) - 1);
    return static_cast<uint16_t>(sign | (kept + (lost > half || (lost == half && (kept & 1)))));
  }
  const uint32_t kept = (magnitude - 0x38000000u) >> 13, lost = magnitude & 0x1fffu;
  return static_cast<uint16_t>(sign | (kept + (lost > 0x1000u || (lost == 0x1000u && (kept & 1)))));
}

// Columns in tiles: as many tiles of 4 blocks as there are, then single blocks.
struct Tiling {
  int64_t blocks, full, count;
  explicit Tiling(int64_t columns) : blocks((columns + kColumns - 1) / kColumns), full(blocks / kTileBlocks),
                                     count(full + blocks % kTileBlocks) {}
  int width(int64_t tile) const { return tile < full ? kTileBlocks : 1; }
  int64_t first(int64_t tile) const { return tile < full ? tile * kTileBlocks : full * kTileBlocks + tile - full; }
  // Place of block b's part of an array of `per` items for each block and step, in steps of all blocks of a tile.
  int64_t place(int64_t block, int64_t step, int64_t steps, int64_t per) const {
    const int64_t tile = block < full * kTileBlocks ? block / kTileBlocks : full + block - full * kTileBlocks;
    return (first(tile) * steps + step * width(tile) + block - first(tile)) * per;
  }
};

// How activations become bytes. `rows`: nearest, ties to even; the scale is the largest magnitude / 127. `q8_0`: as
// ggml does: ties away from 0, and the scale that multiplies the result is a half.
enum class Quantizer { rows, q8_0 };

// `count` numbers to bytes with one scale; gives the sum of the bytes. A NaN or an infinity among them makes the scale
// NaN, and with it every result of the row.
int32_t quantize(const float* x, int64_t count, int8_t* a, float* scale, Quantizer quantizer);

enum class Codes { four, table, eight };

// A packed matrix of K rows and N columns, made once.
struct Weights {
  // `group` rows share a scale; 0: all. Data are filled by the caller, at `place`.
  Weights(int64_t k, int64_t n, int64_t group, Codes codes, int offset);

  // Codes one by one: 4 bits that `step_bytes` of 64 hold, or 8.
  void put(int64_t row, int64_t column, uint8_t code) {
    const int64_t in_step = row % kRows, byte = column % kColumns * 4 + in_step % 4, high = in_step / 4;
    uint8_t* to = step(column / kColumns, row / kRows);
    if (codes == Codes::eight) to[high * kBlock + byte] = code;
    else to[byte] |= static_cast<uint8_t>(code << 4 * high);
  }
  uint8_t* step(int64_t block, int64_t step) const {
    return data->at + tiling.place(block, step, steps * segments, step_bytes);
  }
  // `scale(segment, column)`; kept as halves where all of them are.
  template <class Scale>
  void set_scales(const Scale& scale) {
    bool halves = kHalves;
    for (int64_t g = 0; g < segments && halves; ++g)
      for (int64_t c = 0; c < n && halves; ++c) halves = half_to_float(float_to_half(scale(g, c))) == scale(g, c);
    half = halves;
    scales = std::make_unique<Bytes>(tiling.blocks * segments * kColumns * (half ? 2 : 4));
    for (int64_t g = 0; g < segments; ++g) {
      for (int64_t c = 0; c < n; ++c) {
        const int64_t at = tiling.place(c / kColumns, g, segments, kColumns) + c % kColumns;
        if (half) reinterpret_cast<uint16_t*>(scales->at)[at] = float_to_half(scale(g, c));
        else reinterpret_cast<float*>(scales->at)[at] = scale(g, c);
      }
    }
  }

  int64_t k, n, group;              // group: rows of a segment, all of them where there are no groups
  int64_t steps, segments;          // steps of a segment
  Codes codes;
  int offset;                       // what is taken from a code
  int step_bytes;
  Tiling tiling;
  VB table{};
  std::unique_ptr<Bytes> data, scales, zeros, sums;  // zeros: code that means 0, uint8; sums: of columns, int32
  bool half = false;
};

// y = (a - zero_point) @ w, scaled to float32 where there are scales, else int32. `a` is float32 (quantized here),
// int8 or uint8; all rows of all leading axes.
class Product {
 public:
  Product(std::unique_ptr<Weights> weights, const dlas_node* node, const dlas_ctx* ctx, Quantizer quantizer,
          int zero_point, const DLTensor* bias);
  size_t workspace() const;
  void run(const DLTensor* a, DLTensor* y, void* scratch) const;

 private:
  void prepare_row(const DLTensor* a, int64_t row, int8_t* to, int32_t* start, float* scale) const;

  std::unique_ptr<Weights> weights_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  Quantizer quantizer_;
  int zero_point_;
  int64_t rows_, stride_;
  std::vector<float> bias_;
  std::vector<int32_t> int_bias_;
};

inline int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

inline int64_t rows_of(const DLTensor* a) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < a->ndim; ++i) rows *= a->shape[i];
  return rows;
}
inline bool is(const DLTensor* t, int code, int bits) { return t && t->dtype.code == code && t->dtype.bits == bits; }
constexpr int kInt = 0, kUint = 1, kFloat = 2;

}  // namespace dlas::DLAS_NS
