// Float32 activations by weights in ggml's blocks: Q4_0, Q8_0 and Q4_K, whose bytes are taken as they stand in a GGUF.
//
// Packing turns rows of blocks into columns of codes, so that a lane holds one row of the weights from its first block
// to its last: integers are summed exactly within a block, and blocks are added in float32 in increasing k, as ggml's
// reference does. Activations become Q8_0 or Q8_K on the way in.

#include <limits>

#include "low_bit.h"

namespace dlas::DLAS_NS {
namespace {

uint16_t half_at(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, 2);
  return value;
}

int check(const dlas_node* node, int64_t elements, int64_t bytes) {
  const DLTensor *a = input(node, 0), *w = input(node, 1), *bias = input(node, 2), *y = output(node, 0);
  if (!is(a, kFloat, 32) || !is(y, kFloat, 32) || a->ndim < 1) return refuse("activations and results must be float32");
  if (!w || !w->data || !is(w, kUint, 8) || w->ndim != 2) return refuse("the weights must be constant uint8 (N, bytes)");
  const int64_t k = a->shape[a->ndim - 1];
  if (k < 1 || k % elements || w->shape[1] != k / elements * bytes || w->shape[0] < 1)
    return refuse("rows of the weights must hold the blocks of K numbers");
  if (bias && (!is(bias, kFloat, 32) || !bias->data || bias->shape[0] != w->shape[0]))
    return refuse("the bias must be constant float32, one per row of the weights");
  return 1;
}

// Q4_0: half d, 16 bytes of codes j and j + 16, less 8. Q8_0: half d, 32 signed bytes.
template <bool Eight>
class Blocks32 {
 public:
  static constexpr int kElements = 32, kBytes = Eight ? 34 : 18;
  static int supports(const dlas_node* node) { return check(node, kElements, kBytes); }

  Blocks32(const dlas_node* node, const dlas_ctx* ctx) {
    const DLTensor *a = input(node, 0), *from = input(node, 1);
    const int64_t k = a->shape[a->ndim - 1], n = from->shape[0], row_bytes = from->shape[1];
    const auto* data = static_cast<const uint8_t*>(from->data);
    auto w = std::make_unique<Weights>(k, n, kElements, Eight ? Codes::eight : Codes::four, Eight ? 128 : 8);
    for (int64_t c = 0; c < n; ++c) {
      for (int64_t b = 0; b < k / kElements; ++b) {
        const uint8_t* codes = data + c * row_bytes + b * kBytes + 2;
        for (int e = 0; e < kElements; ++e) {
          const uint8_t code = Eight ? codes[e] ^ 0x80 : e < 16 ? codes[e] & 15 : codes[e - 16] >> 4;
          w->put(b * kElements + e, c, code);
        }
      }
    }
    w->set_scales([&](int64_t g, int64_t c) { return half_to_float(half_at(data + c * row_bytes + g * kBytes)); });
    product_ = std::make_unique<Product>(std::move(w), node, ctx, Quantizer::q8_0, 0, input(node, 2));
  }

  size_t workspace() const { return product_->workspace(); }
  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void* scratch) {
    product_->run(in[0], out[0], scratch);
  }

 private:
  std::unique_ptr<Product> product_;
};

// Q4_K: super-blocks of 8 times 32 codes: x = d * scale * code - dmin * minimum.
constexpr int kSuper = 256, kSub = 32, kSubs = 8, kSuperBytes = 144;

struct Super {
  const int8_t* a;
  const float* scale;  // (rows, supers)
  const float* sums;   // (rows, supers * 8): of 32 activations each
  int64_t stride, supers;
  const uint8_t *w, *scales, *minima;  // of the tile; scales and minima a byte for each column and 32 rows
  const float *d, *d_min;              // for each column and super-block
  float* y;
  int64_t n, columns;
  const float* bias;
};

