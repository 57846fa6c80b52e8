// 8-bit activations by weights of 4 (or 8) bits: GEMV that is bound by the bytes of the weights, and small GEMM.
//
// A task is one tile of columns, so that sums never depend on the number of threads. Weights are decoded in registers;
// several rows of activations share the decoded codes.

#include "low_bit.h"

#include <limits>

namespace dlas::DLAS_NS {
namespace {

struct Job {
  const int8_t* a;
  const int32_t* start;
  const float* a_scale;
  int64_t stride, segments, steps;
  const uint8_t* w;
  const uint8_t* scales;  // of the tile
  bool half;
  const uint8_t* zeros;
  const int32_t* sums;
  int32_t shift;  // what the activations' zero point leaves to add of each column sum
  VB table;
  // Results: (rows, n), of which `columns` belong to this tile.
  void* y;
  int64_t n, columns;
  const float* bias;        // of the tile, or null
  const int32_t* int_bias;
  Epilogue epilogue;
};

// Bytes that weights are fetched ahead of their products: what arrives from the L3 or memory in the meantime. Zen 4
// follows the stream by itself, and fetching far ahead takes a fifth of its bandwidth away.
int64_t fetch_ahead() {
#if defined(__x86_64__)
  static const bool amd = __builtin_cpu_is("amd") > 0;
  return amd ? 256 : 4096;
#else
  return 4096;
#endif
}

template <int Count>
DLAS_INLINE void prefetch(const uint8_t* w, int64_t ahead) {
#pragma GCC unroll 8
  for (int line = 0; line < Count; line += 64) __builtin_prefetch(w + ahead + line);
}

template <Codes C, int NV>
DLAS_INLINE void decode(const uint8_t* w, int half, VB table, VB* codes) {
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    if constexpr (C == Codes::eight) {
      codes[v] = load_bytes(w + (2 * (v / kParts) + half) * kBlock + v % kParts * 4 * VL);
    } else {
      const VB raw = load_bytes(w + v * 4 * VL);
      codes[v] = half ? raw >> 4 : raw & 15;
      if constexpr (C == Codes::table) codes[v] = look_up(table, codes[v]);
    }
  }
}

template <class Dot, Codes C, int MT, int NV>
DLAS_INLINE void multiply_step(const uint8_t* w, const int8_t* a, int64_t stride, VB table, VI (&acc)[MT][NV]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    VB codes[NV];
    decode<C, NV>(w, half, table, codes);
#pragma GCC unroll 4
    for (int m = 0; m < MT; ++m) {
      const VI value = broadcast4(a + m * stride + half * 4);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v)
        acc[m][v] = C == Codes::four ? Dot::narrow(acc[m][v], codes[v], value)
                                     : Dot::wide(acc[m][v], codes[v], value);
    }
  }
}

// One row: each half of the codes has sums of its own, so that products need not wait for each other, and the upper
// half of 4-bit codes stays where it is: its sums are 16 times too large.
template <class Dot, Codes C, int NV>
DLAS_INLINE void multiply_row(const uint8_t* w, const int8_t* a, VB table, VI (&low)[NV], VI (&high)[NV]) {
  const VI first = broadcast4(a), second = broadcast4(a + 4);
#pragma GCC unroll 16
  for (int v = 0; v < NV; ++v) {
    const VB raw = hide(load_bytes(w + v * 4 * VL));  // loaded once, not once for each half
    if constexpr (C == Codes::table) {
      low[v] = Dot::wide(low[v], look_up(table, raw & 15), first);
      high[v] = Dot::wide(high[v], look_up(table, raw >> 4), second);
    } else {
      low[v] = Dot::narrow(low[v], raw & 15, first);
      high[v] = Dot::narrow(high[v], raw & 0xf0, second);
    }
  }
}

DLAS_INLINE V load_scale(const Job& j, int64_t at) {
  return j.half ? load_half(reinterpret_cast<const uint16_t*>(j.scales) + at)
                : load(reinterpret_cast<const float*>(j.scales) + at);
}

