// Weights of 4-bit powers of two by shifting the activations: what multiplication-free hardware would do. Here it is
// slower than looking the value up and multiplying (`po2-gemv`), and exists to show by how much.

#include "low_bit.h"

namespace dlas::DLAS_NS {
namespace {

typedef int16_t Short __attribute__((vector_size(4 * DLAS_VL)));

DLAS_INLINE VI pair_sums(Short v) {
#if defined(__x86_64__)
  return add_pairs((VI)v, 1);
#else
  return (VI)vpaddlq_s16((int16x8_t)v);
#endif
}

// Inputs: a (float32 or int8), packed codes (formats/int4.py), scales (N,), nothing, bias. Attribute `zero`: whether
// exponent 0 stands for 0, and e for 2^(e-1), or e for 2^e.
class Po2Shift {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *a = input(node, 0), *packed = input(node, 1), *scales = input(node, 2), *bias = input(node, 4);
    const int64_t k = get(node, "K", 0), n = get(node, "N", 0);
    if (!(is(a, kFloat, 32) || is(a, kInt, 8)) || k < 1 || n < 1 || k > 131072 || a->shape[a->ndim - 1] != k)
      return refuse("the activations must be float32 or int8 with K columns");
    if (!packed || !packed->data || packed->ndim != 3 || packed->shape[0] != (n + kColumns - 1) / kColumns ||
        packed->shape[1] != (k + kRows - 1) / kRows)
      return refuse("the packed weights must be constant uint8 of shape (ceil(N/16), ceil(K/8), 64)");
    if (!scales || !scales->data || !is(scales, kFloat, 32) || scales->shape[0] != n || input(node, 3) ||
        get(node, "group_size", 0) || get(node, "zero_point", 0))
      return refuse("it takes one constant float32 scale per column and no zero point");
    if (bias && (!bias->data || !is(bias, kFloat, 32) || bias->shape[0] != n))
      return refuse("the bias must be constant float32, one per column");
    return 1;
  }

  Po2Shift(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx), rows_(rows_of(input(node, 0))), zero_(get(node, "zero", 1) != 0),
        w_(get(node, "K", 0), get(node, "N", 0), 0, Codes::four, 0) {
    const auto* from = static_cast<const uint8_t*>(input(node, 1)->data);
    for (int64_t b = 0; b < w_.tiling.blocks; ++b)
      for (int64_t s = 0; s < w_.steps; ++s, from += kBlock) std::memcpy(w_.step(b, s), from, kBlock);
    const float* scales = floats(input(node, 2));
    scales_.assign(scales, scales + w_.n);
    if (const DLTensor* bias = input(node, 4)) bias_.assign(floats(bias), floats(bias) + w_.n);
  }

  size_t workspace() const { return rounded(rows_ * 4) + rounded(w_.steps * kRows) + rows_ * rounded(w_.steps * 16); }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void* scratch) {
    auto* scale = static_cast<float*>(scratch);
    auto* bytes = reinterpret_cast<int8_t*>(scratch) + rounded(rows_ * 4);
    auto* shorts = reinterpret_cast<int16_t*>(bytes + rounded(w_.steps * kRows));
    const int64_t stride = rounded(w_.steps * 16) / 2;
    for (int64_t row = 0; row < rows_; ++row) spread(in[0], row, bytes, shorts + row * stride, scale + row);
    parallel(ctx_, w_.tiling.count, [&](int64_t t, int) {
      for (int64_t row = 0; row < rows_; ++row) {
        float* y = floats(out[0]) + row * w_.n;
        const int16_t* a = shorts + row * stride;
        if (w_.tiling.width(t) == 1) zero_ ? tile<true, 1>(t, a, scale[row], y) : tile<false, 1>(t, a, scale[row], y);
        else zero_ ? tile<true, kTileBlocks>(t, a, scale[row], y) : tile<false, kTileBlocks>(t, a, scale[row], y);
      }
    });
  }

 private:
  // A row as pairs of 16 bits, in the order in which the nibbles of a 16-bit word of codes come: 0 2, 4 6, 1 3, 5 7.
  void spread(const DLTensor* a, int64_t row, int8_t* bytes, int16_t* to, float* scale) const {
    std::memset(bytes, 0, w_.steps * kRows);
    *scale = 1.0f;
    if (is(a, kFloat, 32)) quantize(floats(a) + row * w_.k, w_.k, bytes, scale, Quantizer::rows);
    else std::memcpy(bytes, static_cast<const int8_t*>(a->data) + row * w_.k, w_.k);
    constexpr int order[] = {0, 2, 4, 6, 1, 3, 5, 7};
    for (int64_t s = 0; s < w_.steps; ++s)
      for (int i = 0; i < kRows; ++i) to[s * kRows + i] = bytes[s * kRows + order[i]];
  }

  template <bool Zero, int NB>
  void tile(int64_t t, const int16_t* a, float a_scale, float* y) const {
    constexpr int NV = NB * kParts;
    const int64_t column = w_.tiling.first(t) * kColumns, columns = std::min<int64_t>(NB * kColumns, w_.n - column);
    const uint8_t* w = w_.step(w_.tiling.first(t), 0);
    VI acc[NV] = {};
    for (int64_t s = 0; s < w_.steps; ++s, w += NB * kBlock, a += kRows) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        const Short codes = (Short)load_bytes(w + v * 4 * VL);
#pragma GCC unroll 4
        for (int q = 0; q < 4; ++q) {
          const Short value = (Short)broadcast4(reinterpret_cast<const int8_t*>(a + 2 * q));
          const Short exponent = codes >> (4 * q) & 7, sign = codes << (12 - 4 * q) >> 15;
          Short shifted = Zero ? (value << ((exponent - 1) & 15)) & (exponent > 0) : value << exponent;
          acc[v] += pair_sums((shifted ^ sign) - sign);
        }
      }
    }
    V sums[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) sums[v] = to_float(acc[v]);
    for (int v = 0; v < NV && v * VL < columns; ++v) {
      const int count = static_cast<int>(std::min<int64_t>(VL, columns - v * VL));
      V value = sums[v] * (load_part(scales_.data() + column + v * VL, count) * a_scale);
      if (!bias_.empty()) value += load_part(bias_.data() + column + v * VL, count);
      store_part(y + column + v * VL, value, count);
    }
  }

  const dlas_ctx* ctx_;
  int64_t rows_;
  bool zero_;
  Weights w_;
  std::vector<float> scales_, bias_;
};

DLAS_ENTER(Po2Shift, "MatMulPo2", "po2-shift");

}  // namespace
}  // namespace dlas::DLAS_NS