template <class Dot, int MT, int NB>
void tile(const Super& j, int64_t row, int rows) {
  constexpr int NV = NB * kParts, kWide = NB * kColumns;
  const int8_t* a = j.a + row * j.stride;
  const uint8_t *w = j.w, *scales = j.scales, *minima = j.minima;
  V total[MT][NV] = {};
  for (int64_t b = 0; b < j.supers; ++b) {
    VI sum[MT][NV] = {};
    V below[MT][NV] = {};  // at most 8 * 63 * 32 * 127: whole numbers that float32 holds
    for (int s = 0; s < kSubs; ++s, scales += kWide, minima += kWide) {
      VI acc[MT][NV] = {};
#pragma GCC unroll 4
      for (int step = 0; step < kSub / kRows; ++step, w += NB * kBlock, a += kRows) {
#pragma GCC unroll 8
        for (int line = 0; line < NB * kBlock; line += 64) __builtin_prefetch(w + 4096 + line);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
          for (int v = 0; v < NV; ++v) {
            const VB raw = load_bytes(w + v * 4 * VL), codes = half ? raw >> 4 : raw & 15;
#pragma GCC unroll 4
            for (int m = 0; m < MT; ++m)
              acc[m][v] = Dot::narrow(acc[m][v], codes, broadcast4(a + m * j.stride + half * 4));
          }
        }
      }
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        const VI scale = widen(scales + v * VL);
        const V minimum = to_float(widen(minima + v * VL));
#pragma GCC unroll 4
        for (int m = 0; m < MT; ++m) {
          sum[m][v] += acc[m][v] * scale;
          below[m][v] += minimum * j.sums[(row + m) * j.supers * kSubs + b * kSubs + s];
        }
      }
    }
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v) {
      const V d = load(j.d + b * kWide + v * VL), d_min = load(j.d_min + b * kWide + v * VL);
#pragma GCC unroll 4
      for (int m = 0; m < MT; ++m) {
        const float scale = j.scale[(row + m) * j.supers + b];
        total[m][v] += to_float(sum[m][v]) * (d * scale);
        total[m][v] -= below[m][v] * (d_min * scale);
      }
    }
  }
  for (int m = 0; m < rows; ++m) {
    for (int v = 0; v < NV && v * VL < j.columns; ++v) {
      const int count = static_cast<int>(std::min<int64_t>(VL, j.columns - v * VL));
      const V bias = j.bias ? load_part(j.bias + v * VL, count) : V{};
      store_part(j.y + (row + m) * j.n + v * VL, total[m][v] + bias, count);
    }
  }
}

using SuperTile = void (*)(const Super&, int64_t row, int rows);
constexpr int kTall = 4;

template <class Dot>
SuperTile pick(bool tall, bool single) {
  if (single) return tall ? tile<Dot, kTall, 1> : tile<Dot, 1, 1>;
  return tall ? tile<Dot, kTall, kTileBlocks> : tile<Dot, 1, kTileBlocks>;
}

SuperTile choose(bool tall, bool single) {
#if DLAS_VL == 16
  if (has_vnni()) return pick<Vnni>(tall, single);
#endif
  return pick<Pairs>(tall, single);
}