// Rows of `results` floats (or int32) to memory, only the columns that exist.
template <int MT, int NV>
__attribute__((noinline)) void put(const Job& j, int64_t row, int rows, const V (&y)[MT][NV], bool floats) {
  for (int m = 0; m < rows; ++m) {
    float* to = static_cast<float*>(j.y) + (row + m) * j.n;  // int32 are as wide
    for (int v = 0; v < NV && v * VL < j.columns; ++v) {
      const int count = static_cast<int>(std::min<int64_t>(VL, j.columns - v * VL));
      V value = y[m][v];
      if (floats && j.bias) value += load_part(j.bias + v * VL, count);
      if (floats && j.epilogue.act) value = j.epilogue(value);
      if (!floats && j.int_bias) value = as_float(as_int(value) + as_int(load_part(
                                             reinterpret_cast<const float*>(j.int_bias) + v * VL, count)));
      store_part(to + v * VL, value, count);
    }
  }
}

template <class Dot, Codes C, bool Groups, int MT, int NB>
void tile(const Job& j, int64_t row, int rows) {
  constexpr int NV = NB * kParts;
  constexpr int kStep = NB * kBlock * (C == Codes::eight ? 2 : 1);
  const int8_t* a = j.a + row * j.stride;
  const uint8_t* w = j.w;
  const int64_t ahead = fetch_ahead();
  VI acc[MT][NV] = {};
  V total[MT][NV] = {};
  for (int64_t g = 0; g < j.segments; ++g) {
#pragma GCC unroll 4
    for (int m = 0; m < MT; ++m) {
      const VI first = splat_int(j.zeros ? 0 : j.start[(row + m) * j.segments + g]);
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[m][v] = first;
    }
    if constexpr (MT == 1 && Dot::kDirect && C != Codes::eight) {
      VI high[NV] = {};
#pragma GCC unroll 2
      for (int64_t s = 0; s < j.steps; ++s, w += kStep, a += kRows) {
        prefetch<kStep>(w, ahead);
        multiply_row<Dot, C, NV>(w, a, j.table, acc[0], high);
      }
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) acc[0][v] += C == Codes::four ? high[v] >> 4 : high[v];
    } else {
      for (int64_t s = 0; s < j.steps; ++s, w += kStep, a += kRows) {
        if constexpr (MT == 1) prefetch<kStep>(w, ahead);
        multiply_step<Dot, C, MT, NV>(w, a, j.stride, j.table, acc);
      }
    }
    const int64_t at = g * NB * kColumns;
    if (j.shift) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        const VI add = load_int(j.sums + at + v * VL) * j.shift;
#pragma GCC unroll 4
        for (int m = 0; m < MT; ++m) acc[m][v] += add;
      }
    }
    if constexpr (Groups) {
#pragma GCC unroll 16
      for (int v = 0; v < NV; ++v) {
        const V scale = load_scale(j, at + v * VL);
        const V zero = j.zeros ? to_float(widen(j.zeros + at + v * VL)) : V{};
#pragma GCC unroll 4
        for (int m = 0; m < MT; ++m) {
          V sum = to_float(acc[m][v]);
          // Below 2^24, so that this is exact as well; `start` is -sum here.
          if (j.zeros) sum += zero * static_cast<float>(j.start[(row + m) * j.segments + g]);
          total[m][v] += sum * (scale * j.a_scale[(row + m) * j.segments + g]);
        }
      }
    }
  }
  if constexpr (!Groups) {
#pragma GCC unroll 16
    for (int v = 0; v < NV; ++v)
#pragma GCC unroll 4
      for (int m = 0; m < MT; ++m)
        total[m][v] = j.scales ? to_float(acc[m][v]) * (load_scale(j, v * VL) * j.a_scale[row + m])
                               : as_float(acc[m][v]);
  }
  put(j, row, rows, total, j.scales != nullptr);
}

using Tile = void (*)(const Job&, int64_t row, int rows);

#if DLAS_VL == 16
constexpr int kHeights[] = {1, 2, 4};
#elif DLAS_VL == 8
constexpr int kHeights[] = {1, 2};
#else
constexpr int kHeights[] = {1};
#endif
constexpr int kHeightCount = sizeof kHeights / sizeof kHeights[0];

template <class Dot, Codes C, bool Groups, int... I>
Tile pick(int height, bool single, std::integer_sequence<int, I...>) {
  static constexpr Tile one[] = {tile<Dot, C, Groups, kHeights[I], 1>...};
  static constexpr Tile four[] = {tile<Dot, C, Groups, kHeights[I], kTileBlocks>...};
  return (single ? one : four)[height];
}