// 256 numbers to Q8_K; gives the scale.
float quantize_q8_k(const float* x, int8_t* a, float* sums) {
  V largest{}, poison{};
  for (int i = 0; i < kSuper; i += VL) {
    const V v = load(x + i);
    largest = vmax(largest, vmax(v, -v));
    poison += v * 0.0f;
  }
  float most = 0, wrong = 0;
  for (int l = 0; l < VL; ++l) most = std::max(most, largest[l]), wrong += poison[l];
  if (wrong != 0 || wrong != wrong || most < 1e-35f) {
    std::memset(a, 0, kSuper);
    std::memset(sums, 0, kSubs * sizeof *sums);
    return most < 1e-35f && wrong == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  int first = 0;
  while (std::fabs(x[first]) != most) ++first;
  const float inverse = -127.0f / x[first];
  const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  for (int s = 0; s < kSubs; ++s) {
    VI sum{};
    for (int i = s * kSub; i < (s + 1) * kSub; i += VL) {
      const V v = hide(load(x + i) * inverse);  // rounded before it is added to
      VI q = as_int(v + magic) - as_int(magic);
      q = q > 127 ? splat_int(127) : q;
      sum += q;
      store_narrow(a + i, q, VL);
    }
    int32_t whole = 0;
    for (int l = 0; l < VL; ++l) whole += sum[l];
    sums[s] = static_cast<float>(whole);
  }
  return 1.0f / inverse;
}

class BlocksQ4K {
 public:
  static int supports(const dlas_node* node) { return check(node, kSuper, kSuperBytes); }

  BlocksQ4K(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx), epilogue_(node) {
    const DLTensor *a = input(node, 0), *from = input(node, 1);
    rows_ = rows_of(a), k_ = a->shape[a->ndim - 1], n_ = from->shape[0], supers_ = k_ / kSuper;
    stride_ = k_ % 1024 ? k_ : k_ + 64;
    w_ = std::make_unique<Weights>(k_, n_, kSub, Codes::four, 0);
    const int64_t padded = w_->tiling.blocks * kColumns;
    scales_ = std::make_unique<Bytes>(padded * supers_ * kSubs);
    minima_ = std::make_unique<Bytes>(padded * supers_ * kSubs);
    d_ = std::make_unique<Packed>(padded * supers_);
    d_min_ = std::make_unique<Packed>(padded * supers_);
    for (int64_t c = 0; c < n_; ++c)
      for (int64_t b = 0; b < supers_; ++b)
        pack(static_cast<const uint8_t*>(from->data) + c * from->shape[1] + b * kSuperBytes, c, b);
    if (const DLTensor* bias = input(node, 2)) bias_.assign(floats(bias), floats(bias) + n_);
  }

  size_t workspace() const {
    const int64_t rows = rows_ + kTall;
    return rounded(rows * stride_) + rounded(rows * supers_ * 4) + rounded(rows * supers_ * kSubs * 4);
  }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void* scratch) {
    const int64_t rows = rows_ + kTall;  // the last tile may reach beyond the rows
    auto* bytes = static_cast<int8_t*>(scratch);
    auto* scale = reinterpret_cast<float*>(bytes + rounded(rows * stride_));
    float* sums = scale + rounded(rows * supers_ * 4) / 4;
    const float* x = floats(in[0]);
    parallel(ctx_, rows_, [&](int64_t row, int) {
      for (int64_t b = 0; b < supers_; ++b)
        scale[row * supers_ + b] = quantize_q8_k(x + row * k_ + b * kSuper, bytes + row * stride_ + b * kSuper,
                                                 sums + (row * supers_ + b) * kSubs);
    });
    const Tiling& tiling = w_->tiling;
    parallel(ctx_, tiling.count, [&](int64_t t, int) {
      const int64_t column = tiling.first(t) * kColumns, width = tiling.width(t) * kColumns;
      const Super j{bytes, scale, sums, stride_, supers_, w_->data->at + column * k_ / 2,
                    scales_->at + column * supers_ * kSubs, minima_->at + column * supers_ * kSubs,
                    d_->at + column * supers_, d_min_->at + column * supers_, floats(out[0]) + column, n_,
                    std::min(width, n_ - column), bias_.empty() ? nullptr : bias_.data() + column};
      for (int64_t row = 0; row < rows_;) {
        const int64_t count = rows_ - row == 1 ? 1 : std::min<int64_t>(kTall, rows_ - row);
        choose(count > 1, tiling.width(t) == 1)(j, row, static_cast<int>(count));
        row += count;
      }
    });
    if (epilogue_.act) epilogue_.over(floats(out[0]), rows_ * n_);
  }

 private:
  void pack(const uint8_t* block, int64_t c, int64_t b) {
    const Tiling& tiling = w_->tiling;
    const int64_t lane = c % kColumns, at = tiling.place(c / kColumns, b, supers_, kColumns) + lane;
    d_->at[at] = half_to_float(half_at(block));
    d_min_->at[at] = half_to_float(half_at(block + 2));
    const uint8_t *packed = block + 4, *codes = block + 16;
    for (int s = 0; s < kSubs; ++s) {
      const int64_t place = tiling.place(c / kColumns, b * kSubs + s, supers_ * kSubs, kColumns) + lane;
      const int i = s % 4;
      scales_->at[place] = s < 4 ? packed[i] & 63 : (packed[i + 8] & 15) | (packed[i] >> 6) << 4;
      minima_->at[place] = s < 4 ? packed[i + 4] & 63 : packed[i + 8] >> 4 | (packed[i + 4] >> 6) << 4;
      for (int e = 0; e < kSub; ++e) {
        const uint8_t pair = codes[s / 2 * kSub + e];
        w_->put(b * kSuper + s * kSub + e, c, s % 2 ? pair >> 4 : pair & 15);
      }
    }
  }

  const dlas_ctx* ctx_;
  Epilogue epilogue_;
  int64_t rows_, k_, n_, supers_, stride_;
  std::unique_ptr<Weights> w_;
  std::unique_ptr<Bytes> scales_, minima_;
  std::unique_ptr<Packed> d_, d_min_;
  std::vector<float> bias_;
};

DLAS_ENTER(Blocks32<false>, "MatMulQ4_0", "q4-0");
DLAS_ENTER(Blocks32<true>, "MatMulQ8_0", "q8-0");
DLAS_ENTER(BlocksQ4K, "MatMulQ4_K", "q4-k");

}  // namespace
}  // namespace dlas::DLAS_NS