template <class Dot>
Tile pick(Codes codes, bool groups, int height, bool single) {
  constexpr auto all = std::make_integer_sequence<int, kHeightCount>();
  if (codes == Codes::four)
    return groups ? pick<Dot, Codes::four, true>(height, single, all) : pick<Dot, Codes::four, false>(height, single, all);
  if (codes == Codes::table)
    return groups ? pick<Dot, Codes::table, true>(height, single, all)
                  : pick<Dot, Codes::table, false>(height, single, all);
  return pick<Dot, Codes::eight, true>(height, single, all);
}

Tile choose(Codes codes, bool groups, int height, bool single) {
#if DLAS_VL == 16
  static const bool vnni = has_vnni();
  if (vnni) return pick<Vnni>(codes, groups, height, single);
#endif
  return pick<Pairs>(codes, groups, height, single);
}

// The shortest tile that holds the rows left, or the tallest.
int height_for(int64_t rows) {
  for (int i = 0; i < kHeightCount; ++i)
    if (kHeights[i] >= rows) return i;
  return kHeightCount - 1;
}

}  // namespace

static int32_t copy_bytes(const uint8_t* from, uint8_t flip, int64_t count, int8_t* to) {
  const VB ones = VB{} + uint8_t{1}, flips = VB{} + flip;
  VI sums{};
  int32_t sum = 0;
  int64_t i = 0;
  for (; i + 4 * VL <= count; i += 4 * VL) {
    const VB v = load_bytes(from + i) ^ flips;
    std::memcpy(to + i, &v, sizeof v);
    sums = Pairs::narrow(sums, ones, (VI)v);
  }
  for (int l = 0; l < VL; ++l) sum += sums[l];
  for (; i < count; ++i) sum += to[i] = static_cast<int8_t>(from[i] ^ flip);
  return sum;
}

int32_t quantize(const float* x, int64_t count, int8_t* a, float* scale, Quantizer quantizer) {
  V largest{}, poison{};
  int64_t i = 0;
  for (; i + VL <= count; i += VL) {
    const V v = load(x + i);
    largest = vmax(largest, vmax(v, -v));
    poison += v * 0.0f;
  }
  float most = 0, wrong = 0;
  for (int l = 0; l < VL; ++l) most = std::max(most, largest[l]), wrong += poison[l];
  for (int64_t t = i; t < count; ++t) most = std::max(most, std::fabs(x[t])), wrong += x[t] * 0.0f;
  const float step = most / 127.0f;
  const bool usable = wrong == 0 && step >= std::numeric_limits<float>::min();
  const float inverse = usable ? 1.0f / step : 0.0f;
  *scale = wrong != 0 || wrong != wrong ? std::numeric_limits<float>::quiet_NaN()
           : quantizer == Quantizer::q8_0 ? half_to_float(float_to_half(step)) : step;
  if (!usable) {
    std::memset(a, 0, count);
    return 0;
  }
  VI sums{};
  int32_t sum = 0;
  for (i = 0; i < count; i += VL) {
    const int left = static_cast<int>(std::min<int64_t>(VL, count - i));
    const V v = hide(load_part(x + i, left) * inverse);  // the rounding of the product is part of the format
    VI q;
    if (quantizer == Quantizer::q8_0) {
      q = __builtin_convertvector(v, VI);
      const V rest = v - to_float(q);
      q += (VI)(rest <= -0.5f) - (VI)(rest >= 0.5f);
    } else {
      const V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
      q = as_int(v + magic) - as_int(magic);
    }
    sums += q;
    store_narrow(a + i, q, left);
  }
  for (int l = 0; l < VL; ++l) sum += sums[l];
  return sum;
}

Weights::Weights(int64_t rows, int64_t columns, int64_t per, Codes kind, int taken)
    : k(rows), n(columns), group(per ? per : rows), steps((group + kRows - 1) / kRows), segments(per ? rows / per : 1),
      codes(kind), offset(taken), step_bytes(kind == Codes::eight ? 2 * kBlock : kBlock), tiling(columns),
      data(std::make_unique<Bytes>(tiling.blocks * steps * segments * step_bytes)) {}

Product::Product(std::unique_ptr<Weights> weights, const dlas_node* node, const dlas_ctx* ctx, Quantizer quantizer,
                 int zero_point, const DLTensor* bias)
    : weights_(std::move(weights)), epilogue_(node), ctx_(ctx), quantizer_(quantizer), zero_point_(zero_point) {
  const DLTensor* a = input(node, 0);
  rows_ = rows_of(a);
  // Rows a multiple of 4096 bytes apart would fall into the same lines of the cache.
  stride_ = rounded(weights_->segments * weights_->steps * kRows);
  if (stride_ % 1024 == 0) stride_ += 64;
  const int64_t padded = weights_->tiling.blocks * kColumns;
  if (is(bias, kFloat, 32)) bias_.assign(floats(bias), floats(bias) + weights_->n), bias_.resize(padded);
  if (is(bias, kInt, 32)) {
    const auto* from = static_cast<const int32_t*>(bias->data);
    int_bias_.assign(from, from + weights_->n);
    int_bias_.resize(padded);
  }
}

size_t Product::workspace() const {
  const int64_t rows = rows_ + kHeights[kHeightCount - 1];  // the last tile may reach beyond the rows
  return rounded(rows * stride_) + 2 * rounded(rows * weights_->segments * 4);
}

void Product::prepare_row(const DLTensor* a, int64_t row, int8_t* to, int32_t* start, float* scale) const {
  const Weights& w = *weights_;
  const bool is_float = is(a, kFloat, 32);
  const uint8_t flip = is(a, kUint, 8) ? 0x80 : 0;
  const int factor = w.zeros ? -1 : -w.offset;
  for (int64_t g = 0; g < w.segments; ++g) {
    int8_t* bytes = to + g * w.steps * kRows;
    int32_t sum = 0;
    if (is_float) {
      sum = quantize(floats(a) + row * w.k + g * w.group, w.group, bytes, scale + g, quantizer_);
    } else {
      const uint8_t* from = static_cast<const uint8_t*>(a->data) + row * w.k + g * w.group;
      sum = copy_bytes(from, flip, w.group, bytes);
      scale[g] = 1.0f;
    }
    std::memset(bytes + w.group, 0, w.steps * kRows - w.group);
    start[g] = factor * sum;
  }
}

void Product::run(const DLTensor* a, DLTensor* y, void* scratch) const {
  const Weights& w = *weights_;
  const int64_t rows = rows_ + kHeights[kHeightCount - 1];
  auto* bytes = static_cast<int8_t*>(scratch);
  auto* start = reinterpret_cast<int32_t*>(bytes + rounded(rows * stride_));
  auto* scale = reinterpret_cast<float*>(start) + rounded(rows * w.segments * 4) / 4;
  const auto prepare = [&](int64_t row, int) {
    prepare_row(a, row, bytes + row * stride_, start + row * w.segments, scale + row * w.segments);
  };
  if (rows_ == 1) prepare(0, 0); else parallel(ctx_, rows_, prepare);
  const int32_t shift = is(a, kUint, 8) ? 128 - zero_point_ : -zero_point_;
  const int64_t steps = w.steps * w.segments;
  parallel(ctx_, w.tiling.count, [&](int64_t t, int) {
    const int64_t first = w.tiling.first(t), column = first * kColumns;
    const int64_t per_tile = column * w.segments;
    const Job j{bytes, start, scale, stride_, w.segments, w.steps, w.data->at + first * steps * w.step_bytes,
                w.scales ? w.scales->at + per_tile * (w.half ? 2 : 4) : nullptr, w.half,
                w.zeros ? w.zeros->at + per_tile : nullptr,
                w.sums ? reinterpret_cast<const int32_t*>(w.sums->at) + per_tile : nullptr, w.sums ? shift : 0, w.table,
                static_cast<float*>(y->data) + column, w.n,
                std::min<int64_t>(w.tiling.width(t) * kColumns, w.n - column),
                bias_.empty() ? nullptr : bias_.data() + column, int_bias_.empty() ? nullptr : int_bias_.data() + column,
                epilogue_};
    for (int64_t row = 0; row < rows_;) {
      const int height = height_for(rows_ - row);
      const int64_t count = std::min<int64_t>(kHeights[height], rows_ - row);
      choose(w.codes, w.segments > 1 || w.zeros, height, w.tiling.width(t) == 1)(j, row, static_cast<int>(count));
      row += count;
    }
  });
}

}  // namespace dlas::DLAS_NS
